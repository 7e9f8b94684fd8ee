"""Metrics of referring segmentation: overall IoU, mean IoU and precision, and those of gRefCOCO."""

from __future__ import annotations

import math
import operator
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from torch import Tensor

_TENTHS = (5, 6, 7, 8, 9)
_GENERALIZED_TENTHS = (7, 8, 9)

Mask: TypeAlias = Tensor | np.ndarray


class ExpressionCounts:
    """Pixel counts of every expression, the base class of the metrics.

    Counts are integers, so the metrics do not depend on the order or grouping of updates and merges.

    Attributes:
        intersections: Pixels in both masks, one entry per expression in the order of the updates.
        predicted: Pixels of the predicted masks, likewise.
        true: Pixels of the true masks, likewise.
    """

    def __init__(self) -> None:
        self.intersections: list[int] = []
        self.predicted: list[int] = []
        self.true: list[int] = []

    @property
    def count(self) -> int:
        """Number of expressions."""
        return len(self.intersections)

    @property
    def unions(self) -> list[int]:
        """Pixels in at least one of the two masks, one entry per expression."""
        counts = zip(self.intersections, self.predicted, self.true, strict=True)
        return [predicted + true - intersection for intersection, predicted, true in counts]

    def update(self, prediction: Mask, truth: Mask) -> None:
        """Add one expression.

        Args:
            prediction: Predicted mask, bool `[H, W]`, tensor or array.
            truth: True mask, bool `[H, W]`, tensor or array.

        Raises:
            TypeError: A mask is neither tensor nor array, or not bool.
            ValueError: A mask is not two-dimensional, or the shapes differ.
        """
        _check_mask("prediction", prediction)
        _check_mask("truth", truth)
        if prediction.shape != truth.shape:
            raise ValueError(
                f"prediction and truth must have one shape, but they have {list(prediction.shape)} "
                f"and {list(truth.shape)}."
            )
        self.add(*_count(prediction, truth))

    def add(self, intersection: int, predicted: int, true: int) -> None:
        """Add one expression whose pixels are already counted: those in both masks and in each of them.

        Raises:
            TypeError: An argument is not an integer.
            ValueError: An argument is negative, or the intersection is larger than a mask.
        """
        intersection = _as_count("intersection", intersection)
        predicted = _as_count("predicted", predicted)
        true = _as_count("true", true)
        if intersection > min(predicted, true):
            raise ValueError(
                f"intersection must be at most predicted and true, but it is {intersection} with "
                f"{predicted} and {true}."
            )
        self.intersections.append(intersection)
        self.predicted.append(predicted)
        self.true.append(true)

    def merge(self, other: Self) -> None:
        """Add the expressions of another object, which is not changed, for instance from another process.

        Raises:
            TypeError: `other` is of another class.
            ValueError: `other` has other rules.
        """
        if type(other) is not type(self):
            raise TypeError(f"other must be a {type(self).__name__}, but it is a {type(other).__name__}.")
        if other._rules() != self._rules():
            raise ValueError(f"other must have the same rules, {self._rules()}, but it has {other._rules()}.")
        self.intersections += other.intersections
        self.predicted += other.predicted
        self.true += other.true

    def _rules(self) -> dict[str, Any]:
        return {}

    def _require_an_expression(self) -> None:
        if self.count == 0:
            raise ValueError("compute needs at least one expression, but none was added.")


class SegmentationMetrics(ExpressionCounts):
    """Overall IoU, mean IoU and precision at IoU thresholds.

    With I and U the pixels in the intersection and the union of an expression's predicted and true mask:

    - `overall_iou`: sum of I / sum of U over all expressions ("oIoU", "cumulative IoU"; the headline
      number of CMSA and most papers up to 2021). Large objects weigh more.
    - `mean_iou`: mean over expressions of I / U ("mIoU"; "gIoU" in some later papers).
    - `precision@0.5` ... `precision@0.9`: share of expressions with I / U at or above the threshold.

    All are fractions in [0, 1]. If both masks are empty (U = 0), the prediction is correct: the IoU is 1
    and the sums of the overall IoU do not change. If all masks are empty, the overall IoU is 1. Published
    evaluations decide these cases differently; `cmsa_fast.evaluation.conventions` has their rules.

    Masks may differ in size between expressions. Thresholds are compared in integers.

    Args:
        empty_union_iou: IoU of two empty masks, 1 or 0; also the overall IoU if all masks are empty.
        strict: Precision counts only expressions above the threshold, not those at it.
        union_offset: Pixels added to U in an expression's IoU (CRIS: 1e-6), at least 0 and below 0.1. The
            overall IoU does not use it. An IoU that equals a threshold without it does not pass.

    Raises:
        ValueError: An argument has another value.
    """

    def __init__(self, *, empty_union_iou: int = 1, strict: bool = False, union_offset: float = 0.0) -> None:
        super().__init__()
        if empty_union_iou not in (0, 1):
            raise ValueError(f"empty_union_iou must be 0 or 1, but it is {empty_union_iou!r}.")
        # Below 0.1 the offset only decides ties; see _precision.
        if not 0 <= union_offset < 0.1:
            raise ValueError(f"union_offset must be at least 0 and below 0.1, but it is {union_offset!r}.")
        self._empty_union_iou = int(empty_union_iou)
        self._strict = bool(strict)
        self._union_offset = float(union_offset)

    @property
    def ious(self) -> list[float]:
        """IoU of every expression, in the order of the updates."""
        # Without an offset no addition, which would round counts above 2 ** 53.
        offset = self._union_offset or 0
        empty = float(self._empty_union_iou)
        return [
            intersection / (union + offset) if union else empty
            for intersection, union in zip(self.intersections, self.unions, strict=True)
        ]

    def compute(self) -> dict[str, float]:
        """Metrics of all expressions added so far.

        Returns:
            `overall_iou`, `mean_iou`, and `precision@0.5` to `precision@0.9` in steps of 0.1; fractions.

        Raises:
            ValueError: No expression was added.
        """
        self._require_an_expression()
        union = sum(self.unions)
        empty = float(self._empty_union_iou)
        return {
            "overall_iou": sum(self.intersections) / union if union else empty,
            # fsum rounds once: a running sum would depend on the order.
            "mean_iou": math.fsum(self.ious) / self.count,
            **{f"precision@0.{tenths}": self._precision(tenths) for tenths in _TENTHS},
        }

    def _precision(self, tenths: int) -> float:
        # I / (U + offset) > t / 10 without a division: 10 I - t U is an integer and t * offset is below 1.
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


