"""Backward pass of the separable attention: the gradients of the keys and of the words' logits C.

Work is split over programs as in `values`. The gradient of C is stored without its factor E_C, and separately for
tokens in the direct form; the softmax summed over places is stored with it, to correct its rounding later.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...triton.launch import (
    accumulator,
    architecture,
    launch,
    precision,
    row_splits,
    slice_width,
    word_block,
)
from ...triton.primitives import any_true, column, direct_softmax, load_tile, products, store_tile
from .operands import WordLogits
from .row_statistics import Keys, Statistics
from .rows import RowGradients
from .tile_sizes import separable_tile


@triton.jit
def _key_gradient_kernel(
    grad,  # [B, P, VALUE_WIDTH]
    query,  # [G', P, WIDTH]
    key,  # [G, K, WIDTH]
    value,  # [G, K, VALUE_WIDTH]
    word_query,  # [B, N, WIDTH]
    exp_word,  # [B, N, K]
    mask,  # [B, K]
    image_index,  # [B]
    order,
    first,
    maximum,  # [B, P]
    ratio,  # [B, P, N]
    direct_maximum,  # [B, P, N]
    direct_ratio,  # [B, P, N]
    any_direct,  # [B]
    delta,  # [B, P]
    correction,  # [B, P, N]
    direct_mean,  # [B, P, N]
    grad_key,  # [parts, G, K, WIDTH]
    word_logits,  # [parts, B, N, K], as the next three
    share,
    direct_logits,
    direct_share,
    places,
    words,
    keys,
    groups,
    batch,
    rows_per_part,
    grad_batch_stride,
    grad_row_stride,
    grad_stride,
    query_batch_stride,
    query_row_stride,
    query_stride,
    key_batch_stride,
    key_row_stride,
    key_stride,
    value_batch_stride,
    value_row_stride,
    value_stride,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    WORDS: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUPED: tl.constexpr,
    INDEXED: tl.constexpr,
    MASKED: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    """The transposed gradient of A times the query, and sums over places for the gradient of the words' logits."""
    slices = tl.cdiv(WIDTH, CHANNELS)
    group = tl.program_id(1).to(tl.int64)
    part = tl.program_id(2) // slices
    channel_slice = tl.program_id(2) % slices
    channel = channel_slice * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < WIDTH
    row = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    present = row < keys
    column_of = tl.arange(0, WORDS)
    word_present = column_of < words
    own_key = key + group * key_batch_stride
    own_value = value + group * value_batch_stride

    begin = group
    end = group + 1
    if GROUPED:
        begin = tl.load(first + group)
        end = tl.load(first + group + 1)
    accumulated = tl.zeros([KEYS, CHANNELS], ACCUMULATOR)
    for position in range(begin, end):
        expression = tl.load(order + position).to(tl.int64) if GROUPED else group
        image = tl.load(image_index + expression).to(tl.int64) if INDEXED else group
        own_query = query + image * query_batch_stride
        own_grad = grad + expression * grad_batch_stride
        own_mask = mask + expression * keys if MASKED else mask
        own_maximum = maximum + expression * places
        own_delta = delta + expression * places
        own_ratio = ratio + expression * places * words
        own_correction = correction + expression * places * words
        factor = load_tile(exp_word + expression * words * keys, row, column_of, 1, keys, present, word_present)
        of_words = tl.zeros([KEYS, WORDS], ACCUMULATOR)
        shares = tl.zeros([KEYS, WORDS], ACCUMULATOR)
        last = tl.minimum(places, (part + 1) * rows_per_part)
        for start in range(part * rows_per_part, last, ROWS):
            place = start + tl.arange(0, ROWS)
            place_mask = place < last
            logits = products(
                own_key, row, key_row_stride, key_stride, present,
                own_query, place, query_row_stride, query_stride, place_mask,
                WIDTH, CHUNK, PRECISION, ACCUMULATOR,
            )  # fmt: skip
            gradient = products(
                own_value, row, value_row_stride, value_stride, present,
                own_grad, place, grad_row_stride, grad_stride, place_mask,
                VALUE_WIDTH, CHUNK, PRECISION, ACCUMULATOR,
            )  # fmt: skip
            largest = tl.load(own_maximum + place, mask=place_mask, other=0.0)
            mean = tl.load(own_delta + place, mask=place_mask, other=0.0)
            exp_place = tl.exp(tl.minimum(logits - largest[None, :], 0.0))
            gradient = gradient - mean[None, :]
            ratio_tile = load_tile(own_ratio, place, column_of, words, 1, place_mask, word_present)
            corrected_tile = load_tile(own_correction, place, column_of, words, 1, place_mask, word_present)
            of_words = tl.dot(
                exp_place * gradient, ratio_tile, of_words,
                input_precision=PRECISION, out_dtype=ACCUMULATOR,
            )  # fmt: skip
            of_words = tl.dot(
                -exp_place, corrected_tile, of_words,
                input_precision=PRECISION, out_dtype=ACCUMULATOR,
            )  # fmt: skip
            shares = tl.dot(exp_place, ratio_tile, shares, input_precision=PRECISION, out_dtype=ACCUMULATOR)
            mixed = tl.dot(factor, tl.trans(ratio_tile), input_precision=PRECISION, out_dtype=ACCUMULATOR)
            corrected = tl.dot(factor, tl.trans(corrected_tile), input_precision=PRECISION, out_dtype=ACCUMULATOR)
            of_logits = exp_place * (gradient * mixed - corrected)
            query_tile = load_tile(own_query, place, channel, query_row_stride, query_stride, place_mask, inside)
            if WIDE:
                query_tile = query_tile.to(ACCUMULATOR)
            accumulated = tl.dot(
                of_logits.to(query_tile.dtype), query_tile, accumulated,
                input_precision=PRECISION, out_dtype=ACCUMULATOR,
            )  # fmt: skip
        of_expression = (part * batch + expression) * words * keys
        if channel_slice == 0:
            store_tile(
                word_logits + of_expression,
                of_words,
                row,
                column_of,
                1,
                keys,
                present,
                word_present,
            )
            store_tile(share + of_expression, shares, row, column_of, 1, keys, present, word_present)

        of_words = tl.zeros([KEYS, WORDS], ACCUMULATOR)
        shares = tl.zeros([KEYS, WORDS], ACCUMULATOR)
        if tl.load(any_direct + expression) > 0:
            for start in range(part * rows_per_part, last, ROWS):
                place = start + tl.arange(0, ROWS)
                place_mask = place < last
                direct_tile = load_tile(
                    direct_ratio + expression * places * words, place, column_of, words, 1,
                    place_mask, word_present,
                )  # fmt: skip
                largest_tile = load_tile(
                    direct_maximum + expression * places * words, place, column_of, words, 1,
                    place_mask, word_present,
                )  # fmt: skip
                if any_true(direct_tile > 0):
                    mean_tile = load_tile(
                        direct_mean + expression * places * words, place, column_of, words, 1,
                        place_mask, word_present,
                    )  # fmt: skip
                    mean = tl.load(own_delta + place, mask=place_mask, other=0.0)
                    gradient = products(
                        own_grad, place, grad_row_stride, grad_stride, place_mask,
                        own_value, row, value_row_stride, value_stride, present,
                        VALUE_WIDTH, CHUNK, PRECISION, ACCUMULATOR,
                    )  # fmt: skip
                    gradient = gradient - mean[:, None]
                    query_tile = load_tile(
                        own_query,
                        place,
                        channel,
                        query_row_stride,
                        query_stride,
                        place_mask,
                        inside,
                    )
                    if WIDE:
                        query_tile = query_tile.to(ACCUMULATOR)
                    for number in range(0, words):
                        token_ratio = column(direct_tile, number)
                        if tl.max(token_ratio, axis=0) > 0:
                            softmax = direct_softmax(
                                own_query, place, query_row_stride, query_stride, place_mask,
                                word_query + (expression * words + number) * WIDTH,
                                own_key, row, key_row_stride, key_stride, present,
                                own_mask, column(largest_tile, number), token_ratio,
                                WIDTH, CHUNK, MASKED, PRECISION, ACCUMULATOR,
                            )  # fmt: skip
                            centred = gradient - column(mean_tile, number)[:, None]
                            of_logits = softmax * centred
                            chosen = (column_of == number)[None, :]
                            of_words += tl.where(chosen, tl.sum(of_logits, axis=0)[:, None], 0.0)
                            shares += tl.where(chosen, tl.sum(softmax, axis=0)[:, None], 0.0)
                            accumulated = tl.dot(
                                tl.trans(of_logits).to(query_tile.dtype), query_tile, accumulated,
                                input_precision=PRECISION, out_dtype=ACCUMULATOR,
                            )  # fmt: skip
        if channel_slice == 0:
            store_tile(
                direct_logits + of_expression,
                of_words,
                row,
                column_of,
                1,
                keys,
                present,
                word_present,
            )
            store_tile(direct_share + of_expression, shares, row, column_of, 1, keys, present, word_present)
    store_tile(
        grad_key + (part * groups + group) * keys * WIDTH, accumulated,
        row, channel, WIDTH, 1, present, inside,
    )  # fmt: skip


