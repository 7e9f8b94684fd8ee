"""Parity, then speed, of a level whose convolution is folded into it. No speed fails a test."""

import copy

import pytest
import torch

from . import level


@pytest.mark.parametrize("name", level.LEVELS)
def test_parity(name: str) -> None:
    """Within twice the float32 error of the level with its convolution behind it, against that in float64."""
    attention, convolution, visual, words = level.draw(name)
    exact_modules = copy.deepcopy(attention).double(), copy.deepcopy(convolution).double()
    with torch.no_grad():
        before, *others = (
            level.prepare_level(form, attention, convolution)(visual, words) for form in level.FORMS
        )
        exact = level.prepare_level("before", *exact_modules)(visual.double(), words.double())
    floor = torch.finfo(torch.float32).eps * exact.norm()
    for other in others:
        assert (other - exact).norm() <= 2 * max((before - exact).norm(), floor)


def test_interleaved_summary(capsys: pytest.CaptureFixture[str]) -> None:
    figures = level.collect(rounds=2)
    with capsys.disabled():
        print("\n" + level.format_table(figures))
    assert set(figures["cases"]) == set(level.NAMES)
    assert all(row["median_s"] > 0 for row in figures["cases"].values())
