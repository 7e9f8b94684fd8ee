"""Cross-modal attention on tensors: functions only, no modules, no files."""

from .api import BACKENDS, cross_modal_attention, received_word_attention
from .joint_api import joint_attention, joint_attention_tail
from .tail import level_tail

__all__ = [
    "BACKENDS",
    "cross_modal_attention",
    "joint_attention",
    "joint_attention_tail",
    "level_tail",
    "received_word_attention",
]
