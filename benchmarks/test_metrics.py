"""Parity, then speed, of measuring a whole split. No speed fails a test."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from . import metrics


def test_parity() -> None:
    """A split's measures are those of the pixels counted and divided pair by pair."""
    pairs = [(a.numpy(), b.numpy()) for a, b in metrics.draw()]
    counts = [(np.logical_and(*pair).sum(), np.logical_or(*pair).sum()) for pair in pairs]
    counts = [counts[index % metrics.PAIRS] for index in range(metrics.EXPRESSIONS)]
    values = metrics.aggregate(arrays=False).compute()
    assert values == metrics.aggregate(arrays=True).compute()
    assert values["overall_iou"] == sum(i for i, _ in counts) / sum(u for _, u in counts)
    assert values["mean_iou"] == pytest.approx(np.mean([i / u for i, u in counts]), rel=1e-12)


@pytest.mark.parametrize("name", metrics.NAMES)
def test_speed(name: str, benchmark: Any) -> None:
    benchmark.pedantic(metrics.build(name), rounds=5, warmup_rounds=1)


def test_interleaved_summary(capsys: pytest.CaptureFixture[str]) -> None:
    figures = metrics.collect(rounds=2)
    with capsys.disabled():
        print("\n" + metrics.format_table(figures))
    assert set(figures["cases"]) == set(metrics.NAMES)
    assert all(row["median_s"] > 0 for row in figures["cases"].values())


def test_committed_figures_are_whole() -> None:
    path = Path(metrics.__file__).parent / "results" / "metrics-cpu.json"
    figures = json.loads(path.read_text(encoding="utf-8"))
    assert figures["sizes"]["sentences"] == metrics.EXPRESSIONS
    assert set(figures["cases"]) == set(metrics.NAMES)
    for name, row in figures["cases"].items():
        assert 0 < row["min_s"] <= row["median_s"] <= row["max_s"], name
    assert metrics.format_table(figures).count("\n") == len(metrics.NAMES)
