"""Modules of referring segmentation, each usable alone in another network."""

from .backbone import DilatedResNet, NarrowBackbone
from .cmsa import CMSA
from .coordinates import spatial_coordinates
from .fusion import GatedFusion
from .losses import dice_loss, segmentation_loss
from .words import WordTable

__all__ = [
    "CMSA",
    "DilatedResNet",
    "GatedFusion",
    "NarrowBackbone",
    "WordTable",
    "dice_loss",
    "segmentation_loss",
    "spatial_coordinates",
]
