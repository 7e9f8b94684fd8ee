"""How good predicted masks are: overall IoU, mean IoU and precision at thresholds."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_TENTHS = (5, 6, 7, 8, 9)

Mask = Tensor | np.ndarray


class SegmentationMetrics:
    """The measures of the referring segmentation papers, over sentences.

    With I and U the pixels in the intersection and the union of a sentence's predicted and true mask:

    - `overall_iou`: sum of I over sum of U, all sentences together. The headline number of CMSA and most
      papers up to 2021 ("oIoU", "cumulative IoU"); large objects weigh more.
    - `mean_iou`: mean over sentences of I / U ("mIoU"; "gIoU" in some later papers).
    - `precision@0.5` ... `precision@0.9`: share of sentences with I / U at or above the threshold.

    All are fractions in [0, 1]. Where both masks are empty (U = 0) the prediction is right: the IoU counts as
    1, and nothing is added to the sums of the overall IoU. If there were only such pairs, the overall IoU
    is 1.

    Give masks at the picture's own size to compare with papers that do; sizes may differ from sentence to
    sentence. Sums are whole numbers and thresholds are compared in whole numbers, so that the order of
    updates and merges has no influence on any result.

    Attributes:
        intersections: I of every sentence, in pixels, in the order of the updates.
        unions: U of every sentence, in pixels, likewise.
    """

    def __init__(self) -> None:
        """Start with no sentence."""
        self.intersections: list[int] = []
        self.unions: list[int] = []

    @property
    def count(self) -> int:
        """Number of sentences seen."""
        return len(self.unions)

    @property
    def ious(self) -> list[float]:
        """IoU of every sentence, in the order of the updates."""
        pairs = zip(self.intersections, self.unions, strict=True)
        return [intersection / union if union else 1.0 for intersection, union in pairs]

    def update(self, prediction: Mask, truth: Mask) -> None:
        """Add one sentence.

        Args:
            prediction: bool `[H, W]`, tensor or array, True where the object is predicted.
            truth: bool `[H, W]`, tensor or array, True where it is.

        Raises:
            TypeError: An argument is neither tensor nor array, or not bool.
            ValueError: An argument is not two-dimensional, or the shapes differ.
        """
        predicted = _as_mask("prediction", prediction)
        true = _as_mask("truth", truth).to(predicted.device)
        if predicted.shape != true.shape:
            raise ValueError(
                f"prediction and truth must have one shape, but they have {list(predicted.shape)} "
                f"and {list(true.shape)}."
            )
        self.intersections.append(int((predicted & true).count_nonzero()))
        self.unions.append(int((predicted | true).count_nonzero()))

    def merge(self, other: SegmentationMetrics) -> None:
        """Add the sentences another object has seen, for instance in another process.

        Args:
            other: Left as it is.

        Raises:
            TypeError: `other` is no SegmentationMetrics.
        """
        if not isinstance(other, SegmentationMetrics):
            raise TypeError(
                f"other must be a SegmentationMetrics, but it is a {type(other).__name__}."
            )
        self.intersections += other.intersections
        self.unions += other.unions

    def compute(self) -> dict[str, float]:
        """All measures of the sentences seen so far.

        Returns:
            `overall_iou`, `mean_iou`, and `precision@0.5` to `precision@0.9` in steps of 0.1; fractions.

        Raises:
            ValueError: No sentence has been seen.
        """
        if self.count == 0:
            raise ValueError("compute needs at least one sentence, but update was never called.")
        union = sum(self.unions)
        return {
            "overall_iou": sum(self.intersections) / union if union else 1.0,
            "mean_iou": math.fsum(self.ious) / self.count,
            **{f"precision@0.{tenths}": self._precision(tenths) for tenths in _TENTHS},
        }

    def _precision(self, tenths: int) -> float:
        # I / U >= t/10 without a division; two empty masks (0 >= 0) pass, as an IoU of 1 should.
        pairs = zip(self.intersections, self.unions, strict=True)
        passed = sum(10 * intersection >= tenths * union for intersection, union in pairs)
        return passed / self.count


def _as_mask(name: str, value: Mask) -> Tensor:
    if not isinstance(value, Tensor | np.ndarray):
        raise TypeError(
            f"{name} must be a bool tensor or array, but it is a {type(value).__name__}."
        )
    if value.dtype not in (torch.bool, np.bool_):
        raise TypeError(f"{name} must have dtype bool, but it has {value.dtype}.")
    if value.ndim != 2:
        raise ValueError(f"{name} must be [H, W], but its shape is {list(value.shape)}.")
    if isinstance(value, Tensor):
        return value
    # A copy, because PyTorch takes neither mirrored nor (without a warning) read-only arrays.
    return torch.from_numpy(np.array(value, order="C"))
