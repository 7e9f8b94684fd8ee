"""Public import path of `SegmentationMetrics`; the code is in `cmsa_fast.evaluation.metrics`."""

from .evaluation.metrics import SegmentationMetrics

__all__ = ["SegmentationMetrics"]
