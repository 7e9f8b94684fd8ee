"""Cross-modal attention as functions of tensors, with gradients, on several backends."""

from .backends import BACKENDS
from .joint_attention.api import joint_attention, joint_attention_tail
from .separable_attention.api import cross_modal_attention, received_place_attention, received_word_attention
from .separable_attention.projection import level_tail

__all__ = [
    "BACKENDS",
    "cross_modal_attention",
    "joint_attention",
    "joint_attention_tail",
    "level_tail",
    "received_place_attention",
    "received_word_attention",
]
