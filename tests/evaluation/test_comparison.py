"""Comparison of two evaluations: metrics, intervals, and inputs that cannot be compared."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.small_evaluation import random_results

from cmsa_fast.evaluation.comparison import compare
from cmsa_fast.evaluation.conventions import CONVENTIONS
from cmsa_fast.evaluation.score import generalized_metrics, metrics


@pytest.mark.parametrize("no_target", [False, True])
def test_measures_are_those_of_the_evaluations(no_target: bool) -> None:
    first, second = (random_results(seed, no_target=no_target) for seed in (1, 2))
    measures = compare(first, second, resamples=10).measures
    for which, results in (("first", first), ("second", second)):
        expected: dict[str, float | None] = dict(metrics(results, CONVENTIONS["native"]))
        if no_target:
            values = generalized_metrics(results)
            assert values is not None
            expected |= {name: values[name] for name in ("gIoU", "cIoU", "N_acc", "T_acc")}
        assert {name: getattr(one, which) for name, one in measures.items()} == pytest.approx(expected, rel=1e-12)


def test_samples_without_target_do_not_spoil_the_interval() -> None:
    """With two images, some bootstrap samples have no expression without target."""
    first, second = (random_results(seed, images=2, no_target=True) for seed in (1, 2))
    first[0] = replace(first[0], predicted=0)
    second[0] = replace(second[0], predicted=9)
    second[3] = first[3] = replace(first[3], names_nothing=False)
    measure = compare(first, second, resamples=200).measures["N_acc"]
    assert (measure.first, measure.second, measure.low, measure.high) == (1, 0, -1, -1)
    targeted = [replace(one, names_nothing=True) for one in random_results(1, images=2)]
    assert "N_acc" not in compare(targeted, targeted, resamples=10).measures


def test_precision_at_a_threshold_follows_the_convention() -> None:
    tie = replace(random_results(1)[0], intersection=5, predicted=5, true=10, iou=0.5)
    for convention, expected in (("native", 1.0), ("cris", 0.0)):
        one = [replace(tie, convention=convention)]
        measure = compare(one, one, resamples=10).measures["precision@0.5"]
        assert (measure.first, measure.second) == (expected, expected)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_empty_masks_follow_the_convention(convention: str) -> None:
    value = CONVENTIONS[convention].empty_union_iou
    empty = {"intersection": 0, "predicted": 0, "true": 0, "iou": float(value)}
    one = [replace(result, **empty, convention=convention) for result in random_results(1, images=2)]
    expected = metrics(one, CONVENTIONS[convention])
    for name, measure in compare(one, one, resamples=10).measures.items():
        assert measure.first == measure.second == expected[name]


def test_equal_evaluations_do_not_differ() -> None:
    comparison = compare(random_results(1), random_results(1)[::-1], resamples=200)
    assert comparison.better == comparison.worse == 0
    assert not comparison.changed(5)
    for measure in comparison.measures.values():
        assert (measure.low, measure.difference, measure.high) == (0, 0, 0)


def test_interval_is_that_of_a_direct_bootstrap_over_images() -> None:
    first, second = random_results(1, images=9), random_results(2, images=9)
    measure = compare(first, second, resamples=20_000, seed=5).measures["mean_iou"]
    random = np.random.default_rng(77)
    changes = np.array([two.iou - one.iou for one, two in zip(first, second, strict=True)])
    changes = changes.reshape(9, 3)
    means = [changes[random.integers(0, 9, 9)].mean() for _ in range(20_000)]
    low, high = np.quantile(means, [0.025, 0.975])
    assert measure.low == pytest.approx(low, abs=0.05 * (high - low))
    assert measure.high == pytest.approx(high, abs=0.05 * (high - low))


def test_seed_determines_the_interval() -> None:
    first, second = random_results(1), random_results(2)
    assert compare(first, second, seed=3).measures == compare(first, second, seed=3).measures
    assert compare(first, second, seed=3).measures != compare(first, second, seed=4).measures


def test_coverage_of_the_interval_is_its_confidence() -> None:
    """Differences of random images around 0: about 90 % of the 90 % intervals contain 0."""
    covered = 0
    for case in range(200):
        first, second = random_results(2 * case), random_results(2 * case + 1)
        measure = compare(first, second, resamples=300, confidence=0.9).measures["mean_iou"]
        covered += measure.low <= 0 <= measure.high
    assert 0.83 < covered / 200 < 0.96


def test_different_expressions_are_refused() -> None:
    results = random_results(1, images=2)
    with pytest.raises(ValueError, match="2 are only in one; the second lacks sent_id 4"):
        compare(results, results[:4])
    with pytest.raises(ValueError, match="first lacks sent_id 0"):
        compare(results[1:], results)
    with pytest.raises(ValueError, match="has sent_id 5 .* twice"):
        compare([*results, results[5]], results)
    other = [replace(results[0], true=results[0].true + 1), *results[1:]]
    with pytest.raises(ValueError, match="true mask of sent_id 0 has"):
        compare(results, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resamples": 0}, "resamples must be at least 1"),
        ({"confidence": 1.0}, "confidence must be above 0 and below 1"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_options_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(random_results(1), random_results(1), **options)  # type: ignore[arg-type]