def launch_keys(
    grad: Tensor,
    query: Tensor,
    keys: Keys,
    word_query: Tensor,
    weight: Tensor,
    groups: tuple[Tensor, Tensor] | None,
    image_index: Tensor | None,
    statistics: Statistics,
    gradients: RowGradients,
) -> tuple[Tensor, WordLogits]:
    """
    Args:
        grad, query, keys, word_query, weight, groups, image_index, statistics: As in `launch_values`.
        gradients: The result of `launch_rows` for these keys.

    Returns:
        The keys' gradient [parts, G, K, d], in parts to be summed and without the contribution of the words'
        logits, and the parts of the gradient of those logits; in the dtype of weight.
    """
    batch, number, width = word_query.shape
    places = query.shape[1]
    sets, count, value_width = keys.value.shape
    order, first = groups if groups is not None else (None, None)
    dtype, arch = query.dtype, architecture()
    tile = separable_tile("separable_keys", max(width, value_width), dtype, arch, number)
    blocks = triton.cdiv(count, tile.keys)
    parts, rows_per_part = row_splits(places, tile.rows, blocks * sets, arch)
    channels = slice_width(width, tile)
    grad_key = weight.new_empty(parts, sets, count, width)
    word_logits = WordLogits(*(weight.new_empty(parts, batch, number, count) for _ in range(4)))
    launch(
        _key_gradient_kernel,
        (blocks, sets, parts * triton.cdiv(width, channels)),
        grad,
        query,
        keys.key,
        keys.value,
        word_query,
        keys.exp_word,
        keys.mask,
        image_index,
        order,
        first,
        *statistics,
        *gradients,
        grad_key,
        *word_logits,
        places,
        number,
        count,
        sets,
        batch,
        rows_per_part,
        *grad.stride(),
        *query.stride(),
        *keys.key.stride(),
        *keys.value.stride(),
        WIDTH=width,
        VALUE_WIDTH=value_width,
        CHANNELS=channels,
        WORDS=word_block(number),
        ROWS=tile.rows,
        KEYS=tile.keys,
        CHUNK=tile.channels,
        GROUPED=groups is not None,
        INDEXED=image_index is not None,
        MASKED=keys.mask is not None,
        WIDE=dtype == torch.float16,
        PRECISION=precision(dtype),
        ACCUMULATOR=accumulator(dtype),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return grad_key, word_logits
