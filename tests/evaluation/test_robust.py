"""mRR and rIoU against a literal computation from masks, in the order of the authors' evaluator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.small_evaluation import random_results

from cmsa_fast.evaluation.results import ExpressionResult
from cmsa_fast.evaluation.robust import robust_metrics


def result(ref_id: int, intersection: int, predicted: int, true: int) -> ExpressionResult:
    """A result with these counts; without a true pixel it is of a negative expression."""
    counts = {"intersection": intersection, "predicted": predicted, "true": true, "names_nothing": true == 0}
    return replace(random_results(0, images=1)[0], ref_id=ref_id, **counts)


def test_counts_by_hand() -> None:
    results = [
        result(1, 30, 40, 50),  # union 60
        result(1, 10, 10, 20),  # union 20
        result(1, 0, 20, 0),  # wrong: 20 pixels
        result(1, 0, 0, 0),  # right
        result(2, 10, 10, 10),
        result(2, 0, 0, 0),
        result(3, 5, 10, 10),  # no negative expression: takes no part
        result(4, 0, 7, 0),  # no positive one
    ]
    for order in (results, results[::-1]):
        assert robust_metrics(order) == {
            "references": 2,
            "mRR": (1 / 2 + 1) / 2,
            "rIoU": (40 / (80 + 20) + 1) / 2,
            "mIoU": ((30 / 60 + 10 / 20) / 2 + 1) / 2,
            "oIoU": 50 / 90,
        }


def test_literal_computation_from_masks() -> None:
    generator = np.random.default_rng(0)
    results: list[ExpressionResult] = []
    r: list[float] = []
    riou: list[float] = []
    for ref_id in range(9):
        true = generator.random((20, 30)) < 0.3
        in_union = in_both = accepted = rejected = 0
        for _ in range(int(generator.integers(1, 4))):
            predicted = generator.random((20, 30)) < 0.5
            in_both += int((predicted & true).sum())
            in_union += int((predicted | true).sum())
            results.append(result(ref_id, int((predicted & true).sum()), int(predicted.sum()), int(true.sum())))
        for _ in range(int(generator.integers(1, 6))):
            predicted = (generator.random((20, 30)) < 0.1) & (generator.random() < 0.5)
            results.append(result(ref_id, 0, int(predicted.sum()), 0))
            if predicted.any():
                accepted += 1
                in_union += int(predicted.sum())
            else:
                rejected += 1
        r.append(rejected / (rejected + accepted))
        riou.append(in_both / in_union)
    metrics: Any = robust_metrics(results)
    assert metrics["mRR"] == pytest.approx(np.mean(r), abs=1e-15)
    assert metrics["rIoU"] == pytest.approx(np.mean(riou), abs=1e-15)


def test_nothing_without_negative_expressions() -> None:
    assert robust_metrics([result(1, 3, 4, 5)]) is None
    assert robust_metrics([]) is None


def test_no_pixel_at_all_is_right() -> None:
    """An object that lost its mask, for which nothing is predicted."""
    lost = replace(result(1, 0, 0, 0), names_nothing=False)
    metrics: Any = robust_metrics([lost, result(1, 0, 0, 0)])
    assert (metrics["rIoU"], metrics["mIoU"], metrics["oIoU"]) == (1, 1, 1)
