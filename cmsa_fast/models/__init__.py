"""Whole networks: images and words to mask logits. One file a system, one builder by name."""

from .base import ImageFeatures
from .cmsa import CMSAModel
from .folded_cmsa import FoldedCMSAModel, FoldedFeatures
from .registry import MODELS, ExplainsWords, Folds, ReferringModel, build_model, for_inference
from .released_cmsa import ReleasedCMSAModel

__all__ = [
    "MODELS",
    "CMSAModel",
    "ExplainsWords",
    "FoldedCMSAModel",
    "FoldedFeatures",
    "Folds",
    "ImageFeatures",
    "ReferringModel",
    "ReleasedCMSAModel",
    "build_model",
    "for_inference",
]
