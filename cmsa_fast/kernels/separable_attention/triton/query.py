"""Backward pass of the separable attention: the gradient of the places' queries.

Through the softmax over one set of keys, with T = E_A * (grad value^T - delta), the gradient is

    (T * (R E_C) - E_A * (G E_C)) key

and for tokens in the direct form it is that of a plain softmax.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...triton.launch import accumulator, architecture, launch, precision, slice_width, word_block
from ...triton.primitives import any_true, column, direct_softmax, load_tile, products, store_tile
from .row_statistics import Keys, Statistics
from .rows import RowGradients
from .tile_sizes import separable_tile


@triton.jit
def _add_query_gradient(
    accumulated, rows, row_mask, grad, grad_row_stride, grad_stride,
    query, query_row_stride, query_stride, word_query, words,
    key, key_row_stride, key_stride, value, value_row_stride, value_stride,
    exp_word, mask, keys, maximum, ratio, direct_maximum, direct_ratio, any_direct,
    delta, correction, direct_mean, channel,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, WORDS: tl.constexpr, KEYS: tl.constexpr,
    CHUNK: tl.constexpr, MASKED: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Add the gradient of the queries through one softmax to [ROWS, CHANNELS]."""
    column_of = tl.arange(0, WORDS)
    word_mask = column_of < words
    inside = channel < WIDTH
    maximum_of = tl.load(maximum + rows, mask=row_mask, other=0.0)
    delta_of = tl.load(delta + rows, mask=row_mask, other=0.0)
    ratio_tile = load_tile(ratio, rows, column_of, words, 1, row_mask, word_mask)
    correction_tile = load_tile(correction, rows, column_of, words, 1, row_mask, word_mask)
    for start in range(0, keys, KEYS):
        row = start + tl.arange(0, KEYS)
        present = row < keys
        logits = products(
            query, rows, query_row_stride, query_stride, row_mask,
            key, row, key_row_stride, key_stride, present, WIDTH, CHUNK, PRECISION, ACCUMULATOR,
        )  # fmt: skip
        gradient = products(
            grad, rows, grad_row_stride, grad_stride, row_mask,
            value, row, value_row_stride, value_stride, present,
            VALUE_WIDTH, CHUNK, PRECISION, ACCUMULATOR,
        )  # fmt: skip
        exp_place = tl.exp(tl.minimum(logits - maximum_of[:, None], 0.0))
        # Where a key is masked, its E_C is zero.
        factor = load_tile(exp_word, column_of, row, keys, 1, word_mask, present)
        mixed = tl.dot(ratio_tile, factor, input_precision=PRECISION, out_dtype=ACCUMULATOR)
        corrected = tl.dot(correction_tile, factor, input_precision=PRECISION, out_dtype=ACCUMULATOR)
        of_logits = exp_place * ((gradient - delta_of[:, None]) * mixed - corrected)
        key_tile = load_tile(key, row, channel, key_row_stride, key_stride, present, inside)
        if WIDE:
            key_tile = key_tile.to(ACCUMULATOR)
        accumulated = tl.dot(
            of_logits.to(key_tile.dtype), key_tile, accumulated,
            input_precision=PRECISION, out_dtype=ACCUMULATOR,
        )  # fmt: skip

    if tl.load(any_direct) > 0:
        direct_tile = load_tile(direct_ratio, rows, column_of, words, 1, row_mask, word_mask)
        if any_true(direct_tile > 0):
            largest_tile = load_tile(direct_maximum, rows, column_of, words, 1, row_mask, word_mask)
            mean_tile = load_tile(direct_mean, rows, column_of, words, 1, row_mask, word_mask)
            for number in range(0, words):
                token_ratio = column(direct_tile, number)
                if tl.max(token_ratio, axis=0) > 0:
                    mean = column(mean_tile, number)
                    for start in range(0, keys, KEYS):
                        row = start + tl.arange(0, KEYS)
                        present = row < keys
                        softmax = direct_softmax(
                            query, rows, query_row_stride, query_stride, row_mask,
                            word_query + number * WIDTH,
                            key, row, key_row_stride, key_stride, present, mask,
                            column(largest_tile, number), token_ratio,
                            WIDTH, CHUNK, MASKED, PRECISION, ACCUMULATOR,
                        )  # fmt: skip
                        gradient = products(
                            grad, rows, grad_row_stride, grad_stride, row_mask,
                            value, row, value_row_stride, value_stride, present,
                            VALUE_WIDTH, CHUNK, PRECISION, ACCUMULATOR,
                        )  # fmt: skip
                        # Subtracted in the order in which the mean was formed: a saturated token gives exactly 0.
                        of_logits = softmax * ((gradient - delta_of[:, None]) - mean[:, None])
                        key_tile = load_tile(key, row, channel, key_row_stride, key_stride, present, inside)
                        if WIDE:
                            key_tile = key_tile.to(ACCUMULATOR)
                        accumulated = tl.dot(
                            of_logits.to(key_tile.dtype), key_tile, accumulated,
                            input_precision=PRECISION, out_dtype=ACCUMULATOR,
                        )  # fmt: skip
    return accumulated


