"""The separable attention's backward, the queries' side: the gradient of the places' queries.

For the softmax over one set of keys, with T = E_A * (grad value^T - delta):

    G = ((T E_C^T) * R) / Z,    gradient of A = T * (R E_C) - E_A * (G E_C)

and tokens in the direct form have the gradient of a plain softmax. G and what else the keys' side needs is kept.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import accumulator, architecture, launch, precision
from .primitives import any_true, column, direct_softmax, load_tile, products, store_tile
from .separable_forward import Keys, Statistics
from .tiles import separable_tile, slice_width, word_block


class RowGradients(NamedTuple):
    """What the keys' side needs of the gradients of one softmax."""

    delta: Tensor  # [B, P], the mean of grad value^T under the softmax
    correction: Tensor  # [B, P, N], G
    direct_mean: Tensor  # [B, P, N], of grad value^T - delta under a direct token's softmax


@triton.jit
def _mean_gradient(
    rows, row_mask, grad, grad_row_stride, grad_stride,
    query, query_row_stride, query_stride,
    key, value, exp_word, keys, words, maximum, ratio,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, WORDS: tl.constexpr, KEYS: tl.constexpr,
    CHUNK: tl.constexpr, PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Delta of the softmax over words, [ROWS]."""
    column_of = tl.arange(0, WORDS)
    word_mask = column_of < words
    delta = tl.zeros([rows.shape[0]], ACCUMULATOR)
    for start in range(0, keys, KEYS):
        row = start + tl.arange(0, KEYS)
        present = row < keys
        logits = products(
            query, rows, query_row_stride, query_stride, row_mask,
            key, row, WIDTH, 1, present, WIDTH, CHUNK, PRECISION, ACCUMULATOR,
        )  # fmt: skip
        gradient = products(
            grad, rows, grad_row_stride, grad_stride, row_mask,
            value, row, VALUE_WIDTH, 1, present, VALUE_WIDTH, CHUNK, PRECISION, ACCUMULATOR,
        )  # fmt: skip
        factor = load_tile(exp_word, column_of, row, keys, 1, word_mask, present)
        mixed = tl.dot(ratio, factor, input_precision=PRECISION, out_dtype=ACCUMULATOR)
        softmax = tl.exp(tl.minimum(logits - maximum[:, None], 0.0)) * mixed
        delta += tl.sum(softmax * gradient, axis=1)
    return delta


@triton.jit
def _gradient_of_rows(
    accumulated, rows, row_mask, store_statistics,
    grad, grad_row_stride, grad_stride, delta,
    query, query_row_stride, query_stride, word_query, words, weight,
    key, key_row_stride, key_stride, value, value_row_stride, value_stride,
    exp_word, mask, keys, maximum, ratio, direct, any_direct,
    correction_out, direct_mean_out, channel_start,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, CHANNELS: tl.constexpr, WORDS: tl.constexpr,
    KEYS: tl.constexpr, CHUNK: tl.constexpr, MASKED: tl.constexpr, WIDE: tl.constexpr,
    PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Add the gradient of the queries through one softmax to [ROWS, CHANNELS]."""
    column_of = tl.arange(0, WORDS)
    word_mask = column_of < words
    channel = channel_start + tl.arange(0, CHANNELS)
    inside = channel < WIDTH

    summed = tl.zeros([rows.shape[0], WORDS], ACCUMULATOR)  # T E_C^T
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
        exp_place = tl.exp(tl.minimum(logits - maximum[:, None], 0.0))
        factor = load_tile(exp_word, row, column_of, 1, keys, present, word_mask)
        summed = tl.dot(
            exp_place * (gradient - delta[:, None]), factor, summed,
            input_precision=PRECISION, out_dtype=ACCUMULATOR,
        )  # fmt: skip
    # R / Z overflows near the floor, so the product with the sum comes first.
    correction = summed * ratio * (ratio / weight)

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
        exp_place = tl.exp(tl.minimum(logits - maximum[:, None], 0.0))
        factor = load_tile(exp_word, column_of, row, keys, 1, word_mask, present)
        mixed = tl.dot(ratio, factor, input_precision=PRECISION, out_dtype=ACCUMULATOR)
        corrected = tl.dot(correction, factor, input_precision=PRECISION, out_dtype=ACCUMULATOR)
        of_logits = exp_place * ((gradient - delta[:, None]) * mixed - corrected)
        of_logits = tl.where(present[None, :], of_logits, 0.0)
        key_tile = load_tile(key, row, channel, key_row_stride, key_stride, present, inside)
        if WIDE:
            key_tile = key_tile.to(ACCUMULATOR)
        accumulated = tl.dot(
            of_logits.to(key_tile.dtype), key_tile, accumulated,
            input_precision=PRECISION, out_dtype=ACCUMULATOR,
        )  # fmt: skip

    direct_mean = tl.zeros([rows.shape[0], WORDS], ACCUMULATOR)
    if any_direct:
        for number in range(0, words):
            chosen = (column_of == number)[None, :] & (direct < float("inf"))
            if any_true(chosen):
                word = word_query + number * WIDTH
                logsumexp = column(direct, number)
                mean = tl.zeros([rows.shape[0]], ACCUMULATOR)
                for start in range(0, keys, KEYS):
                    row = start + tl.arange(0, KEYS)
                    present = row < keys
                    softmax = direct_softmax(
                        query, rows, query_row_stride, query_stride, row_mask, word,
                        key, row, key_row_stride, key_stride, present, mask, logsumexp,
                        WIDTH, CHUNK, MASKED, PRECISION, ACCUMULATOR,
                    )  # fmt: skip
                    gradient = products(
                        grad, rows, grad_row_stride, grad_stride, row_mask,
                        value, row, value_row_stride, value_stride, present,
                        VALUE_WIDTH, CHUNK, PRECISION, ACCUMULATOR,
                    )  # fmt: skip
                    mean += tl.sum(softmax * (gradient - delta[:, None]), axis=1)
                direct_mean = tl.where(chosen, mean[:, None], direct_mean)
                for start in range(0, keys, KEYS):
                    row = start + tl.arange(0, KEYS)
                    present = row < keys
                    softmax = direct_softmax(
                        query, rows, query_row_stride, query_stride, row_mask, word,
                        key, row, key_row_stride, key_stride, present, mask, logsumexp,
                        WIDTH, CHUNK, MASKED, PRECISION, ACCUMULATOR,
                    )  # fmt: skip
                    gradient = products(
                        grad, rows, grad_row_stride, grad_stride, row_mask,
                        value, row, value_row_stride, value_stride, present,
                        VALUE_WIDTH, CHUNK, PRECISION, ACCUMULATOR,
                    )  # fmt: skip
                    of_logits = weight * softmax * (gradient - (delta + mean)[:, None])
                    key_tile = load_tile(
                        key, row, channel, key_row_stride, key_stride, present, inside
                    )
                    if WIDE:
                        key_tile = key_tile.to(ACCUMULATOR)
                    accumulated = tl.dot(
                        of_logits.to(key_tile.dtype), key_tile, accumulated,
                        input_precision=PRECISION, out_dtype=ACCUMULATOR,
                    )  # fmt: skip

    if store_statistics:
        store_tile(correction_out, correction, rows, column_of, words, 1, row_mask, word_mask)
        store_tile(direct_mean_out, direct_mean, rows, column_of, words, 1, row_mask, word_mask)
    return accumulated


@triton.jit
def _separable_rows_kernel(
    grad,  # [B, P, VALUE_WIDTH]
    attended,  # [B, P, VALUE_WIDTH]
    offset,  # [B, VALUE_WIDTH], what forward added to the result
    query,  # [G, P, WIDTH]
    place_key,  # [G, P, WIDTH]
    place_value,  # [G, P, VALUE_WIDTH]
    word_query,  # [B, N, WIDTH]
    word_key,  # [B, N, WIDTH]
    word_value,  # [B, N, VALUE_WIDTH]
    weight,  # [B, N]
    place_exp_word,  # [B, N, P]
    word_exp_word,  # [B, N, N]
    word_mask,  # [B, N]
    order,  # [B], the sentences sorted by picture
    first,  # [G + 1], where each picture's sentences begin in it
    grad_query,  # [G, P, WIDTH]
    place_maximum,
    place_ratio,
    place_direct,
    place_any_direct,
    word_maximum,
    word_ratio,
    word_direct,
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
    block = tl.program_id(0)
    group = tl.program_id(1).to(tl.int64)
    channel_start = tl.program_id(2) * CHANNELS
    is_first = tl.program_id(2) == 0
    rows = block * ROWS + tl.arange(0, ROWS)
    row_mask = rows < places
    column_of = tl.arange(0, WORDS)
    word_present = column_of < words
    own_query = query + group * query_batch_stride
    own_key = place_key + group * key_batch_stride
    own_value = place_value + group * value_batch_stride

    if GROUPED:
        begin = tl.load(first + group)
        end = tl.load(first + group + 1)
    else:
        begin = group
        end = group + 1
    accumulated = tl.zeros([ROWS, CHANNELS], ACCUMULATOR)
    for position in range(begin, end):
        sentence = tl.load(order + position).to(tl.int64) if GROUPED else group
        of_sentence = sentence * places
        own_grad = grad + sentence * grad_batch_stride
        own_word_query = word_query + sentence * words * WIDTH
        own_word_key = word_key + sentence * words * WIDTH
        own_word_value = word_value + sentence * words * VALUE_WIDTH
        own_word_exp = word_exp_word + sentence * words * words
        own_mask = word_mask + sentence * words
        weights = tl.load(weight + sentence * words + column_of, mask=word_present, other=0.0)
        scale = tl.max(weights, axis=0)  # all true words weigh the same

        total_delta = tl.zeros([ROWS], ACCUMULATOR)
        for start in range(0, VALUE_WIDTH, CHUNK):
            channels = start + tl.arange(0, CHUNK)
            inside = channels < VALUE_WIDTH
            grad_tile = load_tile(
                own_grad, rows, channels, grad_row_stride, grad_stride, row_mask, inside
            )
            attended_tile = load_tile(
                attended + of_sentence * VALUE_WIDTH,
                rows,
                channels,
                VALUE_WIDTH,
                1,
                row_mask,
                inside,
            )
            added = tl.load(offset + sentence * VALUE_WIDTH + channels, mask=inside, other=0.0)
            centred = attended_tile.to(ACCUMULATOR) - added.to(ACCUMULATOR)[None, :]
            total_delta += tl.sum(grad_tile.to(ACCUMULATOR) * centred, axis=1)

        maximum = tl.load(word_maximum + of_sentence + rows, mask=row_mask, other=0.0)
        ratio = load_tile(
            word_ratio + of_sentence * words, rows, column_of, words, 1, row_mask, word_present
        )
        direct = load_tile(
            word_direct + of_sentence * words, rows, column_of, words, 1, row_mask, word_present
        )
        direct = tl.where(row_mask[:, None] & word_present[None, :], direct, float("inf"))
        delta = _mean_gradient(
            rows, row_mask, own_grad, grad_row_stride, grad_stride,
            own_query, query_row_stride, query_stride,
            own_word_key, own_word_value, own_word_exp, words, words, maximum, ratio,
            WIDTH, VALUE_WIDTH, WORDS, KEYS, CHUNK, PRECISION, ACCUMULATOR,
        )  # fmt: skip
        if is_first:
            tl.store(word_delta + of_sentence + rows, delta, mask=row_mask)
        accumulated = _gradient_of_rows(
            accumulated, rows, row_mask, is_first,
            own_grad, grad_row_stride, grad_stride, delta,
            own_query, query_row_stride, query_stride, own_word_query, words, scale,
            own_word_key, WIDTH, 1, own_word_value, VALUE_WIDTH, 1,
            own_word_exp, own_mask, words, maximum, ratio, direct, tl.load(word_any_direct + sentence) > 0,
            word_correction + of_sentence * words, word_direct_mean + of_sentence * words,
            channel_start, WIDTH, VALUE_WIDTH, CHANNELS, WORDS, KEYS, CHUNK, True, WIDE,
            PRECISION, ACCUMULATOR,
        )  # fmt: skip

        delta = total_delta - delta
        maximum = tl.load(place_maximum + of_sentence + rows, mask=row_mask, other=0.0)
        ratio = load_tile(
            place_ratio + of_sentence * words, rows, column_of, words, 1, row_mask, word_present
        )
        direct = load_tile(
            place_direct + of_sentence * words, rows, column_of, words, 1, row_mask, word_present
        )
        direct = tl.where(row_mask[:, None] & word_present[None, :], direct, float("inf"))
        if is_first:
            tl.store(place_delta + of_sentence + rows, delta, mask=row_mask)
        accumulated = _gradient_of_rows(
            accumulated, rows, row_mask, is_first,
            own_grad, grad_row_stride, grad_stride, delta,
            own_query, query_row_stride, query_stride, own_word_query, words, scale,
            own_key, key_row_stride, key_stride, own_value, value_row_stride, value_stride,
            place_exp_word + sentence * words * places, own_mask, places, maximum, ratio, direct,
            tl.load(place_any_direct + sentence) > 0,
            place_correction + of_sentence * words, place_direct_mean + of_sentence * words,
            channel_start, WIDTH, VALUE_WIDTH, CHANNELS, WORDS, KEYS, CHUNK, False, WIDE,
            PRECISION, ACCUMULATOR,
        )  # fmt: skip
    channel = channel_start + tl.arange(0, CHANNELS)
    store_tile(
        grad_query + group * places * WIDTH, accumulated, rows, channel, WIDTH, 1,
        row_mask, channel < WIDTH,
    )  # fmt: skip


def launch_rows(
    grad: Tensor,
    attended: Tensor,
    offset: Tensor,
    query: Tensor,
    places: Keys,
    word_query: Tensor,
    words: Keys,
    weight: Tensor,
    groups: tuple[Tensor, Tensor] | None,
    of_places: Statistics,
    of_words: Statistics,
) -> tuple[Tensor, RowGradients, RowGradients]:
    """
    Args:
        grad: [B, P, e], of the result.
        attended: [B, P, e], the result.
        offset: [B, e], what forward added to the result.
        query, places, word_query, words, weight: as in forward.
        groups: the sentences sorted by picture and where each picture's begin; None: one sentence a picture.
        of_places, of_words: forward's statistics, `any_direct` reduced to [B].

    Returns:
        The gradient [G, P, d] of the query, and what the keys' side needs, of places and of words.
    """
    batch, number, width = word_query.shape
    count, value_width = places.value.shape[1:]
    tile = separable_tile("separable_rows", max(width, value_width), query.dtype, architecture())
    channels = slice_width(width)
    grad_query = torch.empty_like(query, memory_format=torch.contiguous_format)
    gradients = [
        RowGradients(
            weight.new_empty(batch, count),
            weight.new_empty(batch, count, number),
            weight.new_empty(batch, count, number),
        )
        for _ in range(2)
    ]
    order, first = groups if groups is not None else (None, None)
    launch(
        _separable_rows_kernel,
        (triton.cdiv(count, tile.rows), len(query), triton.cdiv(width, channels)),
        grad,
        attended,
        offset,
        query,
        places.key,
        places.value,
        word_query,
        words.key,
        words.value,
        weight,
        places.exp_word,
        words.exp_word,
        words.mask,
        order,
        first,
        grad_query,
        *of_places,
        *of_words,
        *gradients[0],
        *gradients[1],
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
    return grad_query, gradients[0], gradients[1]
