"""The direct form of tokens whose factored sum underflows: the softmax of (x_query_p + y_query_n) x_key^T itself.

Parts that cancel are added before the product. The kernels are always launched; programs without a flagged row
return at once, and a flagged row costs its own work only. All flagged words of a row are computed together.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ...triton.launch import launch, options
from ...triton.primitives import dot, expressions_of, image_of, load_padded, load_rows, rounded
from ..state import Call
from .tile_sizes import channel_block, tile_of


@triton.jit
def _any_flag(direct, ROWS: tl.constexpr):
    return tl.max((tl.load(direct + tl.arange(0, ROWS)) != 0).to(tl.int32), axis=0) > 0


@triton.jit
def _token_logits(
    query, word_query, number, key, column, places, stored_places, channels,
    CHUNK: tl.constexpr, PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Logits [N, K] of the tokens of the place that `query` points to."""
    stored = tl.minimum(column, stored_places - 1)
    total = tl.zeros([number.shape[0], column.shape[0]], ACCUMULATOR)
    for start in range(0, channels, CHUNK):
        channel = start + tl.arange(0, CHUNK)
        token = tl.load(query + channel).to(ACCUMULATOR)[None, :]
        token += load_padded(word_query, number, channel, channels).to(ACCUMULATOR)
        key_tile = load_padded(key, stored, channel, channels)
        total = dot(token.to(key_tile.dtype), tl.trans(key_tile), total, PRECISION)
    return tl.where((column < places)[None, :], total, float("-inf"))


@triton.jit
def _grad_weights(grad, value, column, places, value_channels, CHUNK: tl.constexpr, ACCUMULATOR: tl.constexpr):
    """grad value^T [K] of the row that `grad` points to."""
    total = tl.zeros([column.shape[0]], ACCUMULATOR)
    for start in range(0, value_channels, CHUNK):
        channel = start + tl.arange(0, CHUNK)
        row = tl.load(grad + channel).to(ACCUMULATOR)
        tile = load_rows(value, column, channel, value_channels, places).to(ACCUMULATOR)
        total += tl.sum(tile * row[None, :], axis=1)
    return total


