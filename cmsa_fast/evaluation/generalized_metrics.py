"""How good masks are where a sentence may name several objects or none: gIoU, cIoU, N-acc, T-acc."""

from __future__ import annotations

import math

from .metrics import SentenceCounts

_TENTHS = (7, 8, 9)


class GeneralizedMetrics(SentenceCounts):
    """The measures of generalised referring segmentation: Liu et al., GRES, CVPR 2023 (gRefCOCO).

    A sentence that names nothing has an empty true mask ("no target"); every other one is "targeted". An
    empty predicted mask says that the sentence names nothing. With I and U the pixels in the intersection
    and the union of a sentence's masks:

    - `gIoU`: mean over all sentences of their IoU. It is I / U for a targeted sentence (0 where nothing is
      predicted). For one without target it is 1 where nothing is predicted, otherwise 0.
    - `cIoU`: sum of I over sum of U, all sentences together. Nothing predicted where there is nothing adds to
      neither sum; a mask predicted where there is nothing adds its pixels to U; nothing predicted where
      there is something adds the true pixels to U. If every sentence adds nothing, the cIoU is 1.
    - `N_acc`: share of the sentences without target for which nothing is predicted.
    - `T_acc`: share of the targeted sentences for which something is predicted.
    - `precision@0.7`, `precision@0.8`, `precision@0.9`: share of the targeted sentences with I / U at or
      above the threshold.

    All are fractions in [0, 1], or None where no sentence of the kind they are about was seen: N_acc without
    a sentence that names nothing, T_acc and the precisions without a targeted one.

    The rules are those of the evaluator in henghuiding/ReLA, with three differences. It writes 0 for both
    accuracies where no sentence is without target, and divides by zero where none is targeted or where the
    cIoU has no pixel; here see above. Its network says "nothing" by a label beside the mask, so that a mask
    may contradict the label; here the mask alone decides, so that a network with such a label must empty its
    mask before `update` (then U is the true mask alone, where ReLA keeps the pixels of the mask it
    disowned). It decides by a flag of the record whether a sentence has a target; here the true mask
    does, so that an object without a pixel counts as no target.

    Sums and comparisons are exact, as in `cmsa_fast.evaluation.metrics.SegmentationMetrics`: the order and grouping of
    updates and merges have no influence on any result.
    """

    @property
    def ious(self) -> list[float]:
        """IoU of every sentence as gIoU takes it, in the order of the updates."""
        pairs = zip(self.intersections, self.unions, strict=True)
        return [intersection / union if union else 1.0 for intersection, union in pairs]

    @property
    def no_target_count(self) -> int:
        """Number of sentences that name nothing."""
        return self.true.count(0)

    @property
    def targeted_count(self) -> int:
        """Number of sentences that name something."""
        return self.count - self.no_target_count

    def compute(self) -> dict[str, float | None]:
        """All measures of the sentences seen so far.

        Returns:
            `gIoU`, `cIoU`, `N_acc`, `T_acc`, `precision@0.7`, `precision@0.8` and `precision@0.9`, in this order:
            fractions, or None where there was no sentence of that kind.

        Raises:
            ValueError: No sentence has been seen.
        """
        self._need_a_sentence()
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
