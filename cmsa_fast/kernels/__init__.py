"""Cross-modal attention on tensors: functions only, no modules, no files."""

from .api import BACKENDS, cross_modal_attention, received_word_attention

__all__ = ["BACKENDS", "cross_modal_attention", "received_word_attention"]
