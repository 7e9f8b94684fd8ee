"""Comparison of two evaluations of the same expressions, with confidence intervals of the differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .conventions import CONVENTIONS
from .metrics import GeneralizedMetrics
from .results import ExpressionResult
from .score import metrics

_CHUNK = 2_000_000  # random numbers drawn at a time
_TENTHS = (5, 6, 7, 8, 9)

_Pair = tuple[ExpressionResult, ExpressionResult]
_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """One metric in two evaluations."""

    first: float  # its value in the first evaluation
    second: float  # its value in the second evaluation
    low: float  # lower end of the confidence interval of `second - first`
    high: float  # upper end of the interval
    difference: float  # `second - first`


@dataclass(frozen=True)
class Comparison:
    """Two evaluations of the same expressions."""

    expressions: int  # number of expressions
    images: int  # number of distinct images
    # `overall_iou`, `mean_iou` and `precision@0.5` to `precision@0.9`; where expressions name nothing also `gIoU`,
    # `cIoU`, `N_acc` and `T_acc`.
    measures: dict[str, Difference]
    better: int  # expressions whose IoU is higher in the second evaluation
    worse: int  # expressions whose IoU is lower in the second evaluation
    pairs: list[_Pair]  # both results of every expression, in the order of the first evaluation

    def changed(self, most: int) -> list[_Pair]:
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

    Expressions of one image are not independent, so whole images are drawn with replacement, the same ones for
    both evaluations, and the difference of each metric is computed for each sample; the interval is between the
    percentiles of these differences (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).

    Args:
        first: An evaluation.
        second: Another evaluation of the same expressions, in any order.
        resamples: Number of bootstrap samples.
        confidence: Of the intervals, above 0 and below 1.
        seed: Of the bootstrap.

    Raises:
        ValueError: An argument is out of range, the expressions are not the same, an expression occurs twice, or
            the true masks differ in size, as they do between conventions that compare at different sizes.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1; got {resamples}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be above 0 and below 1; got {confidence}.")
    if seed < 0:
        raise ValueError(f"seed must be at least 0; got {seed}.")
    pairs = _paired(first, second)
    sums = _sums_by_image(pairs)
    empty = [float(CONVENTIONS[one.convention].empty_union_iou) for one in pairs[0]]
    generalized = any(one.names_nothing for one, _ in pairs)
    whole = _measures(sums.sum(0, keepdims=True), empty, generalized)
    drawn = _measures(_resampled(sums, resamples, seed), empty, generalized)
    measures = {}
    for name, (values,) in whole.items():
        differences = drawn[name][:, 1] - drawn[name][:, 0]
        if np.isnan(values).any() or np.isnan(differences).all():
            continue  # no expression of the kind that the metric is about
        low, high = np.nanquantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
        change = values[1] - values[0]
        measures[name] = Difference(*map(float, (*values, low, high, change)))
    changes = np.array([two.iou - one.iou for one, two in pairs])
    return Comparison(
        expressions=len(pairs),
        images=len(sums),
        measures=measures,
        better=int((changes > 0).sum()),
        worse=int((changes < 0).sum()),
        pairs=pairs,
    )


def _paired(first: Sequence[ExpressionResult], second: Sequence[ExpressionResult]) -> list[_Pair]:
    firsts, seconds = _by_key(first, "first"), _by_key(second, "second")
    lacking = [("second", key) for key in firsts if key not in seconds]
    lacking += [("first", key) for key in seconds if key not in firsts]
    if lacking:
        where, (image_id, ref_id, sent_id, expression) = lacking[0]
        raise ValueError(
            f"Both evaluations must have the same expressions, but {len(lacking)} are only in one; the {where} "
            f"lacks sent_id {sent_id} ({expression!r}, ref_id {ref_id}, image_id {image_id})."
        )
    pairs = [(result, seconds[key]) for key, result in firsts.items()]
    for one, two in pairs:
        if one.true != two.true:
            raise ValueError(
                f"The true mask of sent_id {one.sent_id} has {one.true} pixels in the first evaluation and "
                f"{two.true} in the second: they were made from different masks, or by conventions that "
                "compare at different sizes."
            )
    return pairs


def _by_key(results: Sequence[ExpressionResult], which: str) -> dict[tuple[int, int, int, str], ExpressionResult]:
    keyed = {}
    for result in results:
        key = (result.image_id, result.ref_id, result.sent_id, result.expression)
        if key in keyed:
            raise ValueError(f"The {which} evaluation has sent_id {result.sent_id} ({result.expression!r}) twice.")
        keyed[key] = result
    return keyed


def _sums_by_image(pairs: Sequence[_Pair]) -> _Array:
    """The summands of each metric, see `_summands`: [images, 2, summands]."""
    _, images = np.unique([one.image_id for one, _ in pairs], return_inverse=True)
    values = np.array([[_summands(one), _summands(two)] for one, two in pairs], dtype=np.float64)
    sums = np.zeros((images.max() + 1, *values.shape[1:]))
    np.add.at(sums, images, values)
    return sums


def _summands(result: ExpressionResult) -> list[float]:
    """What is summed over expressions; `_measures` reads it."""
    hits = metrics([result], CONVENTIONS[result.convention])
    generalized = GeneralizedMetrics()
    generalized.add(result.intersection, result.predicted, result.true)
    shares = generalized.compute()
    return [
        *(1, result.intersection, result.union, result.iou),
        *(hits[f"precision@0.{tenths}"] for tenths in _TENTHS),
        *(shares[name] or 0 for name in ("gIoU", "N_acc", "T_acc")),
        result.true == 0,
    ]


def _measures(sums: _Array, empty: Sequence[float], generalized: bool) -> dict[str, _Array]:
    """Metrics [samples, 2] from sums [samples, 2, summands]; `empty` is the overall IoU of empty masks.

    NaN where a sample has no expression of the kind that a metric is about.
    """
    count, intersection, union, iou, *passed = np.moveaxis(sums[..., :-4], -1, 0)
    measures = {"overall_iou": _ratio(intersection, union, empty), "mean_iou": iou / count}
    measures |= {f"precision@0.{tenths}": hits / count for tenths, hits in zip(_TENTHS, passed, strict=True)}
    if generalized:
        generalized_iou, denied, localized, no_target = np.moveaxis(sums[..., -4:], -1, 0)
        measures |= {
            "gIoU": generalized_iou / count,
            "cIoU": _ratio(intersection, union, 1.0),
            "N_acc": _ratio(denied, no_target, np.nan),
            "T_acc": _ratio(localized, count - no_target, np.nan),
        }
    return measures


def _ratio(numerator: _Array, denominator: _Array, otherwise: float | Sequence[float]) -> _Array:
    """The quotient; `otherwise` where the denominator is 0."""
    values = np.broadcast_to(np.asarray(otherwise, dtype=np.float64), denominator.shape).copy()
    return np.divide(numerator, denominator, out=values, where=denominator > 0)


def _resampled(sums: _Array, resamples: int, seed: int) -> _Array:
    """Sums over the images of each bootstrap sample: [resamples, 2, summands]."""
    images = len(sums)
    random = np.random.default_rng(seed)
    even = np.full(images, 1 / images)
    flat = sums.reshape(images, -1)
    step = max(1, _CHUNK // images)
    totals = [
        random.multinomial(images, even, size=min(step, resamples - start)) @ flat
        for start in range(0, resamples, step)
    ]
    return np.concatenate(totals).reshape(resamples, *sums.shape[1:])
