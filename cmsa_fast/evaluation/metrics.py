"""How good predicted masks are: overall IoU, mean IoU and precision at thresholds."""

from __future__ import annotations

import math
import operator
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor

_TENTHS = (5, 6, 7, 8, 9)

Mask: TypeAlias = Tensor | np.ndarray


class ExpressionCounts:
    """The pixels of every expression, from which measures are computed.

    Counts are whole numbers, so that neither the order nor the grouping of updates and merges has an
    influence on what is computed from them.

    Attributes:
        intersections: Pixels in both masks of an expression, in the order of the updates.
        predicted: Pixels of its predicted mask, likewise.
        true: Pixels of its true mask, likewise.
    """

    def __init__(self) -> None:
        """Start with no expression."""
        self.intersections: list[int] = []
        self.predicted: list[int] = []
        self.true: list[int] = []

    @property
    def count(self) -> int:
        """Number of expressions seen."""
        return len(self.intersections)

    @property
    def unions(self) -> list[int]:
        """Pixels in at least one mask of an expression, in the order of the updates."""
        counts = zip(self.intersections, self.predicted, self.true, strict=True)
        return [predicted + true - intersection for intersection, predicted, true in counts]

    def update(self, prediction: Mask, truth: Mask) -> None:
        """Add one expression.

        Args:
            prediction: bool `[H, W]`, tensor or array, True where the object is predicted.
            truth: bool `[H, W]`, tensor or array, True where it is.

        Raises:
            TypeError: An argument is neither tensor nor array, or not bool.
            ValueError: An argument is not two-dimensional, or the shapes differ.
        """
        _check_mask("prediction", prediction)
        _check_mask("truth", truth)
        if prediction.shape != truth.shape:
            raise ValueError(
                f"prediction and truth must have one shape, but they have {list(prediction.shape)} "
                f"and {list(truth.shape)}."
            )
        for count, of in zip(
            _count(prediction, truth), (self.intersections, self.predicted, self.true), strict=True
        ):
            of.append(count)

    def add(self, intersection: int, predicted: int, true: int) -> None:
        """Add one expression whose pixels are already counted.

        Args:
            intersection: Pixels in both masks.
            predicted: Pixels of the predicted mask.
            true: Pixels of the true mask.

        Raises:
            TypeError: An argument is no whole number.
            ValueError: An argument is negative, or the intersection is larger than a mask.
        """
        counts = [
            _as_count(name, value)
            for name, value in (
                ("intersection", intersection),
                ("predicted", predicted),
                ("true", true),
            )
        ]
        if counts[0] > min(counts[1:]):
            raise ValueError(
                f"intersection must be at most predicted and true, but it is {counts[0]} with "
                f"{counts[1]} and {counts[2]}."
            )
        for count, of in zip(counts, (self.intersections, self.predicted, self.true), strict=True):
            of.append(count)

    def merge(self, other: Self) -> None:
        """Add the expressions another object has seen, for instance in another process.

        Args:
            other: Left as it is.

        Raises:
            TypeError: `other` is of another class.
            ValueError: `other` follows other rules.
        """
        if type(other) is not type(self):
            raise TypeError(
                f"other must be a {type(self).__name__}, but it is a {type(other).__name__}."
            )
        if other._rules() != self._rules():
            raise ValueError(
                f"other must follow the same rules, {self._rules()}, but it follows {other._rules()}."
            )
        self.intersections += other.intersections
        self.predicted += other.predicted
        self.true += other.true

    def _rules(self) -> dict[str, Any]:
        return {}

    def _need_a_expression(self) -> None:
        if self.count == 0:
            raise ValueError("compute needs at least one expression, but none was ever added.")


