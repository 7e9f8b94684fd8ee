"""Whole networks: pictures and words to mask logits. One file a system, one builder by name."""

from .build import MODELS, ExplainsWords, ReferringModel, build_model
from .cmsa import CMSAModel
from .cmsa_released import ReleasedCMSAModel
from .features import ImageFeatures

__all__ = [
    "MODELS",
    "CMSAModel",
    "ExplainsWords",
    "ImageFeatures",
    "ReferringModel",
    "ReleasedCMSAModel",
    "build_model",
]
