"""Modules of referring segmentation, each usable alone in another network."""

from .backbones import DilatedResNet, NarrowBackbone
from .channel_fusion import ChannelGatedFusion
from .cmsa import CMSA
from .coordinates import spatial_coordinates
from .folded_cmsa import FoldedLevel, FoldedPlaces
from .fusion import GatedFusion
from .losses import dice_loss, segmentation_loss
from .released_cmsa import PooledCMSA, SqueezedCMSA
from .text import WordEmbedding

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
