"""The committed figures have the form that the benchmarks write today."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import attention, cases, paper_step

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def test_attention_figures_are_whole() -> None:
    figures = read("attention-cpu.json")
    assert set(figures["machine"]) == set(attention.machine())
    assert set(figures["cases"]) == set(cases.NAMES)
    for name, row in figures["cases"].items():
        assert 0 < row["min_s"] <= row["median_s"] <= row["max_s"], name
        assert row["peak_mib"] >= 0, name
        flops = cases.build(name).flops
        if flops is not None:
            assert row["gflop_per_s"] == pytest.approx(flops / row["median_s"] / 1e9)
    assert attention.format_table(figures).count("\n") > len(cases.NAMES)


def test_ratios_are_those_of_the_medians() -> None:
    figures = read("attention-cpu.json")
    rows = figures["cases"]
    ratio = rows["sdpa forward"]["median_s"] / rows["separable forward"]["median_s"]
    assert figures["ratios"]["sdpa / separable, forward"] == pytest.approx(ratio)
    best = max(rows[f"matmul {size}"]["gflop_per_s"] for size in cases.MATMUL_SIZES)
    share = rows["separable forward"]["gflop_per_s"] / best
    assert rows["separable forward"]["share_of_matmul"] == pytest.approx(share)


def test_paper_step_figures_are_whole() -> None:
    figures = read("paper-step-cpu.json")
    assert set(figures["stages"]) == {"backbone", "CMSA", "fusion"}
    assert 0 < figures["peak_gib"] < 24
    assert "step" in paper_step.format_table(figures)
