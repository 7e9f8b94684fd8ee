"""Forward kernel of the tiled plan: from the logits of a slab of rows to the mean softmax over words."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...triton.launch import accumulator, architecture, launch, precision, word_block
from ...triton.primitives import (
    any_true,
    column,
    direct_softmax,
    load_tile,
    store_tile,
    token_products,
)
from .row_statistics import Keys, Statistics
from .tile_sizes import FLOOR, separable_tile


@triton.jit
def _tiled_weights_kernel(
    logits,  # [B, P, K], A
    query,  # [B, P, WIDTH]
    key,  # [B, K, WIDTH]
    word_query,  # [B, N, WIDTH]
    weight,  # [B, N]
    exp_word,  # [B, N, K]
    mask,  # [B, K]
    softmax_out,  # [B, P, K]
    maximum_out,
    ratio_out,
    direct_maximum_out,
    direct_ratio_out,
    any_direct_out,
    places,
    words,
    keys,
    query_batch_stride,
    query_row_stride,
    query_stride,
    key_batch_stride,
    key_row_stride,
    key_stride,
    WIDTH: tl.constexpr,
    WORDS: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    CHUNK: tl.constexpr,
    MASKED: tl.constexpr,
    FLOOR: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    expression = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_mask = rows < places
    number_of = tl.arange(0, WORDS)
    word_mask = number_of < words
    weights = tl.load(weight + expression * words + number_of, mask=word_mask, other=0.0)
    own_logits = logits + expression * places * keys
    own_query = query + expression * query_batch_stride
    own_key = key + expression * key_batch_stride
    own_word_query = word_query + expression * words * WIDTH
    own_exp_word = exp_word + expression * words * keys
    own_mask = mask + expression * keys if MASKED else mask
    own_softmax = softmax_out + expression * places * keys

    # A finite start, so that blocks without a key to attend to leave zeros and no NaN.
    maximum = tl.full([ROWS], -3.0e38, ACCUMULATOR)
    total = tl.zeros([ROWS, WORDS], ACCUMULATOR)  # Z
    for start in range(0, keys, KEYS):
        row = start + tl.arange(0, KEYS)
        present = row < keys
        tile = load_tile(own_logits, rows, row, keys, 1, row_mask, present)
        factor = load_tile(own_exp_word, row, number_of, 1, keys, present, word_mask)
        if MASKED:
            present = tl.load(own_mask + row, mask=present, other=0) != 0
        tile = tl.where(present[None, :], tile, float("-inf"))
        larger = tl.maximum(maximum, tl.max(tile, axis=1))
        total = tl.dot(
            tl.exp(tile - larger[:, None]), factor, total * tl.exp(maximum - larger)[:, None],
            input_precision=PRECISION, out_dtype=ACCUMULATOR,
        )  # fmt: skip
        maximum = larger
    real = word_mask[None, :] & row_mask[:, None] & (weights[None, :] > 0)
    under = real & (total < FLOOR)
    ratio = tl.where(real & (total >= FLOOR), weights[None, :] / tl.maximum(total, FLOOR), 0.0)
    under_any = any_true(under)

    direct_maximum = tl.zeros([ROWS, WORDS], ACCUMULATOR)
    direct_ratio = tl.zeros([ROWS, WORDS], ACCUMULATOR)
    if under_any:
        for number in range(0, words):
            chosen = under & (number_of == number)[None, :]
            if any_true(chosen):
                largest = tl.full([ROWS], -3.0e38, ACCUMULATOR)
                summed = tl.zeros([ROWS], ACCUMULATOR)
                for start in range(0, keys, KEYS):
                    row = start + tl.arange(0, KEYS)
                    present = row < keys
                    tile = token_products(
                        own_query, rows, query_row_stride, query_stride, row_mask,
                        own_word_query + number * WIDTH, 1,
                        own_key, row, key_row_stride, key_stride, present,
                        WIDTH, CHUNK, PRECISION, ACCUMULATOR,
                    )  # fmt: skip
                    if MASKED:
                        present = tl.load(own_mask + row, mask=present, other=0) != 0
                    tile = tl.where(present[None, :], tile, float("-inf"))
                    larger = tl.maximum(largest, tl.max(tile, axis=1))
                    summed = summed * tl.exp(largest - larger) + tl.sum(tl.exp(tile - larger[:, None]), axis=1)
                    largest = larger
                direct_maximum = tl.where(chosen, largest[:, None], direct_maximum)
                direct_ratio = tl.where(chosen, weights[None, :] / summed[:, None], direct_ratio)

    for start in range(0, keys, KEYS):
        row = start + tl.arange(0, KEYS)
        present = row < keys
        tile = load_tile(own_logits, rows, row, keys, 1, row_mask, present)
        # Where a key is masked, its E_C is zero.
        factor = load_tile(own_exp_word, number_of, row, keys, 1, word_mask, present)
        mixed = tl.dot(ratio, factor, input_precision=PRECISION, out_dtype=ACCUMULATOR)
        softmax = tl.exp(tl.minimum(tile - maximum[:, None], 0.0)) * mixed
        if under_any:
            for number in range(0, words):
                token_ratio = column(direct_ratio, number)
                if tl.max(token_ratio, axis=0) > 0:
                    softmax += direct_softmax(
                        own_query, rows, query_row_stride, query_stride, row_mask,
                        own_word_query + number * WIDTH,
                        own_key, row, key_row_stride, key_stride, present, own_mask,
                        column(direct_maximum, number), token_ratio,
                        WIDTH, CHUNK, MASKED, PRECISION, ACCUMULATOR,
                    )  # fmt: skip
        store_tile(own_softmax, softmax, rows, row, keys, 1, row_mask, present)

    of_expression = expression * places
    tl.store(maximum_out + of_expression + rows, maximum, mask=row_mask)
    of_words = of_expression * words
    store_tile(ratio_out + of_words, ratio, rows, number_of, words, 1, row_mask, word_mask)
    store_tile(
        direct_maximum_out + of_words, direct_maximum, rows, number_of, words, 1,
        row_mask, word_mask,
    )  # fmt: skip
    store_tile(direct_ratio_out + of_words, direct_ratio, rows, number_of, words, 1, row_mask, word_mask)
    flag = expression * tl.num_programs(0) + tl.program_id(0)
    tl.store(any_direct_out + flag, under_any.to(tl.int32))


def launch_weights(
    logits: Tensor, query: Tensor, keys: Keys, word_query: Tensor, weight: Tensor
) -> tuple[Tensor, Statistics]:
    """
    Args:
        logits: [B, P, K], query keys^T, in the dtype of weight, contiguous.
        query: [B, P, d], the places' queries.
        keys: The places or the words as keys, a set for each expression.
        word_query: [B, N, d], contiguous, zero on padding.
        weight: [B, N], 1 / (number of real words) on real words, 0 on padding.

    Returns:
        W [B, P, K] in the query's dtype, and the statistics of the softmax.
    """
    batch, number, width = word_query.shape
    places, count = logits.shape[1:]
    tile = separable_tile("tiled_weights", width, query.dtype, architecture())
    blocks = triton.cdiv(places, tile.rows)
    softmax = query.new_empty(batch, places, count)
    statistics = Statistics(
        weight.new_empty(batch, places),
        weight.new_empty(batch, places, number),
        weight.new_empty(batch, places, number),
        weight.new_empty(batch, places, number),
        torch.empty(batch, blocks, dtype=torch.int32, device=query.device),
    )
    launch(
        _tiled_weights_kernel,
        (blocks, batch),
        logits,
        query,
        keys.key,
        word_query,
        weight,
        keys.exp_word,
        keys.mask,
        softmax,
        *statistics,
        places,
        number,
        count,
        *query.stride(),
        *keys.key.stride(),
        WIDTH=width,
        WORDS=word_block(number),
        ROWS=tile.rows,
        KEYS=tile.keys,
        CHUNK=tile.channels,
        MASKED=keys.mask is not None,
        FLOOR=FLOOR[weight.dtype],
        PRECISION=precision(query.dtype),
        ACCUMULATOR=accumulator(query.dtype),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return softmax, statistics._replace(any_direct=statistics.any_direct.amax(1))
