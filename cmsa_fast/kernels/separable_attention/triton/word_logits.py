"""Propagation of the gradient of the words' logits C to their factors, the words' queries and the keys."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...triton.launch import accumulator, architecture, launch, precision, word_block
from ...triton.primitives import load_tile, store_tile
from .tile_sizes import separable_tile


@triton.jit
def _to_words_kernel(
    gradient,  # [B, N, K]
    key,  # [G, K, WIDTH]
    image_index,  # [B]
    grad_words,  # [B, N, WIDTH]
    words,
    keys,
    key_batch_stride,
    key_row_stride,
    key_stride,
    WIDTH: tl.constexpr,
    WORDS: tl.constexpr,
    KEYS: tl.constexpr,
    CHANNELS: tl.constexpr,
    GROUPED: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    """gradient @ key, per expression."""
    expression = tl.program_id(1).to(tl.int64)
    group = tl.load(image_index + expression).to(tl.int64) if GROUPED else expression
    word = tl.arange(0, WORDS)
    word_present = word < words
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < WIDTH
    accumulated = tl.zeros([WORDS, CHANNELS], ACCUMULATOR)
    for start in range(0, keys, KEYS):
        row = start + tl.arange(0, KEYS)
        present = row < keys
        left = load_tile(gradient + expression * words * keys, word, row, keys, 1, word_present, present)
        right = load_tile(
            key + group * key_batch_stride,
            row,
            channel,
            key_row_stride,
            key_stride,
            present,
            inside,
        )
        accumulated = tl.dot(
            left, right.to(ACCUMULATOR), accumulated,
            input_precision=PRECISION, out_dtype=ACCUMULATOR,
        )  # fmt: skip
    store_tile(
        grad_words + expression * words * WIDTH, accumulated, word, channel, WIDTH, 1,
        word_present, inside,
    )  # fmt: skip


@triton.jit
def _to_keys_kernel(
    parts,  # [number, G, K, WIDTH]
    gradient,  # [B, N, K]
    word_query,  # [B, N, WIDTH]
    order,
    first,
    grad_key,  # [G, K, WIDTH]
    number,
    groups,
    words,
    keys,
    WIDTH: tl.constexpr,
    WORDS: tl.constexpr,
    KEYS: tl.constexpr,
    CHANNELS: tl.constexpr,
    GROUPED: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    """The sum of the parts, plus gradient^T @ word_query over the expressions of each set of keys."""
    group = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    present = row < keys
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < WIDTH
    word = tl.arange(0, WORDS)
    word_present = word < words
    begin = group
    end = group + 1
    if GROUPED:
        begin = tl.load(first + group)
        end = tl.load(first + group + 1)
    accumulated = tl.zeros([KEYS, CHANNELS], ACCUMULATOR)
    for part in range(0, number):
        accumulated += load_tile(
            parts + (part * groups + group) * keys * WIDTH, row, channel, WIDTH, 1, present, inside
        )
    for position in range(begin, end):
        expression = tl.load(order + position).to(tl.int64) if GROUPED else group
        left = load_tile(gradient + expression * words * keys, row, word, 1, keys, present, word_present)
        right = load_tile(word_query + expression * words * WIDTH, word, channel, WIDTH, 1, word_present, inside)
        accumulated = tl.dot(
            left, right.to(ACCUMULATOR), accumulated,
            input_precision=PRECISION, out_dtype=ACCUMULATOR,
        )  # fmt: skip
    store_tile(grad_key + group * keys * WIDTH, accumulated, row, channel, WIDTH, 1, present, inside)


def to_words(gradient: Tensor, key: Tensor, image_index: Tensor | None) -> Tensor:
    """gradient [B, N, K] @ key [G, K, d] of each expression's set of keys -> [B, N, d] in the gradient's dtype."""
    batch, words, keys = gradient.shape
    width = key.shape[2]
    tile = separable_tile("word_logits", width, key.dtype, architecture(), words)
    grad_words = gradient.new_empty(batch, words, width)
    launch(
        _to_words_kernel,
        (triton.cdiv(width, tile.channels), batch),
        gradient,
        key,
        image_index,
        grad_words,
        words,
        keys,
        *key.stride(),
        WIDTH=width,
        WORDS=word_block(words),
        KEYS=tile.keys,
        CHANNELS=tile.channels,
        GROUPED=image_index is not None,
        PRECISION=precision(key.dtype),
        ACCUMULATOR=accumulator(key.dtype),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return grad_words


def to_keys(
    parts: Tensor,
    gradient: Tensor,
    word_query: Tensor,
    groups: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """
    Args:
        parts: [parts, G, K, d], to be summed.
        gradient: [B, N, K], of C.
        word_query: [B, N, d], contiguous, zero on padding.
        groups: The expressions sorted by set of keys and the first of each set; None: one expression per set.

    Returns:
        [G, K, d] in the dtype of word_query.
    """
    number, sets, keys, width = parts.shape
    words = gradient.shape[1]
    tile = separable_tile("word_logits", width, word_query.dtype, architecture(), words)
    grad_key = torch.empty(sets, keys, width, dtype=word_query.dtype, device=parts.device)
    order, first = groups if groups is not None else (None, None)
    launch(
        _to_keys_kernel,
        (triton.cdiv(keys, tile.keys), triton.cdiv(width, tile.channels), sets),
        parts,
        gradient,
        word_query,
        order,
        first,
        grad_key,
        number,
        sets,
        words,
        keys,
        WIDTH=width,
        WORDS=word_block(words),
        KEYS=tile.keys,
        CHANNELS=tile.channels,
        GROUPED=groups is not None,
        PRECISION=precision(word_query.dtype),
        ACCUMULATOR=accumulator(word_query.dtype),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return grad_key
