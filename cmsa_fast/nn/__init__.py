"""Modules for referring segmentation, usable in other networks."""

from .backbones import DilatedResNet, NarrowBackbone
from .cmsa import CMSA
from .folded_cmsa import FoldedLevel, FoldedPlaces
from .fusion import ChannelGatedFusion, GatedFusion
from .losses import dice_loss, segmentation_loss
from .released_cmsa import PooledCMSA, SqueezedCMSA
from .text import WordEmbedding
from .tokens import spatial_coordinates

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
    "WordEmbedding",
    "dice_loss",
    "segmentation_loss",
    "spatial_coordinates",
]
