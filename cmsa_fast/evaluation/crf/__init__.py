"""Dense conditional random field: sharpens probabilities along the colour edges of the image."""

from .mean_field import dense_crf, refine
from .parameters import PRESETS, CrfParameters
from .pool import RefinementPool

__all__ = ["PRESETS", "CrfParameters", "RefinementPool", "dense_crf", "refine"]
