"""The benchmark of scoring end to end at a small size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import score


def test_small_set_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def here(function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    monkeypatch.setattr(score, "in_fresh_process", here)
    figures = score.collect(rounds=2, references=5, expressions=12)
    assert figures["sizes"] == {"references": 5, "expressions": 12}
    assert set(figures["cases"]) == set(score.FORMS)
    for row in figures["cases"].values():
        assert 0 < row["min_s"] <= row["median_s"] <= row["max_s"]
        assert row["peak_mib"] > 0
        assert row["file_mb"] > 0
    assert "lavt.jsonl" in score.format_table(figures)
