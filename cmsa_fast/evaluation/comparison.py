"""Two evaluations of the same expressions: which expressions differ, and how sure the difference is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .conventions import CONVENTIONS
from .results import ExpressionResult

_CHUNK = 2_000_000  # numbers drawn at a time

_Key = tuple[int, int, int, str]


@dataclass(frozen=True)
class Difference:
    """One measure in two evaluations.

    Attributes:
        first: in the first.
        second: in the second.
        low: lower end of the interval of `second - first`.
        high: its upper end.
    """

    first: float
    second: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """`second - first`."""
        return self.second - self.first


@dataclass(frozen=True)
class Comparison:
    """Two evaluations of the same expressions.

    Attributes:
        expressions: how many.
        images: distinct images they are about.
        measures: overall_iou, mean_iou and precision@0.5 to precision@0.9.
        better: expressions whose IoU is higher in the second.
        worse: expressions whose IoU is lower in the second.
        pairs: the results of every expression in both, in the order of the first.
        confidence: of the intervals.
        resamples: drawn for them.
        seed: of the draws.
    """

    expressions: int
    images: int
    measures: dict[str, Difference]
    better: int
    worse: int
    pairs: list[tuple[ExpressionResult, ExpressionResult]]
    confidence: float
    resamples: int
    seed: int

    def changed(self, most: int) -> list[tuple[ExpressionResult, ExpressionResult]]:
        """Up to `most` expressions whose IoU differs, the largest change first."""
        differing = [pair for pair in self.pairs if pair[0].iou != pair[1].iou]
        differing.sort(key=lambda pair: (-abs(pair[1].iou - pair[0].iou), pair[0].index))
        return differing[:most]


def compare(
    first: Sequence[ExpressionResult],
    second: Sequence[ExpressionResult],
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare two evaluations expression by expression, with a paired bootstrap over images.

    The expressions of one image are not independent of one another, so whole images are drawn with
    replacement, the same ones for both evaluations, and each measure's difference is computed anew; the
    interval is between the percentiles of these differences (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, chapter 13).

    Args:
        first: an evaluation.
        second: another one of the same expressions, in any order.
        resamples: how often to draw.
        confidence: of the intervals, above 0 and below 1.
        seed: of the draws.

    Raises:
        ValueError: an argument is out of range, the expressions differ, an expression comes twice, or the
            true masks differ in size, as they do between conventions that compare at different sizes.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1; got {resamples}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be above 0 and below 1; got {confidence}.")
    if seed < 0:
        raise ValueError(f"seed must be at least 0; got {seed}.")
    pairs = _paired(first, second)
    groups, images = _groups(pairs)
    counts = _sums(pairs, groups, images)
    empty = [float(CONVENTIONS[one.convention].empty_union_iou) for one in pairs[0]]
    whole = _measures(counts.sum(0, keepdims=True), empty)
    drawn = _measures(_resampled(counts, resamples, seed), empty)
    measures = {}
    for name, (one, two) in whole.items():
        differences = drawn[name][1] - drawn[name][0]
        low, high = np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
        measures[name] = Difference(float(one[0]), float(two[0]), float(low), float(high))
    changes = np.array([two.iou - one.iou for one, two in pairs])
    return Comparison(
        expressions=len(pairs),
        images=images,
        measures=measures,
        better=int((changes > 0).sum()),
        worse=int((changes < 0).sum()),
        pairs=pairs,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )


def _paired(
    first: Sequence[ExpressionResult], second: Sequence[ExpressionResult]
) -> list[tuple[ExpressionResult, ExpressionResult]]:
    of_first, of_second = _by_key(first, "first"), _by_key(second, "second")
    lacking = [("second", key) for key in of_first if key not in of_second]
    lacking += [("first", key) for key in of_second if key not in of_first]
    if lacking:
        where, (image_id, ref_id, sent_id, expression) = lacking[0]
        raise ValueError(
            f"Both evaluations must have the same expressions, but {len(lacking)} are in one alone; the {where} "
            f"lacks sent_id {sent_id} ({expression!r}, ref_id {ref_id}, image_id {image_id})."
        )
    pairs = [(result, of_second[key]) for key, result in of_first.items()]
    for one, two in pairs:
        if one.true != two.true:
            raise ValueError(
                f"The true mask of sent_id {one.sent_id} has {one.true} pixels in the first evaluation and "
                f"{two.true} in the second: they were made from different masks, or by conventions that "
                "compare at different sizes."
            )
    return pairs


def _by_key(results: Sequence[ExpressionResult], which: str) -> dict[_Key, ExpressionResult]:
    found: dict[_Key, ExpressionResult] = {}
    for result in results:
        key = (result.image_id, result.ref_id, result.sent_id, result.expression)
        if key in found:
            raise ValueError(
                f"The {which} evaluation has sent_id {result.sent_id} ({result.expression!r}) twice."
            )
        found[key] = result
    return found


def _groups(
    pairs: Sequence[tuple[ExpressionResult, ExpressionResult]],
) -> tuple[NDArray[np.int64], int]:
    """The image of each expression, counted from 0, and their number."""
    _, groups = np.unique([one.image_id for one, _ in pairs], return_inverse=True)
    return groups, int(groups.max()) + 1


# What is added up for each evaluation: expressions, I, U, IoU, and whether the IoU reaches 0.5 ... 0.9.
_TENTHS = (5, 6, 7, 8, 9)
_COLUMNS = 4 + len(_TENTHS)


def _sums(
    pairs: Sequence[tuple[ExpressionResult, ExpressionResult]],
    groups: NDArray[np.int64],
    images: int,
) -> NDArray[np.float64]:
    """[images, 2, columns]."""
    values = np.array([[_values(one), _values(two)] for one, two in pairs], dtype=np.float64)
    sums = np.zeros((images, 2, _COLUMNS))
    np.add.at(sums, groups, values)
    return sums


def _values(result: ExpressionResult) -> list[float]:
    strict = CONVENTIONS[result.convention].precision_strict
    if result.union:
        # I / U against t/10 in whole numbers.
        margins = (10 * result.intersection - tenths * result.union for tenths in _TENTHS)
        passed = [margin > 0 if strict else margin >= 0 for margin in margins]
    else:
        passed = [result.iou == 1] * len(_TENTHS)
    return [1, result.intersection, result.union, result.iou, *passed]


def _measures(
    sums: NDArray[np.float64], empty: Sequence[float]
) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Each measure of both evaluations, from [draws, 2, columns]; `empty` is what no pixel at all counts as."""
    count, intersection, union, iou = (sums[..., column] for column in range(4))
    nothing = np.broadcast_to(empty, union.shape).copy()
    overall = np.divide(intersection, union, out=nothing, where=union > 0)
    found = {"overall_iou": overall, "mean_iou": iou / count}
    for place, tenths in enumerate(_TENTHS):
        found[f"precision@0.{tenths}"] = sums[..., 4 + place] / count
    return {name: (values[:, 0], values[:, 1]) for name, values in found.items()}


def _resampled(sums: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """[resamples, 2, columns]."""
    images = len(sums)
    random = np.random.default_rng(seed)
    even = np.full(images, 1 / images)
    flat = sums.reshape(images, -1)
    step = max(1, _CHUNK // images)
    totals = [
        random.multinomial(images, even, size=min(step, resamples - start)) @ flat
        for start in range(0, resamples, step)
    ]
    return np.concatenate(totals).reshape(resamples, 2, _COLUMNS)
