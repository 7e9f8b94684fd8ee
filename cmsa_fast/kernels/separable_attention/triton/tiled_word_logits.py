"""Backward kernel of the tiled plan: the gradient of the words' logits C, summed over places."""

import triton
import triton.language as tl
from torch import Tensor

from ...triton.launch import accumulator, architecture, launch, precision, row_splits, word_block
from ...triton.primitives import any_true, column, direct_softmax, load_tile, store_tile
from .operands import WordLogits
from .row_statistics import Keys, Statistics
from .rows import RowGradients
from .tile_sizes import separable_tile


@triton.jit
def _tiled_word_logits_kernel(
    logits,  # [B, P, K], A
    gradient,  # [B, P, K], grad value^T
    query,  # [B, P, WIDTH]
    key,  # [B, K, WIDTH]
    word_query,  # [B, N, WIDTH]
    mask,  # [B, K]
    maximum,
    ratio,
    direct_maximum,
    direct_ratio,
    any_direct,
    delta,
    correction,
    direct_mean,
    word_logits,  # [parts, B, N, K], as the next three
    share,
    direct_logits,
    direct_share,
    places,
    words,
    keys,
    batch,
    rows_per_part,
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
    part = tl.program_id(2)
    row = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    present = row < keys
    number_of = tl.arange(0, WORDS)
    word_mask = number_of < words
    of_expression = expression * places
    of_words = of_expression * words
    own_logits = logits + of_expression * keys
    own_gradient = gradient + of_expression * keys
    own_query = query + expression * query_batch_stride
    own_key = key + expression * key_batch_stride
    own_mask = mask + expression * keys if MASKED else mask

    summed = tl.zeros([KEYS, WORDS], ACCUMULATOR)
    shares = tl.zeros([KEYS, WORDS], ACCUMULATOR)
    last = tl.minimum(places, (part + 1) * rows_per_part)
    for start in range(part * rows_per_part, last, ROWS):
        place = start + tl.arange(0, ROWS)
        place_mask = place < last
        tile = load_tile(own_logits, row, place, 1, keys, present, place_mask)
        of_weights = load_tile(own_gradient, row, place, 1, keys, present, place_mask)
        largest = tl.load(maximum + of_expression + place, mask=place_mask, other=0.0)
        mean = tl.load(delta + of_expression + place, mask=place_mask, other=0.0)
        exp_place = tl.exp(tl.minimum(tile - largest[None, :], 0.0))
        ratio_tile = load_tile(ratio + of_words, place, number_of, words, 1, place_mask, word_mask)
        corrected = load_tile(correction + of_words, place, number_of, words, 1, place_mask, word_mask)
        summed = tl.dot(
            exp_place * (of_weights - mean[None, :]), ratio_tile, summed,
            input_precision=PRECISION, out_dtype=ACCUMULATOR,
        )  # fmt: skip
        summed = tl.dot(-exp_place, corrected, summed, input_precision=PRECISION, out_dtype=ACCUMULATOR)
        shares = tl.dot(exp_place, ratio_tile, shares, input_precision=PRECISION, out_dtype=ACCUMULATOR)
    here = (part * batch + expression) * words * keys
    store_tile(word_logits + here, summed, row, number_of, 1, keys, present, word_mask)
    store_tile(share + here, shares, row, number_of, 1, keys, present, word_mask)

    summed = tl.zeros([KEYS, WORDS], ACCUMULATOR)
    shares = tl.zeros([KEYS, WORDS], ACCUMULATOR)
    if tl.load(any_direct + expression) > 0:
        for start in range(part * rows_per_part, last, ROWS):
            place = start + tl.arange(0, ROWS)
            place_mask = place < last
            direct_tile = load_tile(direct_ratio + of_words, place, number_of, words, 1, place_mask, word_mask)
            if any_true(direct_tile > 0):
                largest_tile = load_tile(
                    direct_maximum + of_words, place, number_of, words, 1, place_mask, word_mask
                )
                mean_tile = load_tile(direct_mean + of_words, place, number_of, words, 1, place_mask, word_mask)
                mean = tl.load(delta + of_expression + place, mask=place_mask, other=0.0)
                of_weights = load_tile(own_gradient, place, row, keys, 1, place_mask, present)
                of_weights = of_weights - mean[:, None]
                for number in range(0, words):
                    token_ratio = column(direct_tile, number)
                    if tl.max(token_ratio, axis=0) > 0:
                        softmax = direct_softmax(
                            own_query, place, query_row_stride, query_stride, place_mask,
                            word_query + (expression * words + number) * WIDTH,
                            own_key, row, key_row_stride, key_stride, present, own_mask,
                            column(largest_tile, number), token_ratio,
                            WIDTH, CHUNK, MASKED, PRECISION, ACCUMULATOR,
                        )  # fmt: skip
                        of_logits = softmax * (of_weights - column(mean_tile, number)[:, None])
                        chosen = (number_of == number)[None, :]
                        summed += tl.where(chosen, tl.sum(of_logits, axis=0)[:, None], 0.0)
                        shares += tl.where(chosen, tl.sum(softmax, axis=0)[:, None], 0.0)
    store_tile(direct_logits + here, summed, row, number_of, 1, keys, present, word_mask)
    store_tile(direct_share + here, shares, row, number_of, 1, keys, present, word_mask)


def launch_word_logits(
    logits: Tensor,
    gradient: Tensor,
    query: Tensor,
    keys: Keys,
    word_query: Tensor,
    statistics: Statistics,
    gradients: RowGradients,
) -> WordLogits:
    """
    Args:
        logits, gradient, query, keys, word_query, statistics: As in `launch_gradients`.
        gradients: The rows'.

    Returns:
        The parts of the gradient of the words' logits.
    """
    batch, number, width = word_query.shape
    places, count = logits.shape[1:]
    arch = architecture()
    tile = separable_tile("tiled_word_logits", width, query.dtype, arch)
    blocks = triton.cdiv(count, tile.keys)
    parts, rows_per_part = row_splits(places, tile.rows, blocks * batch, arch)
    found = WordLogits(*(logits.new_empty(parts, batch, number, count) for _ in range(4)))
    launch(
        _tiled_word_logits_kernel,
        (blocks, batch, parts),
        logits,
        gradient,
        query,
        keys.key,
        word_query,
        keys.mask,
        *statistics,
        *gradients,
        *found,
        places,
        number,
        count,
        batch,
        rows_per_part,
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
    return found
