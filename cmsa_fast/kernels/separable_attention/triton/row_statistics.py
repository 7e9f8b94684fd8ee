"""Forward pass of the separable attention, first kernel: row maxima and sums of both softmaxes."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...triton.launch import accumulator, architecture, launch, precision, word_block
from ...triton.primitives import any_true, load_tile, products, store_tile, token_products
from .tile_sizes import FLOOR, separable_tile


class Keys(NamedTuple):
    """One set of keys: the places of an image, or the words of an expression."""

    key: Tensor  # [G, K, d]
    value: Tensor  # [G, K, e]
    exp_word: Tensor  # [B, N, K], E_C
    mask: Tensor | None  # bool [B, K], the keys to attend to
    image_index: Tensor | None  # [B], which of the G sets; None: its own


class Statistics(NamedTuple):
    """Row statistics of the softmax over one set of keys, for the mean and for backward."""

    maximum: Tensor  # [B, P], the largest logit of the places' factor
    ratio: Tensor  # [B, P, N], R = weight / Z; 0 where the direct form is taken, and on padding
    direct_maximum: Tensor  # [B, P, N], the largest logit of a token that takes the direct form
    direct_ratio: Tensor  # [B, P, N], weight / sum of exp(logits - maximum) of such a token, else 0
    any_direct: Tensor  # int32 [B], whether there are any; [B, row blocks] before it is reduced


@triton.jit
def _statistics(
    rows, row_mask, query, query_row_stride, query_stride, word_query, words, weight,
    key, key_row_stride, key_stride, exp_word, mask, keys,
    maximum_out, ratio_out, direct_maximum_out, direct_ratio_out, any_direct_out,
    WIDTH: tl.constexpr, WORDS: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr,
    MASKED: tl.constexpr, FLOOR: tl.constexpr, PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Row maxima of A, R = weight / (E_A E_C^T), and the log-sum-exp of tokens with Z below the floor."""
    column_of = tl.arange(0, WORDS)
    word_mask = column_of < words

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

    direct_maximum = tl.zeros([rows.shape[0], WORDS], ACCUMULATOR)
    direct_ratio = tl.zeros([rows.shape[0], WORDS], ACCUMULATOR)
    if under_any:
        for number in range(0, words):
            chosen = under & (column_of == number)[None, :]
            if any_true(chosen):
                largest = tl.full([rows.shape[0]], -3.0e38, ACCUMULATOR)
                summed = tl.zeros([rows.shape[0]], ACCUMULATOR)
                for start in range(0, keys, KEYS):
                    row = start + tl.arange(0, KEYS)
                    present = row < keys
                    logits = token_products(
                        query, rows, query_row_stride, query_stride, row_mask,
                        word_query + number * WIDTH, 1,
                        key, row, key_row_stride, key_stride, present,
                        WIDTH, CHUNK, PRECISION, ACCUMULATOR,
                    )  # fmt: skip
                    if MASKED:
                        present = tl.load(mask + row, mask=present, other=0) != 0
                    logits = tl.where(present[None, :], logits, float("-inf"))
                    larger = tl.maximum(largest, tl.max(logits, axis=1))
                    summed = summed * tl.exp(largest - larger) + tl.sum(tl.exp(logits - larger[:, None]), axis=1)
                    largest = larger
                direct_maximum = tl.where(chosen, largest[:, None], direct_maximum)
                direct_ratio = tl.where(chosen, weight[None, :] / summed[:, None], direct_ratio)

    tl.store(maximum_out + rows, maximum, mask=row_mask)
    store_tile(ratio_out, ratio, rows, column_of, words, 1, row_mask, word_mask)
    store_tile(direct_maximum_out, direct_maximum, rows, column_of, words, 1, row_mask, word_mask)
    store_tile(direct_ratio_out, direct_ratio, rows, column_of, words, 1, row_mask, word_mask)
    tl.store(any_direct_out, under_any.to(tl.int32))


@triton.jit
def _separable_statistics_kernel(
    query,  # [G, P, WIDTH]
    place_key,  # [G, P, WIDTH]
    word_query,  # [B, N, WIDTH]
    word_key,  # [B, N, WIDTH]
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
    places,
    words,
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
    GROUPED: tl.constexpr,
    FLOOR: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    block = tl.program_id(0)
    expression = tl.program_id(1).to(tl.int64)
    group = tl.load(image_index + expression).to(tl.int64) if GROUPED else expression
    rows = block * ROWS + tl.arange(0, ROWS)
    row_mask = rows < places
    number = tl.arange(0, WORDS)
    weights = tl.load(weight + expression * words + number, mask=number < words, other=0.0)
    of_expression = expression * places
    flag = expression * tl.num_programs(0) + block
    own_query = query + group * query_batch_stride
    own_word_query = word_query + expression * words * WIDTH
    _statistics(
        rows, row_mask, own_query, query_row_stride, query_stride, own_word_query, words, weights,
        word_key + expression * words * WIDTH, WIDTH, 1,
        word_exp_word + expression * words * words, word_mask + expression * words, words,
        word_maximum + of_expression, word_ratio + of_expression * words,
        word_direct_maximum + of_expression * words,
        word_direct_ratio + of_expression * words, word_any_direct + flag,
        WIDTH, WORDS, KEYS, CHUNK, True, FLOOR, PRECISION, ACCUMULATOR,
    )  # fmt: skip
    _statistics(
        rows, row_mask, own_query, query_row_stride, query_stride, own_word_query, words, weights,
        place_key + group * key_batch_stride, key_row_stride, key_stride,
        place_exp_word + expression * words * places, word_mask, places,
        place_maximum + of_expression, place_ratio + of_expression * words,
        place_direct_maximum + of_expression * words,
        place_direct_ratio + of_expression * words, place_any_direct + flag,
        WIDTH, WORDS, KEYS, CHUNK, False, FLOOR, PRECISION, ACCUMULATOR,
    )  # fmt: skip


def launch_statistics(
    query: Tensor, places: Keys, word_query: Tensor, words: Keys, weight: Tensor
) -> tuple[Statistics, Statistics]:
    """
    Args:
        query: [G, P, d], the places' queries.
        places: The places as keys.
        word_query: [B, N, d], contiguous, zero on padding.
        words: The words as keys; their tensors contiguous.
        weight: [B, N], 1 / (number of real words) on real words, 0 on padding.

    Returns:
        The statistics of the softmax over places and of that over words.
    """
    batch, number, width = word_query.shape
    count = query.shape[1]
    tile = separable_tile("separable_statistics", width, query.dtype, architecture())
    blocks = triton.cdiv(count, tile.rows)
    statistics = [
        Statistics(
            weight.new_empty(batch, count),
            weight.new_empty(batch, count, number),
            weight.new_empty(batch, count, number),
            weight.new_empty(batch, count, number),
            torch.empty(batch, blocks, dtype=torch.int32, device=query.device),
        )
        for _ in range(2)
    ]
    launch(
        _separable_statistics_kernel,
        (blocks, batch),
        query,
        places.key,
        word_query,
        words.key,
        weight,
        places.exp_word,
        words.exp_word,
        words.mask,
        places.image_index,
        *statistics[0],
        *statistics[1],
        count,
        number,
        *query.stride(),
        *places.key.stride(),
        WIDTH=width,
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
    of_places, of_words = (part._replace(any_direct=part.any_direct.amax(1)) for part in statistics)
    return of_places, of_words
