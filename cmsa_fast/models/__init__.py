"""Whole networks: pictures and words to mask logits. One file a system, one builder by name."""

from .build import MODELS, ReferringModel, build_model
from .cmsa import CMSAModel
from .features import ImageFeatures

__all__ = ["MODELS", "CMSAModel", "ImageFeatures", "ReferringModel", "build_model"]