class SegmentationMetrics(ExpressionCounts):
    """The measures of the referring segmentation papers, over expressions.

    With I and U the pixels in the intersection and the union of an expression's predicted and true mask:

    - `overall_iou`: sum of I over sum of U, all expressions together. The headline number of CMSA and most
      papers up to 2021 ("oIoU", "cumulative IoU"); large objects weigh more.
    - `mean_iou`: mean over expressions of I / U ("mIoU"; "gIoU" in some later papers).
    - `precision@0.5` ... `precision@0.9`: share of expressions with I / U at or above the threshold.

    All are fractions in [0, 1]. Where both masks are empty (U = 0) the prediction is right: the IoU counts as
    1, and nothing is added to the sums of the overall IoU. If there were only such pairs, the overall IoU
    is 1. Published evaluations decide these cases otherwise; the arguments follow them, and
    `cmsa_fast.evaluation.conventions` knows which belong together.

    Give masks at the image's own size to compare with papers that do; sizes may differ from expression to
    expression. Sums are whole numbers and thresholds are compared in whole numbers, so that the order of
    updates and merges has no influence on any result.

    Args:
        empty_union_iou: 1 or 0, the IoU of two empty masks, and the overall IoU of nothing else.
        strict: Precision counts expressions above the threshold alone, not those at it.
        union_offset: What is added to U in an expression's IoU, in pixels, at least 0 and below 0.1: CRIS divides
            by U + 1e-6. The overall IoU goes without it. An IoU that would be at a threshold falls below it.

    Attributes:
        intersections: I of every expression, in pixels, in the order of the updates.
        predicted: Pixels of the predicted mask, likewise.
        true: Pixels of the true mask, likewise.

    Raises:
        ValueError: An argument has another value.
    """

    def __init__(
        self, *, empty_union_iou: int = 1, strict: bool = False, union_offset: float = 0.0
    ) -> None:
        """Start with no expression."""
        super().__init__()
        if empty_union_iou not in (0, 1):
            raise ValueError(f"empty_union_iou must be 0 or 1, but it is {empty_union_iou!r}.")
        # Below 0.1 the offset decides only which side a tie falls on; see _precision.
        if not 0 <= union_offset < 0.1:
            raise ValueError(
                f"union_offset must be at least 0 and below 0.1, but it is {union_offset!r}."
            )
        self._empty_union_iou = int(empty_union_iou)
        self._strict = bool(strict)
        self._union_offset = float(union_offset)

    @property
    def ious(self) -> list[float]:
        """IoU of every expression, in the order of the updates."""
        offset, empty = self._union_offset, float(self._empty_union_iou)
        pairs = zip(self.intersections, self.unions, strict=True)
        if not offset:
            # A sum with 0.0 would round counts beyond 2 ** 53.
            return [intersection / union if union else empty for intersection, union in pairs]
        return [
            intersection / (union + offset) if union else empty for intersection, union in pairs
        ]

    def compute(self) -> dict[str, float]:
        """All measures of the expressions seen so far.

        Returns:
            `overall_iou`, `mean_iou`, and `precision@0.5` to `precision@0.9` in steps of 0.1; fractions.

        Raises:
            ValueError: No expression has been seen.
        """
        self._need_a_expression()
        union = sum(self.unions)
        empty = float(self._empty_union_iou)
        return {
            "overall_iou": sum(self.intersections) / union if union else empty,
            # Rounded once, after the exact sum: a running sum would depend on the order.
            "mean_iou": math.fsum(self.ious) / self.count,
            **{f"precision@0.{tenths}": self._precision(tenths) for tenths in _TENTHS},
        }

    def _precision(self, tenths: int) -> float:
        # I / (U + offset) > t / 10 without a division: 10 I - t U is whole and t * offset below 1.
        margin = 1 if self._strict or self._union_offset else 0
        passed = sum(
            10 * intersection >= tenths * union + margin if union else self._empty_union_iou
            for intersection, union in zip(self.intersections, self.unions, strict=True)
        )
        return passed / self.count

    def _rules(self) -> dict[str, Any]:
        return {
            "empty_union_iou": self._empty_union_iou,
            "strict": self._strict,
            "union_offset": self._union_offset,
        }


def _check_mask(name: str, value: Mask) -> None:
    if not isinstance(value, Tensor | np.ndarray):
        raise TypeError(
            f"{name} must be a bool tensor or array, but it is a {type(value).__name__}."
        )
    if value.dtype not in (torch.bool, np.bool_):
        raise TypeError(f"{name} must have dtype bool, but it has {value.dtype}.")
    if value.ndim != 2:
        raise ValueError(f"{name} must be [H, W], but its shape is {list(value.shape)}.")


def _count(prediction: Mask, truth: Mask) -> list[int]:
    """Pixels in both masks, in the first and in the second."""
    devices = [mask.device for mask in (prediction, truth) if isinstance(mask, Tensor)]
    elsewhere = [device for device in devices if device.type != "cpu"]
    if not elsewhere:
        # NumPy counts several times faster than PyTorch on a CPU.
        predicted, true = (
            mask.numpy() if isinstance(mask, Tensor) else mask for mask in (prediction, truth)
        )
        return [int(np.count_nonzero(mask)) for mask in (predicted & true, predicted, true)]
    first, second = (
        # A copy, because PyTorch takes neither mirrored nor (without a warning) read-only arrays.
        torch.as_tensor(
            np.array(mask, order="C") if isinstance(mask, np.ndarray) else mask, device=elsewhere[0]
        )
        for mask in (prediction, truth)
    )
    # One transfer, because each waits for the device.
    return torch.stack([mask.count_nonzero() for mask in (first & second, first, second)]).tolist()


def _as_count(name: str, value: int) -> int:
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        count = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name} must be a whole number, but it is a {type(value).__name__}."
        ) from None
    if count < 0:
        raise ValueError(f"{name} must be at least 0 pixels, but it is {count}.")
    return count
