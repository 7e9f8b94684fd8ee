"""Forward pass of the separable attention, second kernel: the mean over words of both softmaxes, times values."""

import triton
import triton.language as tl
from torch import Tensor

from ...triton.launch import accumulator, architecture, launch, precision, slice_width, word_block
from ...triton.primitives import any_true, column, direct_softmax, load_tile, products, store_tile
from .row_statistics import Keys, Statistics
from .tile_sizes import separable_tile


@triton.jit
def _add_mean(
    accumulated, rows, row_mask, query, query_row_stride, query_stride, word_query, words,
    key, key_row_stride, key_stride, value, value_row_stride, value_stride,
    exp_word, mask, keys, maximum, ratio, direct_maximum, direct_ratio, any_direct, channel,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, WORDS: tl.constexpr, KEYS: tl.constexpr,
    CHUNK: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Add (E_A * (R E_C)) value, and the softmax of direct tokens times it, to [ROWS, VALUES]."""
    column_of = tl.arange(0, WORDS)
    word_mask = column_of < words
    inside = channel < VALUE_WIDTH
    maximum_of = tl.load(maximum + rows, mask=row_mask, other=0.0)
    ratio_tile = load_tile(ratio, rows, column_of, words, 1, row_mask, word_mask)
    for start in range(0, keys, KEYS):
        row = start + tl.arange(0, KEYS)
        present = row < keys
        logits = products(
            query, rows, query_row_stride, query_stride, row_mask,
            key, row, key_row_stride, key_stride, present,
            WIDTH, CHUNK, PRECISION, ACCUMULATOR,
        )  # fmt: skip
        # Where a key is masked, its E_C is zero.
        factor = load_tile(exp_word, column_of, row, keys, 1, word_mask, present)
        mixed = tl.dot(ratio_tile, factor, input_precision=PRECISION, out_dtype=ACCUMULATOR)
        softmax = tl.exp(tl.minimum(logits - maximum_of[:, None], 0.0)) * mixed
        value_tile = load_tile(value, row, channel, value_row_stride, value_stride, present, inside)
        accumulated = tl.dot(
            softmax.to(value_tile.dtype), value_tile, accumulated,
            input_precision=PRECISION, out_dtype=ACCUMULATOR,
        )  # fmt: skip

    if tl.load(any_direct) > 0:
        direct_tile = load_tile(direct_ratio, rows, column_of, words, 1, row_mask, word_mask)
        if any_true(direct_tile > 0):
            largest_tile = load_tile(direct_maximum, rows, column_of, words, 1, row_mask, word_mask)
            for number in range(0, words):
                token_ratio = column(direct_tile, number)
                if tl.max(token_ratio, axis=0) > 0:
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
                        value_tile = load_tile(
                            value, row, channel, value_row_stride, value_stride, present, inside
                        )
                        accumulated = tl.dot(
                            softmax.to(value_tile.dtype), value_tile, accumulated,
                            input_precision=PRECISION, out_dtype=ACCUMULATOR,
                        )  # fmt: skip
    return accumulated


@triton.jit
def _separable_mean_kernel(
    query,  # [G, P, WIDTH]
    place_key,  # [G, P, WIDTH]
    place_value,  # [G, P, VALUE_WIDTH]
    word_query,  # [B, N, WIDTH]
    word_key,  # [B, N, WIDTH]
    word_value,  # [B, N, VALUE_WIDTH]
    place_exp_word,  # [B, N, P]
    word_exp_word,  # [B, N, N]
    word_mask,  # [B, N]
    image_index,  # [B]
    offset,  # [B, VALUE_WIDTH], added to the result
    attended,  # [B, P, VALUE_WIDTH]
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
    places,
    words,
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
    VALUES: tl.constexpr,
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
    channel = tl.program_id(2) * VALUES + tl.arange(0, VALUES)
    inside = channel < VALUE_WIDTH
    of_expression = expression * places
    own_query = query + group * query_batch_stride
    own_word_query = word_query + expression * words * WIDTH

    added = tl.load(offset + expression * VALUE_WIDTH + channel, mask=inside, other=0.0)
    accumulated = tl.zeros([ROWS, VALUES], ACCUMULATOR) + added.to(ACCUMULATOR)[None, :]
    accumulated = _add_mean(
        accumulated, rows, row_mask, own_query, query_row_stride, query_stride,
        own_word_query, words,
        word_key + expression * words * WIDTH, WIDTH, 1,
        word_value + expression * words * VALUE_WIDTH, VALUE_WIDTH, 1,
        word_exp_word + expression * words * words, word_mask + expression * words, words,
        word_maximum + of_expression, word_ratio + of_expression * words,
        word_direct_maximum + of_expression * words,
        word_direct_ratio + of_expression * words, word_any_direct + expression, channel,
        WIDTH, VALUE_WIDTH, WORDS, KEYS, CHUNK, True, PRECISION, ACCUMULATOR,
    )  # fmt: skip
    accumulated = _add_mean(
        accumulated, rows, row_mask, own_query, query_row_stride, query_stride,
        own_word_query, words,
        place_key + group * key_batch_stride, key_row_stride, key_stride,
        place_value + group * value_batch_stride, value_row_stride, value_stride,
        place_exp_word + expression * words * places, word_mask, places,
        place_maximum + of_expression, place_ratio + of_expression * words,
        place_direct_maximum + of_expression * words,
        place_direct_ratio + of_expression * words, place_any_direct + expression, channel,
        WIDTH, VALUE_WIDTH, WORDS, KEYS, CHUNK, False, PRECISION, ACCUMULATOR,
    )  # fmt: skip
    store_tile(
        attended + of_expression * VALUE_WIDTH, accumulated, rows, channel, VALUE_WIDTH, 1,
        row_mask, inside,
    )  # fmt: skip


def launch_mean(
    query: Tensor,
    places: Keys,
    word_query: Tensor,
    words: Keys,
    weight: Tensor,
    offset: Tensor,
    of_places: Statistics,
    of_words: Statistics,
) -> Tensor:
    """
    Args:
        query, places, word_query, words, weight: As in `launch_statistics`.
        offset: [B, e], added to the result.
        of_places, of_words: The statistics of the two softmaxes.

    Returns:
        [B, P, e] in the query's dtype.
    """
    batch, number, width = word_query.shape
    count, value_width = places.value.shape[1:]
    tile = separable_tile("separable_mean", max(width, value_width), query.dtype, architecture(), number)
    values = slice_width(value_width, tile)
    attended = query.new_empty(batch, count, value_width)
    launch(
        _separable_mean_kernel,
        (triton.cdiv(count, tile.rows), batch, triton.cdiv(value_width, values)),
        query,
        places.key,
        places.value,
        word_query,
        words.key,
        words.value,
        places.exp_word,
        words.exp_word,
        words.mask,
        places.image_index,
        offset,
        attended,
        *of_places,
        *of_words,
        count,
        number,
        *query.stride(),
        *places.key.stride(),
        *places.value.stride(),
        WIDTH=width,
        VALUE_WIDTH=value_width,
        VALUES=values,
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
    return attended
