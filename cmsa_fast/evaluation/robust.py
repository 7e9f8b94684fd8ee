"""Metrics of robust referring segmentation (R-RefCOCO), whose objects also have expressions that name nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from .results import ExpressionResult


@dataclass
class _Reference:
    positive: list[ExpressionResult] = field(default_factory=list)
    negative: list[ExpressionResult] = field(default_factory=list)


def robust_metrics(results: Iterable[ExpressionResult]) -> dict[str, float] | None:
    """mRR and rIoU of Wu et al., Towards Robust Referring Image Segmentation, IEEE TIP 2024 (R-RefCOCO).

    A reference (`ref_id`) takes part if it has positive expressions, which name something, and negative ones,
    which name nothing. With I and U the pixels in the intersection and the union of an expression's two masks:

    - `mRR`: mean over references of the share of their negative expressions for which nothing is predicted.
    - `rIoU`: mean over references of sum of I / (sum of U + pixels predicted for negative expressions), where the
      sums are over their positive expressions.
    - `mIoU`: mean over references of the mean of I / U over their positive expressions.
    - `oIoU`: sum of I / sum of U over the positive expressions of all references.

    All are fractions in [0, 1]; a quotient without a pixel is 1. The rules are those of `utils/validation.py` in
    jianzongwu/robust-ref-seg with one difference: it counts the pixels predicted for negative expressions at the
    size of its network instead of the image's.

    Returns:
        The metrics, and the number of references as `references`; None if no reference takes part.
    """
    everything: dict[int, _Reference] = {}
    for result in results:
        reference = everything.setdefault(result.ref_id, _Reference())
        (reference.negative if result.names_nothing else reference.positive).append(result)
    references = [one for one in everything.values() if one.positive and one.negative]
    if not references:
        return None
    intersections = [sum(one.intersection for one in reference.positive) for reference in references]
    unions = [sum(one.union for one in reference.positive) for reference in references]
    wrong = [sum(one.predicted for one in reference.negative) for reference in references]
    return {
        "references": len(references),
        "mRR": _mean(
            sum(one.predicted == 0 for one in reference.negative) / len(reference.negative)
            for reference in references
        ),
        "rIoU": _mean(
            _quotient(intersection, union + pixels)
            for intersection, union, pixels in zip(intersections, unions, wrong, strict=True)
        ),
        "mIoU": _mean(
            _mean(_quotient(one.intersection, one.union) for one in reference.positive) for reference in references
        ),
        "oIoU": _quotient(sum(intersections), sum(unions)),
    }


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed)


def _quotient(intersection: int, union: int) -> float:
    return intersection / union if union else 1.0
