"""How good masks are where an expression may name several objects or none: gIoU, cIoU, N-acc, T-acc."""

from __future__ import annotations

import math

from .metrics import ExpressionCounts

_TENTHS = (7, 8, 9)


class GeneralizedMetrics(ExpressionCounts):
    """The measures of generalised referring segmentation: Liu et al., GRES, CVPR 2023 (gRefCOCO).

    An expression that names nothing has an empty true mask ("no target"); every other one is "targeted". An
    empty predicted mask says that the expression names nothing. With I and U the pixels in the intersection
    and the union of an expression's masks:

    - `gIoU`: mean over all expressions of their IoU. It is I / U for a targeted expression (0 where nothing is
      predicted). For one without target it is 1 where nothing is predicted, otherwise 0.
    - `cIoU`: sum of I over sum of U, all expressions together. Nothing predicted where there is nothing adds to
      neither sum; a mask predicted where there is nothing adds its pixels to U; nothing predicted where
      there is something adds the true pixels to U. If every expression adds nothing, the cIoU is 1.
    - `N_acc`: share of the expressions without target for which nothing is predicted.
    - `T_acc`: share of the targeted expressions for which something is predicted.
    - `precision@0.7`, `precision@0.8`, `precision@0.9`: share of the targeted expressions with I / U at or
      above the threshold.

    All are fractions in [0, 1], or None where no expression of the kind they are about was seen: N_acc without
    an expression that names nothing, T_acc and the precisions without a targeted one.

    The rules are those of the evaluator in henghuiding/ReLA, with three differences. It writes 0 for both
    accuracies where no expression is without target, and divides by zero where none is targeted or where the
    cIoU has no pixel; here see above. Its network says "nothing" by a label beside the mask, so that a mask
    may contradict the label; here the mask alone decides, so that a network with such a label must empty its
    mask before `update` (then U is the true mask alone, where ReLA keeps the pixels of the mask it
    disowned). It decides by a flag of the record whether an expression has a target; here the true mask
    does, so that an object without a pixel counts as no target.

    Sums and comparisons are exact, as in `SegmentationMetrics`: the order and grouping of
    updates and merges have no influence on any result.
    """

    @property
    def ious(self) -> list[float]:
        """IoU of every expression as gIoU takes it, in the order of the updates."""
        pairs = zip(self.intersections, self.unions, strict=True)
        return [intersection / union if union else 1.0 for intersection, union in pairs]

    @property
    def no_target_count(self) -> int:
        """Number of expressions that name nothing."""
        return self.true.count(0)

    @property
    def targeted_count(self) -> int:
        """Number of expressions that name something."""
        return self.count - self.no_target_count

    def compute(self) -> dict[str, float | None]:
        """All measures of the expressions seen so far.

        Returns:
            `gIoU`, `cIoU`, `N_acc`, `T_acc`, `precision@0.7`, `precision@0.8` and `precision@0.9`, in this order:
            fractions, or None where there was no expression of that kind.

        Raises:
            ValueError: No expression has been seen.
        """
        self._need_a_expression()
        pairs = list(zip(self.predicted, self.true, strict=True))
        union = sum(self.unions)
        return {
            "gIoU": math.fsum(self.ious) / self.count,
            "cIoU": sum(self.intersections) / union if union else 1.0,
            "N_acc": _share([predicted == 0 for predicted, true in pairs if not true]),
            "T_acc": _share([predicted > 0 for predicted, true in pairs if true]),
            **{f"precision@0.{tenths}": self._precision(tenths) for tenths in _TENTHS},
        }

    def _precision(self, tenths: int) -> float | None:
        counts = zip(self.intersections, self.unions, self.true, strict=True)
        return _share(
            [10 * intersection >= tenths * union for intersection, union, true in counts if true]
        )


def _share(passed: list[bool]) -> float | None:
    return sum(passed) / len(passed) if passed else None
