"""One real training step of the full-size model, and where its time goes."""

import pytest

from . import paper_step


def test_paper_step(capsys: pytest.CaptureFixture[str]) -> None:
    figures = paper_step.collect()
    with capsys.disabled():
        print("\n" + paper_step.format_table(figures))
    assert set(figures["stages"]) == {"backbone", "CMSA", "fusion"}
    assert figures["peak_gib"] < 24
