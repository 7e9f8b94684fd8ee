"""Whole networks: pictures and words to mask logits. One file a system, one builder by name."""

from .build import MODELS, ExplainsWords, Folds, ReferringModel, build_model, for_inference
from .cmsa import CMSAModel
from .cmsa_folded import FoldedCMSAModel, FoldedFeatures
from .cmsa_released import ReleasedCMSAModel
from .features import ImageFeatures

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
