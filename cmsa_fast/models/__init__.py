"""Referring segmentation models, one file each; `build_model` finds them by name."""

from .registry import MODELS, build_model, for_inference

__all__ = ["MODELS", "build_model", "for_inference"]
