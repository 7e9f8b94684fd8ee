"""Parity, then speed, of encoding an image once for its expressions. No speed fails a test."""

import json
from pathlib import Path

import pytest

from . import evaluation


def test_interleaved_summary(capsys: pytest.CaptureFixture[str]) -> None:
    """Parity with float64 is asserted inside, before anything is timed."""
    figures = evaluation.collect(rounds=1)
    with capsys.disabled():
        print("\n" + evaluation.format_table(figures))
    assert set(figures["cases"]) == set(evaluation.FORMS)


def test_committed_figures_are_whole() -> None:
    path = Path(evaluation.__file__).parent / "results" / "evaluation-cpu.json"
    figures = json.loads(path.read_text(encoding="utf-8"))
    assert set(figures["cases"]) == set(evaluation.FORMS)
    for form, row in figures["cases"].items():
        rate = evaluation.EXPRESSIONS / row["median_s"]
        assert row["expressions_per_second"] == pytest.approx(rate), form
