"""Cross-modal attention on tensors: functions only, no modules, no files."""

from .joint_attention.api import joint_attention, joint_attention_tail
from .separable_attention.api import BACKENDS, cross_modal_attention, received_word_attention
from .separable_attention.projection import level_tail

__all__ = [
    "BACKENDS",
    "cross_modal_attention",
    "joint_attention",
    "joint_attention_tail",
    "level_tail",
    "received_word_attention",
]
