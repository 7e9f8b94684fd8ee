"""Modules of referring segmentation, each usable alone in another network."""

from .backbone import DilatedResNet, NarrowBackbone
from .channel_fusion import ChannelGatedFusion
from .cmsa import CMSA
from .coordinates import spatial_coordinates
from .folded import FoldedLevel, FoldedPlaces
from .fusion import GatedFusion
from .losses import dice_loss, segmentation_loss
from .released import PooledCMSA, SqueezedCMSA
from .words import WordTable

__all__ = [
    "CMSA",
    "ChannelGatedFusion",
    "DilatedResNet",
    "FoldedLevel",
    "FoldedPlaces",
    "GatedFusion",
    "NarrowBackbone",
    "PooledCMSA",
    "SqueezedCMSA",
    "WordTable",
    "dice_loss",
    "segmentation_loss",
    "spatial_coordinates",
]
