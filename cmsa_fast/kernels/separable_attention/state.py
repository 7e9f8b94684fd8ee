"""Sizes and dtypes of what the Triton kernels keep between forward and backward; imports no Triton."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# The kernels read arrays padded to whole tiles. The CPU is Triton's interpreter, whose tiles are small.
_ROWS, _CHANNELS = 128, 64
_INTERPRETED = 16


class Dtypes(NamedTuple):
    """Dtypes of intermediate arrays.

    16-bit factors would underflow in float16, so those are bfloat16 or float32.
    """

    operand: torch.dtype  # features
    factor: torch.dtype  # E_C; R and G where they are multiplied with it
    exponential: torch.dtype  # E in forward
    gradient: torch.dtype  # E, W and the gradients of logits in backward
    total: torch.dtype  # sums

    @classmethod
    def of(cls, dtype: torch.dtype) -> "Dtypes":
        if dtype == torch.bfloat16:
            return cls(dtype, dtype, dtype, dtype, torch.float32)
        if dtype == torch.float16:
            return cls(dtype, torch.float32, torch.bfloat16, torch.float32, torch.float32)
        return cls(*[dtype] * 5)


class Sizes(NamedTuple):
    """Sizes of a call, and the padded ones of its arrays."""

    images: int
    batch: int
    places: int
    words: int
    width: int
    value_width: int
    padded_places: int
    padded_words: int
    channels: int  # width, padded
    value_channels: int

    @classmethod
    def of(cls, features: Sequence[Tensor]) -> "Sizes":
        """Sizes of place query, key, value and word query, key, value."""
        images, places, width = features[0].shape
        batch, words, value_width = features[5].shape
        interpreted = features[0].device.type == "cpu"
        rows, channels = (_INTERPRETED, _INTERPRETED) if interpreted else (_ROWS, _CHANNELS)
        return cls(
            images,
            batch,
            places,
            words,
            width,
            value_width,
            _round_up(places, rows),
            16 if words <= 16 else 32 if words <= 32 else 64,
            _round_up(width, channels),
            _round_up(value_width, channels),
        )


class State(NamedTuple):
    """What forward keeps for backward: its inputs as the kernels read them, and statistics of the softmaxes.

    All are contiguous and padded with zeros; see `prepare` for the first eight, `words` for the next three,
    `logits` for row_max, ratio and direct, and `direct` for the last two, which hold values only where a token is
    computed in the direct form.
    """

    query: Tensor  # [B_images, P, d]
    key: Tensor
    value: Tensor  # [B_images, P, e]
    word_query: Tensor  # [B, N, d]
    word_key: Tensor
    word_value: Tensor  # [B, N, e]
    weight: Tensor  # [B, N]
    offset: Tensor  # [B, e], to be added to the result
    word_factor: Tensor  # [B, N, P], E_C
    place_logits: Tensor  # [B, P, N], of places over words
    word_logits: Tensor  # [B, N, N], of words over words, -inf on padding
    row_max: Tensor  # [B, P]
    ratio: Tensor  # [B, P, N], R
    direct: Tensor  # int64 [B, P], bit n is set where word n's token takes the direct form
    direct_max: Tensor  # [B, P, N]
    direct_ratio: Tensor  # [B, P, N]

    @classmethod
    def empty(cls, sizes: Sizes, like: Tensor) -> "State":
        dtypes = Dtypes.of(like.dtype)
        batch, rows, words = sizes.batch, sizes.padded_places, sizes.padded_words

        def new(dtype: torch.dtype, *shape: Any) -> Tensor:
            return like.new_empty(shape, dtype=dtype)

        return cls(
            new(dtypes.operand, sizes.images, rows, sizes.channels),
            new(dtypes.operand, sizes.images, rows, sizes.channels),
            new(dtypes.operand, sizes.images, rows, sizes.value_channels),
            new(dtypes.operand, batch, words, sizes.channels),
            new(dtypes.operand, batch, words, sizes.channels),
            new(dtypes.operand, batch, words, sizes.value_channels),
            new(dtypes.total, batch, words),
            new(dtypes.total, batch, sizes.value_channels),
            new(dtypes.factor, batch, words, rows),
            new(dtypes.total, batch, rows, words),
            new(dtypes.total, batch, words, words),
            new(dtypes.total, batch, rows),
            new(dtypes.total, batch, rows, words),
            new(torch.int64, batch, rows),
            new(dtypes.total, batch, rows, words),
            new(dtypes.total, batch, rows, words),
        )


def _round_up(size: int, block: int) -> int:
    return (size + block - 1) // block * block
