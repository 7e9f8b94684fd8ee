"""Backward pass of the separable attention: the gradient of the values, W^T grad with the mean softmax W.

One program computes one block of keys and loops over its image's expressions and their places, so no atomics are
needed. If too few programs would run to fill the GPU, places are split over the grid and summed afterwards.
"""

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
from ...triton.primitives import column, direct_softmax, load_tile, products, store_tile
from .row_statistics import Keys, Statistics
from .tile_sizes import separable_tile


@triton.jit
def _value_gradient_kernel(
    grad,  # [B, P, VALUE_WIDTH]
    query,  # [G', P, WIDTH]
    key,  # [G, K, WIDTH]
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
    grad_value,  # [parts, G, K, VALUE_WIDTH]
    places,
    words,
    keys,
    groups,
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
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    VALUES: tl.constexpr,
    WORDS: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUPED: tl.constexpr,
    INDEXED: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    """W^T grad for a block of keys."""
    slices = tl.cdiv(VALUE_WIDTH, VALUES)
    group = tl.program_id(1).to(tl.int64)
    part = tl.program_id(2) // slices
    channel = (tl.program_id(2) % slices) * VALUES + tl.arange(0, VALUES)
    inside = channel < VALUE_WIDTH
    row = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    present = row < keys
    column_of = tl.arange(0, WORDS)
    word_present = column_of < words
    own_key = key + group * key_batch_stride

    begin = group
    end = group + 1
    if GROUPED:
        begin = tl.load(first + group)
        end = tl.load(first + group + 1)
    accumulated = tl.zeros([KEYS, VALUES], ACCUMULATOR)
    for position in range(begin, end):
        expression = tl.load(order + position).to(tl.int64) if GROUPED else group
        image = tl.load(image_index + expression).to(tl.int64) if INDEXED else group
        own_query = query + image * query_batch_stride
        own_grad = grad + expression * grad_batch_stride
        own_mask = mask + expression * keys if MASKED else mask
        own_maximum = maximum + expression * places
        own_ratio = ratio + expression * places * words
        factor = load_tile(exp_word + expression * words * keys, row, column_of, 1, keys, present, word_present)
        last = tl.minimum(places, (part + 1) * rows_per_part)
        for start in range(part * rows_per_part, last, ROWS):
            place = start + tl.arange(0, ROWS)
            place_mask = place < last
            logits = products(
                own_key, row, key_row_stride, key_stride, present,
                own_query, place, query_row_stride, query_stride, place_mask,
                WIDTH, CHUNK, PRECISION, ACCUMULATOR,
            )  # fmt: skip
            largest = tl.load(own_maximum + place, mask=place_mask, other=0.0)
            ratio_tile = load_tile(own_ratio, column_of, place, 1, words, word_present, place_mask)
            mixed = tl.dot(factor, ratio_tile, input_precision=PRECISION, out_dtype=ACCUMULATOR)
            softmax = tl.exp(tl.minimum(logits - largest[None, :], 0.0)) * mixed
            grad_tile = load_tile(own_grad, place, channel, grad_row_stride, grad_stride, place_mask, inside)
            accumulated = tl.dot(
                softmax.to(grad_tile.dtype), grad_tile, accumulated,
                input_precision=PRECISION, out_dtype=ACCUMULATOR,
            )  # fmt: skip

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
                grad_tile = load_tile(own_grad, place, channel, grad_row_stride, grad_stride, place_mask, inside)
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
                        accumulated = tl.dot(
                            tl.trans(softmax).to(grad_tile.dtype), grad_tile, accumulated,
                            input_precision=PRECISION, out_dtype=ACCUMULATOR,
                        )  # fmt: skip
    store_tile(
        grad_value + (part * groups + group) * keys * VALUE_WIDTH, accumulated,
        row, channel, VALUE_WIDTH, 1, present, inside,
    )  # fmt: skip


def launch_values(
    grad: Tensor,
    query: Tensor,
    keys: Keys,
    word_query: Tensor,
    weight: Tensor,
    groups: tuple[Tensor, Tensor] | None,
    image_index: Tensor | None,
    statistics: Statistics,
) -> Tensor:
    """
    Args:
        grad: [B, P, e], of the result.
        query: [G', P, d], the places' queries.
        keys: The places or the words as keys.
        word_query: [B, N, d], contiguous, zero on padding.
        weight: [B, N].
        groups: The expressions sorted by image and the first of each image, where the keys are places that
            expressions share; None: each expression has keys of its own.
        image_index: [B], where expressions with keys of their own share queries.
        statistics: Forward's, of the softmax over these keys.

    Returns:
        [G, K, e] in the dtype of weight.
    """
    number, width = word_query.shape[1:]
    places = query.shape[1]
    sets, count, value_width = keys.value.shape
    order, first = groups if groups is not None else (None, None)
    dtype, arch = query.dtype, architecture()
    tile = separable_tile("separable_values", max(width, value_width), dtype, arch, number)
    blocks = triton.cdiv(count, tile.keys)
    parts, rows_per_part = row_splits(places, tile.rows, blocks * sets, arch)
    values = slice_width(value_width, tile)
    grad_value = weight.new_empty(parts, sets, count, value_width)
    launch(
        _value_gradient_kernel,
        (blocks, sets, parts * triton.cdiv(value_width, values)),
        grad,
        query,
        keys.key,
        word_query,
        keys.exp_word,
        keys.mask,
        image_index,
        order,
        first,
        *statistics,
        grad_value,
        places,
        number,
        count,
        sets,
        rows_per_part,
        *grad.stride(),
        *query.stride(),
        *keys.key.stride(),
        WIDTH=width,
        VALUE_WIDTH=value_width,
        VALUES=values,
        WORDS=word_block(number),
        ROWS=tile.rows,
        KEYS=tile.keys,
        CHUNK=tile.channels,
        GROUPED=groups is not None,
        INDEXED=image_index is not None,
        MASKED=keys.mask is not None,
        PRECISION=precision(dtype),
        ACCUMULATOR=accumulator(dtype),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return grad_value.sum(0)
