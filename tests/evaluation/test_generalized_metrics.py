"""gIoU, cIoU, N-acc and T-acc, against the published evaluator's rules and numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from cmsa_fast.evaluation.metrics import GeneralizedMetrics


def row(pattern: str) -> np.ndarray:
    """One row of pixels, True at each "#"."""
    return np.array([[mark == "#" for mark in pattern]])


def measured(*pairs: tuple[str, str]) -> GeneralizedMetrics:
    metrics = GeneralizedMetrics()
    for prediction, truth in pairs:
        metrics.update(row(prediction), row(truth))
    return metrics


def published(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """ReLA's rules in floating point, with "no target" decided by the masks."""
    ious: list[float] = []
    inside = outside = 0
    right = {True: 0, False: 0}
    seen = {True: 0, False: 0}
    passed = dict.fromkeys((0.7, 0.8, 0.9), 0)
    for prediction, truth in pairs:
        no_target, says_nothing = not truth.any(), not prediction.any()
        intersection = np.logical_and(prediction, truth).sum()
        union = np.logical_or(prediction, truth).sum()
        seen[no_target] += 1
        right[no_target] += no_target == says_nothing
        if no_target:
            ious.append(1.0 if says_nothing else 0.0)
            outside += 0 if says_nothing else int(union)
            continue
        iou = float(intersection) / float(union)
        ious.append(iou)
        inside += int(intersection)
        outside += int(union)
        for threshold in passed:
            passed[threshold] += iou >= threshold
    return {
        "gIoU": sum(ious) / len(ious),
        "cIoU": inside / outside,
        "N_acc": right[True] / seen[True],
        "T_acc": right[False] / seen[False],
        **{f"precision@{threshold}": count / seen[False] for threshold, count in passed.items()},
    }


def test_by_hand() -> None:
    metrics = measured(
        ("########..", "##########"),  # 8 of 10
        ("....", "##.."),  # nothing, wrongly: 0 of 2
        ("....", "...."),  # nothing, rightly
        ("###.", "...."),  # a mask without a target: 0 of 3
        ("###", "###"),  # 3 of 3
    )
    assert metrics.count == 5
    assert metrics.ious == [0.8, 0, 1, 0, 1]
    assert metrics.compute() == {
        "gIoU": pytest.approx(2.8 / 5),
        "cIoU": 11 / (10 + 2 + 0 + 3 + 3),
        "N_acc": 1 / 2,
        "T_acc": 2 / 3,
        "precision@0.7": 2 / 3,
        "precision@0.8": 2 / 3,
        "precision@0.9": 1 / 3,
    }


@pytest.mark.parametrize("seed", range(5))
def test_against_the_published_rules(seed: int) -> None:
    random = np.random.default_rng(seed)
    pairs = []
    for number in range(80):
        shape = (int(random.integers(1, 12)), int(random.integers(1, 12)))
        truth = random.random(shape) < random.choice([0.0, 0.3, 0.9])
        flipped = random.random(shape) < random.choice([0.0, 0.1, 0.5])
        prediction = np.zeros(shape, bool) if number % 7 == 0 else truth ^ flipped
        pairs.append((prediction, truth))
    metrics = GeneralizedMetrics()
    for pair in pairs:
        metrics.update(*pair)
    assert metrics.compute() == pytest.approx(published(pairs), rel=1e-12)


@pytest.mark.parametrize("tenths", [7, 8, 9])
def test_iou_at_the_threshold_passes(tenths: int) -> None:
    at, below = GeneralizedMetrics(), GeneralizedMetrics()
    at.add(3 * tenths, 3 * tenths, 30)
    below.add(3 * tenths - 1, 3 * tenths - 1, 30)
    assert at.compute()[f"precision@0.{tenths}"] == 1
    assert below.compute()[f"precision@0.{tenths}"] == 0


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        # Precision ignores expressions without target.
        ([("..", ".."), ("#.", ".."), ("##", "##")], {"precision@0.9": 1, "T_acc": 1}),
        # Every expression is targeted.
        ([("##.", "###"), ("...", ".#.")], {"N_acc": None, "T_acc": 0.5, "gIoU": 1 / 3}),
        # No expression is targeted.
        (
            [("...", "..."), ("#..", "...")],
            {"N_acc": 0.5, "gIoU": 0.5, "cIoU": 0, "T_acc": None, "precision@0.7": None},
        ),
        ([("...", "...")], {"gIoU": 1, "cIoU": 1, "N_acc": 1}),
    ],
)
def test_with_and_without_targets(pairs: list[tuple[str, str]], expected: dict[str, float | None]) -> None:
    values = measured(*pairs).compute()
    assert {name: values[name] for name in expected} == pytest.approx(expected)
