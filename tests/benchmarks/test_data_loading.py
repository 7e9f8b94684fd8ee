"""The benchmark of data loading end to end at a small size, and its committed figures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import data_loading, measuring
from cmsa_fast.data import Source, open_split
from cmsa_fast.data.formats.convert import convert

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def check(figures: dict) -> None:
    assert set(figures["machine"]) == set(measuring.machine())
    assert set(figures["forms"]) == set(data_loading.FORMS)
    assert figures["convert_s"] > 0
    for form, row in figures["forms"].items():
        assert row["file_mb"] > 0
        for key, value in row.items():
            if key not in ("file_mb", "peak_mib"):
                assert 0 < value["min"] <= value["median"] <= value["max"], (form, key)
        assert row["open_s"]["median"] < row["first_sample_s"]["median"], form
    for key, ratio in figures["refer_over_converted"].items():
        refer, converted = (figures["forms"][form][key]["median"] for form in data_loading.FORMS)
        assert ratio == pytest.approx(refer / converted)
        assert f"refer / converted, {key}: {ratio:.1f}" in data_loading.format_table(figures)


def test_small_set_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_loading, "in_fresh_process", in_this_process)
    figures = data_loading.collect(rounds=2, references=30, expressions=77)
    assert figures["sizes"] == {"references": 30, "expressions": 77}
    check(figures)


def in_this_process(read: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    threads = torch.get_num_threads()
    try:
        return read(*arguments) | {"peak_mib": 1.0}
    finally:
        torch.set_num_threads(threads)


def test_both_forms_hold_the_same_data(tmp_path: Path) -> None:
    data_loading.build(tmp_path / "refer", references=40, expressions=101)
    refer = Source(form="refer", root=tmp_path / "refer")
    convert(refer, tmp_path / "converted.parquet")
    one = open_split(refer, "train")
    other = open_split(Source(form="converted", root=tmp_path / "converted.parquet"), "train")
    assert len(one) == 101
    assert one.expressions() == other.expressions()
    for a, b in zip(one.records, other.records, strict=True):
        assert a.mask_size is not None
        assert torch.equal(a.mask(*a.mask_size), b.mask(*a.mask_size))
        assert a.mask(*a.mask_size).any()
        assert 20 <= len(a.objects[0].polygons[0]) / 2 <= 60


def test_committed_figures() -> None:
    figures = json.loads((RESULTS / "data-loading-cpu.json").read_text(encoding="utf-8"))
    assert figures["sizes"]["references"] == data_loading.REFERENCES == 42_404
    assert figures["sizes"]["expressions"] == data_loading.EXPRESSIONS == 120_624
    assert figures["rounds"] >= 3
    check(figures)