@triton.jit(do_not_specialize=["places", "stored_places", "first_row", "rows"])
def _direct_rows_kernel(
    query, key, value,
    place_offset,  # [B, e], to be subtracted from the values; None if their copy lost it, and in backward
    word_query, direct, weight, image_index,
    attended,  # [B, places, value_width], to be added to in forward
    grad,  # [B, P, e]; it and the next three in backward
    maximum,  # [B, rows, N], of the token's logits, as the next two
    ratio,  # weight / sum of the exponentials
    mean,  # of grad value^T under the token's softmax
    places, value_width, first_row, rows, stored_places, padded_places, channels, value_channels,
    BACKWARD: tl.constexpr, GROUPED: tl.constexpr, WORDS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    CHUNK: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """The softmax of each flagged token, by rows: its values in forward, its statistics in backward."""
    expression = tl.program_id(2).to(tl.int64)
    image = image_of(image_index, expression, GROUPED)
    number = tl.arange(0, WORDS)
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    first = tl.program_id(1) * ROWS
    key += image * stored_places * channels
    value += image * stored_places * value_channels
    word_query += expression * WORDS * channels
    at = expression * padded_places + first_row + first
    if _any_flag(direct + at, ROWS):
        weights = tl.load(weight + expression * WORDS + number)
        for row in range(0, ROWS):
            flags = tl.load(direct + at + row)
            if flags != 0:
                own = query + (image * stored_places + first_row + first + row) * channels
                largest = tl.full([WORDS], -3.0e38, ACCUMULATOR)
                total = tl.zeros([WORDS], ACCUMULATOR)
                weighted = tl.zeros([WORDS], ACCUMULATOR)
                result = tl.zeros([WORDS, CHANNELS], ACCUMULATOR)
                sums = tl.zeros([WORDS], ACCUMULATOR)
                for start in range(0, places, KEYS):
                    column = start + tl.arange(0, KEYS)
                    logits = _token_logits(
                        own, word_query, number, key, column, places, stored_places, channels,
                        CHUNK, PRECISION, ACCUMULATOR,
                    )  # fmt: skip
                    larger = tl.maximum(largest, tl.max(logits, axis=1))
                    scale = tl.exp(largest - larger)
                    exponentials = tl.exp(logits - larger[:, None])
                    total = total * scale + tl.sum(exponentials, axis=1)
                    if BACKWARD:
                        gradient = _grad_weights(
                            grad + (at + row) * value_channels, value, column, places, value_channels,
                            CHUNK, ACCUMULATOR,
                        )  # fmt: skip
                        weighted = weighted * scale + tl.sum(exponentials * gradient[None, :], axis=1)
                    else:
                        tile = load_rows(value, column, channel, value_channels, places)
                        operand = exponentials.to(tile.dtype)
                        result = dot(operand, tile, result * scale[:, None], PRECISION)
                        sums = sums * scale + tl.sum(operand.to(ACCUMULATOR), axis=1)
                    largest = larger
                chosen = ((flags >> number.to(tl.int64)) & 1) != 0
                shares = tl.where(chosen, weights / total, 0.0)
                if BACKWARD:
                    # Maximum and sum are kept apart: with large logits a single log-sum-exp would lose the sum.
                    out = (expression * rows + first + row) * WORDS + number
                    tl.store(maximum + out, largest)
                    tl.store(ratio + out, shares)
                    tl.store(mean + out, weighted / total)
                else:
                    out = attended + (expression * places + first + row) * value_width + channel
                    if place_offset is not None:
                        lost = tl.load(place_offset + expression * value_channels + channel)
                        result -= sums[:, None] * lost[None, :]
                    old = tl.load(out, mask=channel < value_width, other=0.0).to(ACCUMULATOR)
                    total_row = old + tl.sum(shares[:, None] * result, axis=0)
                    tl.store(out, total_row.to(attended.dtype.element_ty), mask=channel < value_width)


@triton.jit
def _add(pointers, part, PRECISION: tl.constexpr):
    total = tl.load(pointers).to(part.dtype) + part
    tl.store(pointers, rounded(total.to(pointers.dtype.element_ty), PRECISION))


@triton.jit(do_not_specialize=["places", "stored_places", "first_row", "rows", "rows_per_split", "batch"])
def _direct_backward_kernel(
    query, key, grad, value, word_query, direct, maximum, ratio, mean, image_index,
    attention, grad_logits, word_logits,
    batch, places, first_row, rows, rows_per_split, stored_places, padded_places, channels, value_channels,
    GROUPED: tl.constexpr, WORDS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Add the tokens to W, to the gradient of A and to the sums over rows, for one tile of keys."""
    image = tl.program_id(2).to(tl.int64)
    split = tl.program_id(1)
    column = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    number = tl.arange(0, WORDS)
    query += (image * stored_places + first_row) * channels
    key += image * stored_places * channels
    value += image * stored_places * value_channels
    last_row = tl.minimum(rows, (split + 1) * rows_per_split)
    begin, end = expressions_of(image, batch, GROUPED)
    for expression in range(begin, end):
        if image_of(image_index, expression, GROUPED) == image:
            at = expression * padded_places + first_row
            own_words = word_query + expression * WORDS * channels
            grad_words = tl.zeros([WORDS, KEYS], ACCUMULATOR)
            shares = tl.zeros([WORDS, KEYS], ACCUMULATOR)
            for start in range(split * rows_per_split, last_row, ROWS):
                if _any_flag(direct + at + start, ROWS):
                    for row in range(start, start + ROWS):
                        if tl.load(direct + at + row) != 0:
                            token = (expression * rows + row) * WORDS + number
                            logits = _token_logits(
                                query + row * channels, own_words, number, key, column, places, stored_places,
                                channels, CHUNK, PRECISION, ACCUMULATOR,
                            )  # fmt: skip
                            softmax = tl.exp(tl.minimum(logits - tl.load(maximum + token)[:, None], 0.0))
                            softmax *= tl.load(ratio + token)[:, None]
                            gradient = _grad_weights(
                                grad + (at + row) * value_channels, value, column, places, value_channels,
                                CHUNK, ACCUMULATOR,
                            )  # fmt: skip
                            grad_tile = softmax * (gradient[None, :] - tl.load(mean + token)[:, None])
                            grad_words += grad_tile
                            shares += softmax
                            own = attention + (expression * rows + row) * padded_places + column
                            _add(own, tl.sum(softmax, axis=0), PRECISION)
                            own = grad_logits + (image * rows + row) * padded_places + column
                            _add(own, tl.sum(grad_tile, axis=0), PRECISION)
            out = word_logits + (split * 2 * batch + expression) * WORDS * padded_places
            out += number[:, None] * padded_places + column[None, :]
            tl.store(out, grad_words)
            tl.store(out + batch * WORDS * padded_places, shares)


def direct_forward(call: Call, place_offset: Tensor | None, attended: Tensor) -> None:
    """Add the flagged tokens' part to attended [B, places, e]; for place_offset see `values_forward`."""
    _launch_rows(call, place_offset, attended, None, [None] * 3, 0, call.sizes.padded_places)


def _launch_rows(
    call: Call,
    place_offset: Tensor | None,
    attended: Tensor | None,
    grad: Tensor | None,
    statistics: Sequence[Tensor | None],
    first_row: int,
    rows: int,
) -> None:
    sizes, state, image_index = call
    dtype = state.value.dtype
    tile = tile_of("direct", dtype)
    backward = grad is not None
    channels = channel_block(sizes.value_channels, 128)
    launch(
        _direct_rows_kernel,
        (1 if backward else sizes.value_channels // channels, rows // tile.rows, sizes.batch),
        state.query, state.key, state.value, place_offset, state.word_query, state.direct, state.weight,
        image_index, attended, grad, *statistics,
        sizes.places, sizes.value_width, first_row, rows, state.key.shape[1], sizes.padded_places,
        sizes.channels, sizes.value_channels,
        BACKWARD=backward, **call.constants, ROWS=tile.rows, KEYS=tile.keys, CHUNK=tile.channels,
        CHANNELS=channels, **options(tile, dtype),
    )  # fmt: skip


def direct_backward(
    call: Call, grad: Tensor, weights: Tensor, grad_logits: Tensor, word_logits: Tensor, first_row: int
) -> None:
    """Add the flagged tokens' part to what `gradients_backward` returned for a slab.

    It is added to weights and grad_logits in place, and fills the second half of word_logits.
    """
    sizes, state, image_index = call
    rows, keys = weights.shape[1:]
    tile = tile_of("direct", grad.dtype)
    statistics = [state.weight.new_empty(sizes.batch, rows, sizes.padded_words) for _ in range(3)]
    _launch_rows(call, None, None, grad, statistics, first_row, rows)
    splits = word_logits.shape[1]
    rows_per_split = triton.cdiv(triton.cdiv(rows, splits), tile.rows) * tile.rows
    launch(
        _direct_backward_kernel,
        (keys // tile.keys, splits, sizes.images),
        state.query, state.key, grad, state.value, state.word_query, state.direct, *statistics, image_index,
        weights, grad_logits, word_logits[1],
        sizes.batch, sizes.places, first_row, rows, rows_per_split, state.key.shape[1], keys,
        sizes.channels, sizes.value_channels,
        **call.constants, ROWS=tile.rows, KEYS=tile.keys, CHUNK=tile.channels, **options(tile, grad.dtype),
    )  # fmt: skip
