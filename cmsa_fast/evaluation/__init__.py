"""Metrics, evaluation of a model on a data set, and comparison of evaluations."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .conventions import CONVENTIONS
    from .metrics import GeneralizedMetrics, SegmentationMetrics

__all__ = ["CONVENTIONS", "GeneralizedMetrics", "SegmentationMetrics"]

_MODULES = {"CONVENTIONS": ".conventions", "GeneralizedMetrics": ".metrics", "SegmentationMetrics": ".metrics"}


def __getattr__(name: str) -> Any:
    # Imported on first use: the processes of `crf_pool` import this package and run without PyTorch.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name], __name__), name)
