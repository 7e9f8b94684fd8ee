"""Parity, then speed, on the CPU: `pytest benchmarks/`. No speed fails a test."""

import copy
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from . import attention, evaluation, level, metrics, paper_step

EPS = torch.finfo(torch.float32).eps


@pytest.mark.parametrize("peer", ["literal", "sdpa"])
def test_attention_is_as_exact_as(peer: str) -> None:
    """The error is at most twice the peer's float32 error, against the literal form in float64."""
    parts = attention.features(130, 7)
    exact = attention.attend([part.double() for part in parts], "reference")
    other = attention.sdpa(parts) if peer == "sdpa" else attention.attend(parts, "reference")
    error = (attention.attend(parts, "torch") - exact).norm()
    assert error <= 2 * max((other - exact).norm(), EPS * exact.norm())


@pytest.mark.parametrize("name", level.LEVELS)
def test_folded_level_is_as_exact_as_the_level_before(name: str) -> None:
    """The error is at most twice that of the level followed by its convolution, against float64."""
    attention_, convolution, visual, words = level.draw(name)
    double = copy.deepcopy(attention_).double(), copy.deepcopy(convolution).double()
    with torch.no_grad():
        before, *others = (
            level.prepare_level(form, attention_, convolution)(visual, words) for form in level.FORMS
        )
        exact = level.prepare_level("before", *double)(visual.double(), words.double())
    for other in others:
        error = (other - exact).norm()
        assert error <= 2 * max((before - exact).norm(), EPS * exact.norm())


def test_metrics_equal_those_of_pixels_counted_pair_by_pair() -> None:
    pairs = [(a.numpy(), b.numpy()) for a, b in metrics.draw()]
    counts = [(np.logical_and(*pair).sum(), np.logical_or(*pair).sum()) for pair in pairs]
    counts = [counts[index % metrics.PAIRS] for index in range(metrics.EXPRESSIONS)]
    values = metrics.aggregate(arrays=False).compute()
    assert values == metrics.aggregate(arrays=True).compute()
    assert values["overall_iou"] == sum(i for i, _ in counts) / sum(u for _, u in counts)
    assert values["mean_iou"] == pytest.approx(np.mean([i / u for i, u in counts]), rel=1e-12)


@pytest.mark.parametrize("name", attention.NAMES)
def test_attention_speed(name: str, benchmark: Any) -> None:
    case = attention.build(name)
    benchmark.extra_info["flops"] = case.flops
    benchmark.pedantic(case.run, rounds=min(case.rounds, 5), warmup_rounds=int(case.flops is not None))


@pytest.mark.parametrize("name", metrics.NAMES)
def test_metrics_speed(name: str, benchmark: Any) -> None:
    benchmark.pedantic(metrics.build(name), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize(
    ("module", "rounds", "names"),
    [
        (attention, 2, attention.NAMES),
        (level, 2, level.NAMES),
        (metrics, 2, metrics.NAMES),
        (evaluation, 1, evaluation.FORMS),
    ],
    ids=["attention", "level", "metrics", "evaluation"],
)
def test_interleaved_summary(module: ModuleType, rounds: int, names: tuple[str, ...], capsys: Any) -> None:
    figures = module.collect(rounds)
    with capsys.disabled():
        print("\n" + module.format_table(figures))
    assert set(figures["cases"]) == set(names)
    assert all(row["median_s"] > 0 for row in figures["cases"].values())


def test_training_step_of_the_full_size_model(capsys: Any) -> None:
    figures = paper_step.collect()
    with capsys.disabled():
        print("\n" + paper_step.format_table(figures))
    assert set(figures["stages"]) == {"backbone", "CMSA", "fusion"}
    assert figures["peak_gib"] < 24