class GeneralizedMetrics(ExpressionCounts):
    """gIoU, cIoU, N-acc and T-acc of generalized referring segmentation (Liu et al., GRES, CVPR 2023; gRefCOCO).

    An expression with an empty true mask has "no target"; the others are "targeted". An empty predicted mask
    means that the model predicts no target. With I and U as in `SegmentationMetrics`:

    - `gIoU`: mean over all expressions of the IoU. A targeted expression has I / U; one without target has
      1 if nothing is predicted, otherwise 0.
    - `cIoU`: sum of I / sum of U over all expressions. A mask predicted for an expression without target
      adds its pixels to the sum of U. If U is 0 everywhere, the cIoU is 1.
    - `N_acc`: share of the expressions without target for which nothing is predicted.
    - `T_acc`: share of the targeted expressions for which something is predicted.
    - `precision@0.7`, `precision@0.8`, `precision@0.9`: share of the targeted expressions with I / U at or
      above the threshold.

    All are fractions in [0, 1]. N_acc is None without an expression that has no target; T_acc and the
    precisions are None without a targeted one.

    The rules are those of the evaluator in henghuiding/ReLA, with three differences. ReLA writes 0 for both
    accuracies if every expression is targeted, and divides by zero if none is or if the cIoU has no pixel.
    ReLA's network predicts "no target" by a label in addition to the mask; here the mask alone decides, so a
    network with such a label must empty its mask before `update` (U is then the true mask alone, while ReLA keeps
    the pixels of the rejected mask). ReLA reads "no target" from a flag of the record; here the true mask decides,
    so an object without a pixel is no target.
    """

    @property
    def ious(self) -> list[float]:
        """IoU of every expression as gIoU uses it, in the order of the updates."""
        pairs = zip(self.intersections, self.unions, strict=True)
        return [intersection / union if union else 1.0 for intersection, union in pairs]

    def compute(self) -> dict[str, float | None]:
        """Metrics of all expressions added so far.

        Returns:
            `gIoU`, `cIoU`, `N_acc`, `T_acc`, `precision@0.7`, `precision@0.8` and `precision@0.9`: fractions,
            or None if there was no expression of that kind.

        Raises:
            ValueError: No expression was added.
        """
        self._require_an_expression()
        pairs = list(zip(self.predicted, self.true, strict=True))
        union = sum(self.unions)
        return {
            "gIoU": math.fsum(self.ious) / self.count,
            "cIoU": sum(self.intersections) / union if union else 1.0,
            "N_acc": _share([predicted == 0 for predicted, true in pairs if not true]),
            "T_acc": _share([predicted > 0 for predicted, true in pairs if true]),
            **{f"precision@0.{tenths}": self._precision(tenths) for tenths in _GENERALIZED_TENTHS},
        }

    def _precision(self, tenths: int) -> float | None:
        counts = zip(self.intersections, self.unions, self.true, strict=True)
        return _share([10 * intersection >= tenths * union for intersection, union, true in counts if true])


def _share(passed: list[bool]) -> float | None:
    return sum(passed) / len(passed) if passed else None


def _check_mask(name: str, value: Mask) -> None:
    if not isinstance(value, Tensor | np.ndarray):
        raise TypeError(f"{name} must be a bool tensor or array, but it is a {type(value).__name__}.")
    if value.dtype not in (torch.bool, np.bool_):
        raise TypeError(f"{name} must have dtype bool, but it has {value.dtype}.")
    if value.ndim != 2:
        raise ValueError(f"{name} must be [H, W], but its shape is {list(value.shape)}.")


def _count(prediction: Mask, truth: Mask) -> list[int]:
    """Pixels in both masks, in the first and in the second."""
    devices = [mask.device for mask in (prediction, truth) if isinstance(mask, Tensor)]
    accelerators = [device for device in devices if device.type != "cpu"]
    if not accelerators:
        # NumPy counts several times faster than PyTorch on a CPU.
        predicted, true = (mask.numpy() if isinstance(mask, Tensor) else mask for mask in (prediction, truth))
        return [int(np.count_nonzero(mask)) for mask in (predicted & true, predicted, true)]
    first, second = (
        # A copy: PyTorch accepts neither negative strides nor (without a warning) read-only arrays.
        torch.as_tensor(
            np.array(mask, order="C") if isinstance(mask, np.ndarray) else mask, device=accelerators[0]
        )
        for mask in (prediction, truth)
    )
    # Stacked into one transfer, because each one synchronizes.
    return torch.stack([mask.count_nonzero() for mask in (first & second, first, second)]).tolist()


def _as_count(name: str, value: int) -> int:
    if isinstance(value, bool | np.bool_) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, but it is a {type(value).__name__}.")
    count = operator.index(value)
    if count < 0:
        raise ValueError(f"{name} must be at least 0 pixels, but it is {count}.")
    return count
