"""The separable attention's forward kernel: one pass for the statistics of the softmax, one for its mean."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import accumulator, architecture, launch, precision
from .primitives import any_true, column, load_tile, products, store_tile, token_products
from .tiles import FLOOR, separable_tile, slice_width, word_block


class Statistics(NamedTuple):
    """What backward needs of the softmax over one set of keys, the places' or the words'."""

    maximum: Tensor  # [B, P], the largest logit of the places' factor
    ratio: Tensor  # [B, P, N], R = weight / Z; 0 where the direct form is taken, and on padding
    direct: Tensor  # [B, P, N], log-sum-exp of the tokens that take the direct form, else +inf
    any_direct: Tensor  # int32 [B, row blocks]


class Keys(NamedTuple):
    """One set of keys: the places of a picture, or the words of a sentence."""

    key: Tensor  # [G, K, d]
    value: Tensor  # [G, K, e]
    exp_word: Tensor  # [B, N, K], E_C
    mask: Tensor | None  # bool [B, K], the keys to attend to
    image_index: Tensor | None  # [B], which of the G sets; None: its own


@triton.jit
def _attend(
    accumulated,
    rows,
    row_mask,
    store_statistics,
    query,
    query_row_stride,
    query_stride,
    word_query,
    words,
    weight,
    key,
    key_row_stride,
    key_stride,
    value,
    value_row_stride,
    value_stride,
    exp_word,
    mask,
    keys,
    maximum_out,
    ratio_out,
    direct_out,
    any_direct_out,
    value_start,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    VALUES: tl.constexpr,
    WORDS: tl.constexpr,
    KEYS: tl.constexpr,
    CHUNK: tl.constexpr,
    MASKED: tl.constexpr,
    FLOOR: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    """Add the mean over words of the softmax over these keys, times their values, to [ROWS, VALUES]."""
    column_of = tl.arange(0, WORDS)
    word_mask = column_of < words
    channel = value_start + tl.arange(0, VALUES)
    inside = channel < VALUE_WIDTH

    # A finite start, so that blocks without a key to attend to leave zeros and no NaN.
    maximum = tl.full([rows.shape[0]], -3.0e38, ACCUMULATOR)
    total = tl.zeros([rows.shape[0], WORDS], ACCUMULATOR)  # Z
    for start in range(0, keys, KEYS):
        row = start + tl.arange(0, KEYS)
        present = row < keys
        logits = products(
            query, rows, query_row_stride, query_stride, row_mask,
            key, row, key_row_stride, key_stride, present,
            WIDTH, CHUNK, PRECISION, ACCUMULATOR,
        )  # fmt: skip
        if MASKED:
            present = tl.load(mask + row, mask=present, other=0) != 0
        logits = tl.where(present[None, :], logits, float("-inf"))
        larger = tl.maximum(maximum, tl.max(logits, axis=1))
        exp_place = tl.exp(logits - larger[:, None])
        factor = load_tile(exp_word, row, column_of, 1, keys, row < keys, word_mask)
        total = tl.dot(
            exp_place, factor, total * tl.exp(maximum - larger)[:, None],
            input_precision=PRECISION, out_dtype=ACCUMULATOR,
        )  # fmt: skip
        maximum = larger

    real = word_mask[None, :] & row_mask[:, None] & (weight[None, :] > 0)
    under = real & (total < FLOOR)
    ratio = tl.where(real & (total >= FLOOR), weight[None, :] / tl.maximum(total, FLOOR), 0.0)
    under_any = any_true(under)

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
        mixed = tl.dot(ratio, factor, input_precision=PRECISION, out_dtype=ACCUMULATOR)
        softmax = tl.where(
            present[None, :], tl.exp(tl.minimum(logits - maximum[:, None], 0.0)) * mixed, 0.0
        )
        value_tile = load_tile(value, row, channel, value_row_stride, value_stride, present, inside)
        accumulated = tl.dot(
            softmax.to(value_tile.dtype), value_tile, accumulated,
            input_precision=PRECISION, out_dtype=ACCUMULATOR,
        )  # fmt: skip

    direct = tl.full([rows.shape[0], WORDS], float("inf"), ACCUMULATOR)
    if under_any:
        for number in range(0, words):
            chosen = under & (column_of == number)[None, :]
            if any_true(chosen):
                word = word_query + number * WIDTH
                largest = tl.full([rows.shape[0]], -3.0e38, ACCUMULATOR)
                summed = tl.zeros([rows.shape[0]], ACCUMULATOR)
                for start in range(0, keys, KEYS):
                    row = start + tl.arange(0, KEYS)
                    present = row < keys
                    logits = token_products(
                        query, rows, query_row_stride, query_stride, row_mask, word, 1,
                        key, row, key_row_stride, key_stride, present,
                        WIDTH, CHUNK, PRECISION, ACCUMULATOR,
                    )  # fmt: skip
                    if MASKED:
                        present = tl.load(mask + row, mask=present, other=0) != 0
                    logits = tl.where(present[None, :], logits, float("-inf"))
                    larger = tl.maximum(largest, tl.max(logits, axis=1))
                    summed = summed * tl.exp(largest - larger) + tl.sum(
                        tl.exp(logits - larger[:, None]), axis=1
                    )
                    largest = larger
                logsumexp = largest + tl.log(summed)
                direct = tl.where(chosen, logsumexp[:, None], direct)
                share = tl.sum(tl.where(chosen, weight[None, :], 0.0), axis=1)
                for start in range(0, keys, KEYS):
                    row = start + tl.arange(0, KEYS)
                    present = row < keys
                    logits = token_products(
                        query, rows, query_row_stride, query_stride, row_mask, word, 1,
                        key, row, key_row_stride, key_stride, present,
                        WIDTH, CHUNK, PRECISION, ACCUMULATOR,
                    )  # fmt: skip
                    value_tile = load_tile(
                        value, row, channel, value_row_stride, value_stride, present, inside
                    )
                    if MASKED:
                        present = tl.load(mask + row, mask=present, other=0) != 0
                    logits = tl.where(present[None, :], logits, float("-inf"))
                    softmax = tl.exp(logits - logsumexp[:, None]) * share[:, None]
                    accumulated = tl.dot(
                        softmax.to(value_tile.dtype), value_tile, accumulated,
                        input_precision=PRECISION, out_dtype=ACCUMULATOR,
                    )  # fmt: skip

    if store_statistics:
        tl.store(maximum_out + rows, maximum, mask=row_mask)
        store_tile(ratio_out, ratio, rows, column_of, words, 1, row_mask, word_mask)
        store_tile(direct_out, direct, rows, column_of, words, 1, row_mask, word_mask)
        tl.store(any_direct_out, under_any.to(tl.int32))
    return accumulated


@triton.jit
def _separable_forward_kernel(
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
    offset,  # [B, VALUE_WIDTH], added to the result
    attended,  # [B, P, VALUE_WIDTH]
    place_maximum,
    place_ratio,
    place_direct,
    place_any_direct,
    word_maximum,
    word_ratio,
    word_direct,
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
    FLOOR: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    block = tl.program_id(0)
    sentence = tl.program_id(1).to(tl.int64)
    value_start = tl.program_id(2) * VALUES
    group = tl.load(image_index + sentence).to(tl.int64) if GROUPED else sentence
    rows = block * ROWS + tl.arange(0, ROWS)
    row_mask = rows < places
    blocks = tl.num_programs(0)
    is_first = tl.program_id(2) == 0
    number = tl.arange(0, WORDS)
    weights = tl.load(weight + sentence * words + number, mask=number < words, other=0.0)
    of_sentence = sentence * places
    own_query = query + group * query_batch_stride
    own_word_query = word_query + sentence * words * WIDTH

    channel = value_start + tl.arange(0, VALUES)
    inside = channel < VALUE_WIDTH
    start = tl.load(offset + sentence * VALUE_WIDTH + channel, mask=inside, other=0.0)
    accumulated = tl.zeros([ROWS, VALUES], ACCUMULATOR) + start.to(ACCUMULATOR)[None, :]
    accumulated = _attend(
        accumulated, rows, row_mask, is_first,
        own_query, query_row_stride, query_stride, own_word_query, words, weights,
        word_key + sentence * words * WIDTH, WIDTH, 1,
        word_value + sentence * words * VALUE_WIDTH, VALUE_WIDTH, 1,
        word_exp_word + sentence * words * words, word_mask + sentence * words, words,
        word_maximum + of_sentence, word_ratio + of_sentence * words,
        word_direct + of_sentence * words, word_any_direct + sentence * blocks + block, value_start,
        WIDTH, VALUE_WIDTH, VALUES, WORDS, KEYS, CHUNK, True, FLOOR, PRECISION, ACCUMULATOR,
    )  # fmt: skip
    accumulated = _attend(
        accumulated, rows, row_mask, is_first,
        own_query, query_row_stride, query_stride, own_word_query, words, weights,
        place_key + group * key_batch_stride, key_row_stride, key_stride,
        place_value + group * value_batch_stride, value_row_stride, value_stride,
        place_exp_word + sentence * words * places, word_mask, places,
        place_maximum + of_sentence, place_ratio + of_sentence * words,
        place_direct + of_sentence * words, place_any_direct + sentence * blocks + block, value_start,
        WIDTH, VALUE_WIDTH, VALUES, WORDS, KEYS, CHUNK, False, FLOOR, PRECISION, ACCUMULATOR,
    )  # fmt: skip
    store_tile(
        attended + of_sentence * VALUE_WIDTH, accumulated, rows, channel, VALUE_WIDTH, 1,
        row_mask, inside,
    )  # fmt: skip


def launch_forward(
    query: Tensor,
    places: Keys,
    word_query: Tensor,
    words: Keys,
    weight: Tensor,
    offset: Tensor,
) -> tuple[Tensor, Statistics, Statistics]:
    """
    Args:
        query: [G, P, d], the places' queries.
        places: the places as keys.
        word_query: [B, N, d], contiguous, zero on padding.
        words: the words as keys; their tensors contiguous.
        weight: [B, N], 1 / (number of true words) on true words, 0 on padding.
        offset: [B, e], added to the result.

    Returns:
        [B, P, e] in the query's dtype, and the statistics of the softmax over places and over words.
    """
    batch, number, width = word_query.shape
    count, value_width = places.value.shape[1:]
    tile = separable_tile("separable_forward", max(width, value_width), query.dtype, architecture())
    blocks = triton.cdiv(count, tile.rows)
    attended = query.new_empty(batch, count, value_width)
    statistics = [
        Statistics(
            weight.new_empty(batch, count),
            weight.new_empty(batch, count, number),
            weight.new_empty(batch, count, number),
            torch.empty(batch, blocks, dtype=torch.int32, device=query.device),
        )
        for _ in range(2)
    ]
    values = slice_width(value_width)
    launch(
        _separable_forward_kernel,
        (blocks, batch, triton.cdiv(value_width, values)),
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
        offset,
        attended,
        *statistics[0],
        *statistics[1],
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
        FLOOR=FLOOR[weight.dtype],
        PRECISION=precision(query.dtype),
        ACCUMULATOR=accumulator(query.dtype),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return attended, statistics[0], statistics[1]
