"""Backward kernel of the tiled plan: from the gradient of the attention weights to that of the logits.

With T = E_A * (grad value^T - delta) and G = ((T E_C^T) * R) / Z the latter is T * (R E_C) - E_A * (G E_C), as in
`rows` and `query`; here the arrays over all pairs are in memory.
"""

import triton
import triton.language as tl
from torch import Tensor

from ...triton.launch import accumulator, architecture, launch, precision, word_block
from ...triton.primitives import any_true, column, direct_softmax, load_tile, store_tile
from .row_statistics import Keys, Statistics
from .rows import RowGradients
from .tile_sizes import separable_tile


@triton.jit
def _tiled_gradients_kernel(
    logits,  # [B, P, K], A
    gradient,  # [B, P, K], grad value^T
    query,  # [B, P, WIDTH]
    key,  # [B, K, WIDTH]
    word_query,  # [B, N, WIDTH]
    weight,  # [B, N]
    exp_word,  # [B, N, K]
    mask,  # [B, K]
    maximum,
    ratio,
    direct_maximum,
    direct_ratio,
    any_direct,
    softmax_out,  # [B, P, K], W
    of_logits_out,  # [B, P, K]
    delta_out,
    correction_out,
    direct_mean_out,
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
    PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    expression = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_mask = rows < places
    number_of = tl.arange(0, WORDS)
    word_mask = number_of < words
    of_expression = expression * places
    of_words = of_expression * words
    # All real words have the same weight.
    scale = tl.max(tl.load(weight + expression * words + number_of, mask=word_mask, other=0.0), 0)
    own_logits = logits + of_expression * keys
    own_gradient = gradient + of_expression * keys
    own_query = query + expression * query_batch_stride
    own_key = key + expression * key_batch_stride
    own_word_query = word_query + expression * words * WIDTH
    own_exp_word = exp_word + expression * words * keys
    own_mask = mask + expression * keys if MASKED else mask
    largest = tl.load(maximum + of_expression + rows, mask=row_mask, other=0.0)
    ratio_tile = load_tile(ratio + of_words, rows, number_of, words, 1, row_mask, word_mask)

    delta = tl.zeros([ROWS], ACCUMULATOR)
    for start in range(0, keys, KEYS):
        row = start + tl.arange(0, KEYS)
        present = row < keys
        tile = load_tile(own_logits, rows, row, keys, 1, row_mask, present)
        of_weights = load_tile(own_gradient, rows, row, keys, 1, row_mask, present)
        factor = load_tile(own_exp_word, number_of, row, keys, 1, word_mask, present)
        mixed = tl.dot(ratio_tile, factor, input_precision=PRECISION, out_dtype=ACCUMULATOR)
        exp_place = tl.exp(tl.minimum(tile - largest[:, None], 0.0))
        delta += tl.sum(exp_place * mixed * of_weights, axis=1)

    summed = tl.zeros([ROWS, WORDS], ACCUMULATOR)  # T E_C^T
    for start in range(0, keys, KEYS):
        row = start + tl.arange(0, KEYS)
        present = row < keys
        tile = load_tile(own_logits, rows, row, keys, 1, row_mask, present)
        of_weights = load_tile(own_gradient, rows, row, keys, 1, row_mask, present)
        factor = load_tile(own_exp_word, row, number_of, 1, keys, present, word_mask)
        exp_place = tl.exp(tl.minimum(tile - largest[:, None], 0.0))
        summed = tl.dot(
            exp_place * (of_weights - delta[:, None]), factor, summed,
            input_precision=PRECISION, out_dtype=ACCUMULATOR,
        )  # fmt: skip
    # R / Z overflows near the floor, so the product with the sum comes first.
    correction = summed * ratio_tile * (ratio_tile / scale)

    direct_tile = load_tile(direct_ratio + of_words, rows, number_of, words, 1, row_mask, word_mask)
    largest_tile = load_tile(direct_maximum + of_words, rows, number_of, words, 1, row_mask, word_mask)
    direct_mean = tl.zeros([ROWS, WORDS], ACCUMULATOR)
    is_direct = False
    if tl.load(any_direct + expression) > 0:
        is_direct = any_true(direct_tile > 0)
    if is_direct:
        for number in range(0, words):
            token_ratio = column(direct_tile, number)
            if tl.max(token_ratio, axis=0) > 0:
                mean = tl.zeros([ROWS], ACCUMULATOR)
                for start in range(0, keys, KEYS):
                    row = start + tl.arange(0, KEYS)
                    present = row < keys
                    softmax = direct_softmax(
                        own_query, rows, query_row_stride, query_stride, row_mask,
                        own_word_query + number * WIDTH,
                        own_key, row, key_row_stride, key_stride, present, own_mask,
                        column(largest_tile, number), token_ratio / scale,
                        WIDTH, CHUNK, MASKED, PRECISION, ACCUMULATOR,
                    )  # fmt: skip
                    of_weights = load_tile(own_gradient, rows, row, keys, 1, row_mask, present)
                    mean += tl.sum(softmax * (of_weights - delta[:, None]), axis=1)
                direct_mean = tl.where((number_of == number)[None, :], mean[:, None], direct_mean)

    for start in range(0, keys, KEYS):
        row = start + tl.arange(0, KEYS)
        present = row < keys
        tile = load_tile(own_logits, rows, row, keys, 1, row_mask, present)
        of_weights = load_tile(own_gradient, rows, row, keys, 1, row_mask, present)
        of_weights = of_weights - delta[:, None]
        factor = load_tile(own_exp_word, number_of, row, keys, 1, word_mask, present)
        mixed = tl.dot(ratio_tile, factor, input_precision=PRECISION, out_dtype=ACCUMULATOR)
        corrected = tl.dot(correction, factor, input_precision=PRECISION, out_dtype=ACCUMULATOR)
        exp_place = tl.exp(tl.minimum(tile - largest[:, None], 0.0))
        softmax = exp_place * mixed
        of_logits = exp_place * (of_weights * mixed - corrected)
        if is_direct:
            for number in range(0, words):
                token_ratio = column(direct_tile, number)
                if tl.max(token_ratio, axis=0) > 0:
                    own = direct_softmax(
                        own_query, rows, query_row_stride, query_stride, row_mask,
                        own_word_query + number * WIDTH,
                        own_key, row, key_row_stride, key_stride, present, own_mask,
                        column(largest_tile, number), token_ratio,
                        WIDTH, CHUNK, MASKED, PRECISION, ACCUMULATOR,
                    )  # fmt: skip
                    softmax += own
                    of_logits += own * (of_weights - column(direct_mean, number)[:, None])
        store_tile(softmax_out + of_expression * keys, softmax, rows, row, keys, 1, row_mask, present)
        store_tile(of_logits_out + of_expression * keys, of_logits, rows, row, keys, 1, row_mask, present)

    tl.store(delta_out + of_expression + rows, delta, mask=row_mask)
    store_tile(correction_out + of_words, correction, rows, number_of, words, 1, row_mask, word_mask)
    store_tile(direct_mean_out + of_words, direct_mean, rows, number_of, words, 1, row_mask, word_mask)


def launch_gradients(
    logits: Tensor,
    gradient: Tensor,
    query: Tensor,
    keys: Keys,
    word_query: Tensor,
    weight: Tensor,
    statistics: Statistics,
) -> tuple[Tensor, Tensor, RowGradients]:
    """
    Args:
        logits: [B, P, K], query keys^T, in the dtype of weight, contiguous.
        gradient: [B, P, K], grad values^T, likewise.
        query, keys, word_query, weight: As in `launch_weights`.
        statistics: Forward's, contiguous.

    Returns:
        W and the gradient of the logits, [B, P, K] in the query's dtype, and what the words' logits need.
    """
    batch, number, width = word_query.shape
    places, count = logits.shape[1:]
    tile = separable_tile("tiled_gradients", width, query.dtype, architecture())
    softmax, of_logits = (query.new_empty(batch, places, count) for _ in range(2))
    gradients = RowGradients(
        weight.new_empty(batch, places),
        weight.new_empty(batch, places, number),
        weight.new_empty(batch, places, number),
    )
    launch(
        _tiled_gradients_kernel,
        (triton.cdiv(places, tile.rows), batch),
        logits,
        gradient,
        query,
        keys.key,
        word_query,
        weight,
        keys.exp_word,
        keys.mask,
        *statistics,
        softmax,
        of_logits,
        *gradients,
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
        PRECISION=precision(query.dtype),
        ACCUMULATOR=accumulator(query.dtype),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return softmax, of_logits, gradients
