"""The words' factor of the softmax, E_C = exp(C - row maximum) with C[n, k] = word_query_n . key_k."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...triton.launch import accumulator, architecture, launch, precision, word_block
from ...triton.primitives import products, store_tile
from .tile_sizes import separable_tile


@triton.jit
def _word_logits_kernel(
    query,  # [B, N, WIDTH]
    key,  # [G, K, WIDTH]
    image_index,  # [B], which of the G sets of keys
    logits,  # [B, N, K]
    words,
    keys,
    key_batch_stride,
    key_row_stride,
    key_stride,
    WIDTH: tl.constexpr,
    WORDS: tl.constexpr,
    KEYS: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUPED: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    expression = tl.program_id(1).to(tl.int64)
    group = tl.load(image_index + expression).to(tl.int64) if GROUPED else expression
    word = tl.arange(0, WORDS)
    row = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    tile = products(
        query + expression * words * WIDTH,
        word,
        WIDTH,
        1,
        word < words,
        key + group * key_batch_stride,
        row,
        key_row_stride,
        key_stride,
        row < keys,
        WIDTH,
        CHUNK,
        PRECISION,
        ACCUMULATOR,
    )  # [WORDS, KEYS]
    store_tile(logits + expression * words * keys, tile, word, row, keys, 1, word < words, row < keys)


def word_factor(
    word_query: Tensor,
    key: Tensor,
    image_index: Tensor | None = None,
    key_mask: Tensor | None = None,
) -> Tensor:
    """
    Args:
        word_query: [B, N, d], contiguous, zero on padding.
        key: [B, K, d], or [B_images, K, d] with image_index.
        image_index: int64 [B].
        key_mask: bool [B, K], the keys to attend to. None: all.

    Returns:
        [B, N, K] in the accumulator's dtype; each row's largest entry is 1, masked keys are 0.
    """
    batch, words, width = word_query.shape
    keys = key.shape[1]
    exact = torch.float64 if key.dtype == torch.float64 else torch.float32
    logits = torch.empty(batch, words, keys, dtype=exact, device=key.device)
    tile = separable_tile("word_factor", width, key.dtype, architecture())
    launch(
        _word_logits_kernel,
        (triton.cdiv(keys, tile.keys), batch),
        word_query,
        key,
        image_index,
        logits,
        words,
        keys,
        *key.stride(),
        WIDTH=width,
        WORDS=word_block(words),
        KEYS=tile.keys,
        CHUNK=tile.channels,
        GROUPED=image_index is not None,
        PRECISION=precision(key.dtype),
        ACCUMULATOR=accumulator(key.dtype),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    if key_mask is not None:
        logits.masked_fill_(~key_mask[:, None], -torch.inf)
    return logits.sub_(logits.amax(-1, keepdim=True)).exp_()