@triton.jit
def _separable_query_kernel(
    grad,  # [B, P, VALUE_WIDTH]
    query,  # [G, P, WIDTH]
    place_key,  # [G, P, WIDTH]
    place_value,  # [G, P, VALUE_WIDTH]
    word_query,  # [B, N, WIDTH]
    word_key,  # [B, N, WIDTH]
    word_value,  # [B, N, VALUE_WIDTH]
    place_exp_word,  # [B, N, P]
    word_exp_word,  # [B, N, N]
    word_mask,  # [B, N]
    order,  # [B], the expressions sorted by image
    first,  # [G + 1], where each image's begin in it
    grad_query,  # [G, P, WIDTH]
    place_maximum,
    place_ratio,
    place_direct_maximum,
    place_direct_ratio,
    place_any_direct,
    word_maximum,
    word_ratio,
    word_direct_maximum,
    word_direct_ratio,
    word_any_direct,
    place_delta,
    place_correction,
    place_direct_mean,
    word_delta,
    word_correction,
    word_direct_mean,
    places,
    words,
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
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    group = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_mask = rows < places
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    own_query = query + group * query_batch_stride

    begin = group
    end = group + 1
    if GROUPED:
        begin = tl.load(first + group)
        end = tl.load(first + group + 1)
    accumulated = tl.zeros([ROWS, CHANNELS], ACCUMULATOR)
    for position in range(begin, end):
        expression = tl.load(order + position).to(tl.int64) if GROUPED else group
        of_expression = expression * places
        own_grad = grad + expression * grad_batch_stride
        own_word_query = word_query + expression * words * WIDTH
        own_mask = word_mask + expression * words
        accumulated = _add_query_gradient(
            accumulated, rows, row_mask, own_grad, grad_row_stride, grad_stride,
            own_query, query_row_stride, query_stride, own_word_query, words,
            word_key + expression * words * WIDTH, WIDTH, 1,
            word_value + expression * words * VALUE_WIDTH, VALUE_WIDTH, 1,
            word_exp_word + expression * words * words, own_mask, words,
            word_maximum + of_expression, word_ratio + of_expression * words,
            word_direct_maximum + of_expression * words,
            word_direct_ratio + of_expression * words, word_any_direct + expression,
            word_delta + of_expression, word_correction + of_expression * words,
            word_direct_mean + of_expression * words, channel,
            WIDTH, VALUE_WIDTH, WORDS, KEYS, CHUNK, True, WIDE, PRECISION, ACCUMULATOR,
        )  # fmt: skip
        accumulated = _add_query_gradient(
            accumulated, rows, row_mask, own_grad, grad_row_stride, grad_stride,
            own_query, query_row_stride, query_stride, own_word_query, words,
            place_key + group * key_batch_stride, key_row_stride, key_stride,
            place_value + group * value_batch_stride, value_row_stride, value_stride,
            place_exp_word + expression * words * places, own_mask, places,
            place_maximum + of_expression, place_ratio + of_expression * words,
            place_direct_maximum + of_expression * words,
            place_direct_ratio + of_expression * words, place_any_direct + expression,
            place_delta + of_expression, place_correction + of_expression * words,
            place_direct_mean + of_expression * words, channel,
            WIDTH, VALUE_WIDTH, WORDS, KEYS, CHUNK, False, WIDE, PRECISION, ACCUMULATOR,
        )  # fmt: skip
    store_tile(
        grad_query + group * places * WIDTH, accumulated, rows, channel, WIDTH, 1,
        row_mask, channel < WIDTH,
    )  # fmt: skip


def launch_query(
    grad: Tensor,
    query: Tensor,
    places: Keys,
    word_query: Tensor,
    words: Keys,
    weight: Tensor,
    groups: tuple[Tensor, Tensor] | None,
    of_places: tuple[Statistics, RowGradients],
    of_words: tuple[Statistics, RowGradients],
) -> Tensor:
    """
    Args:
        grad: [B, P, e], of the result.
        query, places, word_query, words, weight: As in forward.
        groups: The expressions sorted by image and the first of each image; None: one expression per image.
        of_places, of_words: of the two softmaxes.

    Returns:
        [G, P, d] in the query's dtype.
    """
    number, width = word_query.shape[1:]
    count, value_width = places.value.shape[1:]
    tile = separable_tile(
        "separable_query",
        max(width, value_width),
        query.dtype,
        architecture(),
        number,
        grouped=groups is not None,
    )
    channels = slice_width(width, tile)
    grad_query = torch.empty_like(query, memory_format=torch.contiguous_format)
    order, first = groups if groups is not None else (None, None)
    launch(
        _separable_query_kernel,
        (triton.cdiv(count, tile.rows), len(query), triton.cdiv(width, channels)),
        grad,
        query,
        places.key,
        places.value,
        word_query,
        words.key,
        words.value,
        places.exp_word,
        words.exp_word,
        words.mask,
        order,
        first,
        grad_query,
        *of_places[0],
        *of_words[0],
        *of_places[1],
        *of_words[1],
        count,
        number,
        *grad.stride(),
        *query.stride(),
        *places.key.stride(),
        *places.value.stride(),
        WIDTH=width,
        VALUE_WIDTH=value_width,
        CHANNELS=channels,
        WORDS=word_block(number),
        ROWS=tile.rows,
        KEYS=tile.keys,
        CHUNK=tile.channels,
        GROUPED=groups is not None,
        WIDE=query.dtype == torch.float16,
        PRECISION=precision(query.dtype),
        ACCUMULATOR=accumulator(query.dtype),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return grad_query
