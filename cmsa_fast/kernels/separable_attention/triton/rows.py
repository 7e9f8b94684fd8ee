"""Backward preprocessing of the separable attention: per-row delta and G, used by all gradients.

For the softmax over one set of keys, with T = E_A * (grad value^T - delta),

    G = ((T E_C^T) * R) / Z

and for tokens in the direct form the mean of grad value^T - delta under their softmax. The
gradients are invariant to delta; the mean of grad value^T under the softmax gives the smallest rounding error.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ...triton.launch import accumulator, architecture, launch, precision, word_block
from ...triton.primitives import any_true, column, direct_softmax, load_tile, products, store_tile
from .row_statistics import Keys, Statistics
from .tile_sizes import separable_tile


class RowGradients(NamedTuple):
    """Per-row values for the gradients of the softmax over one set of keys."""

    delta: Tensor  # [B, P]
    correction: Tensor  # [B, P, N], G
    direct_mean: Tensor  # [B, P, N]


@triton.jit
def _attended_gradient(
    rows, row_mask, grad, grad_row_stride, grad_stride, attended, offset,
    VALUE_WIDTH: tl.constexpr, CHUNK: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """The sum of grad * (attended - offset) over channels, [ROWS]."""
    total = tl.zeros([rows.shape[0]], ACCUMULATOR)
    for start in range(0, VALUE_WIDTH, CHUNK):
        channel = start + tl.arange(0, CHUNK)
        inside = channel < VALUE_WIDTH
        grad_tile = load_tile(grad, rows, channel, grad_row_stride, grad_stride, row_mask, inside)
        attended_tile = load_tile(attended, rows, channel, VALUE_WIDTH, 1, row_mask, inside)
        added = tl.load(offset + channel, mask=inside, other=0.0).to(ACCUMULATOR)
        centred = attended_tile.to(ACCUMULATOR) - added[None, :]
        total += tl.sum(grad_tile.to(ACCUMULATOR) * centred, axis=1)
    return total


@triton.jit
def _mean_gradient(
    rows, row_mask, grad, grad_row_stride, grad_stride, query, query_row_stride, query_stride,
    key, value, exp_word, keys, words, maximum, ratio,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, WORDS: tl.constexpr, KEYS: tl.constexpr,
    CHUNK: tl.constexpr, PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """The mean of grad value^T under the softmax over words, direct tokens left out, [ROWS]."""
    column_of = tl.arange(0, WORDS)
    word_mask = column_of < words
    maximum_of = tl.load(maximum + rows, mask=row_mask, other=0.0)
    ratio_tile = load_tile(ratio, rows, column_of, words, 1, row_mask, word_mask)
    mean = tl.zeros([rows.shape[0]], ACCUMULATOR)
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
        mixed = tl.dot(ratio_tile, factor, input_precision=PRECISION, out_dtype=ACCUMULATOR)
        softmax = tl.exp(tl.minimum(logits - maximum_of[:, None], 0.0)) * mixed
        mean += tl.sum(softmax * gradient, axis=1)
    return mean


@triton.jit
def _row_gradients(
    rows, row_mask, grad, grad_row_stride, grad_stride, delta,
    query, query_row_stride, query_stride, word_query, words, weight,
    key, key_row_stride, key_stride, value, value_row_stride, value_stride,
    exp_word, mask, keys, maximum, ratio, direct_maximum, direct_ratio, any_direct,
    delta_out, correction_out, direct_mean_out,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, WORDS: tl.constexpr, KEYS: tl.constexpr,
    CHUNK: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    column_of = tl.arange(0, WORDS)
    word_mask = column_of < words
    maximum_of = tl.load(maximum + rows, mask=row_mask, other=0.0)
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
        exp_place = tl.exp(tl.minimum(logits - maximum_of[:, None], 0.0))
        factor = load_tile(exp_word, row, column_of, 1, keys, present, word_mask)
        summed = tl.dot(
            exp_place * (gradient - delta[:, None]), factor, summed,
            input_precision=PRECISION, out_dtype=ACCUMULATOR,
        )  # fmt: skip
    ratio_tile = load_tile(ratio, rows, column_of, words, 1, row_mask, word_mask)
    # R / Z overflows near the floor, so the product with the sum comes first.
    correction = summed * ratio_tile * (ratio_tile / weight)

    direct_mean = tl.zeros([rows.shape[0], WORDS], ACCUMULATOR)
    if tl.load(any_direct) > 0:
        direct_tile = load_tile(direct_ratio, rows, column_of, words, 1, row_mask, word_mask)
        if any_true(direct_tile > 0):
            largest_tile = load_tile(direct_maximum, rows, column_of, words, 1, row_mask, word_mask)
            for number in range(0, words):
                token_ratio = column(direct_tile, number)
                if tl.max(token_ratio, axis=0) > 0:
                    mean = tl.zeros([rows.shape[0]], ACCUMULATOR)
                    for start in range(0, keys, KEYS):
                        row = start + tl.arange(0, KEYS)
                        present = row < keys
                        softmax = direct_softmax(
                            query, rows, query_row_stride, query_stride, row_mask,
                            word_query + number * WIDTH,
                            key, row, key_row_stride, key_stride, present, mask,
                            column(largest_tile, number), token_ratio / weight,
                            WIDTH, CHUNK, MASKED, PRECISION, ACCUMULATOR,
                        )  # fmt: skip
                        gradient = products(
                            grad, rows, grad_row_stride, grad_stride, row_mask,
                            value, row, value_row_stride, value_stride, present,
                            VALUE_WIDTH, CHUNK, PRECISION, ACCUMULATOR,
                        )  # fmt: skip
                        mean += tl.sum(softmax * (gradient - delta[:, None]), axis=1)
                    chosen = (column_of == number)[None, :]
                    direct_mean = tl.where(chosen, mean[:, None], direct_mean)

    tl.store(delta_out + rows, delta, mask=row_mask)
    store_tile(correction_out, correction, rows, column_of, words, 1, row_mask, word_mask)
    store_tile(direct_mean_out, direct_mean, rows, column_of, words, 1, row_mask, word_mask)


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
    image_index,  # [B]
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
    WORDS: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    CHUNK: tl.constexpr,
    GROUPED: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    expression = tl.program_id(1).to(tl.int64)
    group = tl.load(image_index + expression).to(tl.int64) if GROUPED else expression
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_mask = rows < places
    number = tl.arange(0, WORDS)
    # All real words have the same weight.
    scale = tl.max(tl.load(weight + expression * words + number, mask=number < words, other=0.0), 0)
    of_expression = expression * places
    own_grad = grad + expression * grad_batch_stride
    own_query = query + group * query_batch_stride
    own_word_query = word_query + expression * words * WIDTH
    own_word_key = word_key + expression * words * WIDTH
    own_word_value = word_value + expression * words * VALUE_WIDTH
    own_word_exp = word_exp_word + expression * words * words
    own_mask = word_mask + expression * words

    total = _attended_gradient(
        rows, row_mask, own_grad, grad_row_stride, grad_stride,
        attended + of_expression * VALUE_WIDTH, offset + expression * VALUE_WIDTH,
        VALUE_WIDTH, CHUNK, ACCUMULATOR,
    )  # fmt: skip
    of_words = _mean_gradient(
        rows, row_mask, own_grad, grad_row_stride, grad_stride,
        own_query, query_row_stride, query_stride, own_word_key, own_word_value, own_word_exp,
        words, words, word_maximum + of_expression, word_ratio + of_expression * words,
        WIDTH, VALUE_WIDTH, WORDS, KEYS, CHUNK, PRECISION, ACCUMULATOR,
    )  # fmt: skip
    _row_gradients(
        rows, row_mask, own_grad, grad_row_stride, grad_stride, of_words,
        own_query, query_row_stride, query_stride, own_word_query, words, scale,
        own_word_key, WIDTH, 1, own_word_value, VALUE_WIDTH, 1, own_word_exp, own_mask, words,
        word_maximum + of_expression, word_ratio + of_expression * words,
        word_direct_maximum + of_expression * words,
        word_direct_ratio + of_expression * words, word_any_direct + expression, word_delta + of_expression,
        word_correction + of_expression * words, word_direct_mean + of_expression * words,
        WIDTH, VALUE_WIDTH, WORDS, KEYS, CHUNK, True, PRECISION, ACCUMULATOR,
    )  # fmt: skip
    _row_gradients(
        rows, row_mask, own_grad, grad_row_stride, grad_stride, total - of_words,
        own_query, query_row_stride, query_stride, own_word_query, words, scale,
        place_key + group * key_batch_stride, key_row_stride, key_stride,
        place_value + group * value_batch_stride, value_row_stride, value_stride,
        place_exp_word + expression * words * places, own_mask, places,
        place_maximum + of_expression, place_ratio + of_expression * words,
        place_direct_maximum + of_expression * words,
        place_direct_ratio + of_expression * words, place_any_direct + expression, place_delta + of_expression,
        place_correction + of_expression * words, place_direct_mean + of_expression * words,
        WIDTH, VALUE_WIDTH, WORDS, KEYS, CHUNK, False, PRECISION, ACCUMULATOR,
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
    of_places: Statistics,
    of_words: Statistics,
) -> tuple[RowGradients, RowGradients]:
    """
    Args:
        grad: [B, P, e], of the result.
        attended: [B, P, e], the result, contiguous.
        offset: [B, e], what forward added to the result.
        query, places, word_query, words, weight: As in forward.
        of_places, of_words: Forward's statistics.

    Returns:
        The per-row values of the softmax over places and of that over words.
    """
    batch, number, width = word_query.shape
    count, value_width = places.value.shape[1:]
    tile = separable_tile("separable_rows", max(width, value_width), query.dtype, architecture())
    gradients = [
        RowGradients(
            weight.new_empty(batch, count),
            weight.new_empty(batch, count, number),
            weight.new_empty(batch, count, number),
        )
        for _ in range(2)
    ]
    launch(
        _separable_rows_kernel,
        (triton.cdiv(count, tile.rows), batch),
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
        places.image_index,
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
        WORDS=word_block(number),
        ROWS=tile.rows,
        KEYS=tile.keys,
        CHUNK=tile.channels,
        GROUPED=places.image_index is not None,
        PRECISION=precision(query.dtype),
        ACCUMULATOR=accumulator(query.dtype),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return gradients[0], gradients[1]
