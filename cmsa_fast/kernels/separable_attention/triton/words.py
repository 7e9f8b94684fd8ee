"""The words' part, forward and backward: copies of their features, the softmax over words, and C.

A token's logits over words are M[p, n, n'] = (x_query_p + y_query_n) . y_key_n', the sum of one product for the
place and one for the word; n' are so few that their softmax is taken as it stands. Its mean over n is V[p, n'].
Over places the word's part of the logits is C[n, p'] = y_query_n . x_key_p'; `logits` takes its exponentials.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...triton.launch import launch, options
from ...triton.primitives import image_of, load_padded, load_rows, load_tile, rounded, store_padded
from ..state import Call
from .prepare import SAMPLES, common_offset, copy_places, sampled_offset
from .tile_sizes import tile_of


@triton.jit
def _query_tile(
    query, strides, place_query, place_strides, number, column, places, width, weights,
    CENTRED: tl.constexpr, SAMPLES: tl.constexpr,
):  # fmt: skip
    """[N, C] of the words' queries, 0 on padding, plus the common offset that the places' lost if CENTRED."""
    real = weights > 0
    tile = load_tile(query, number, column, strides[1], strides[2], real, column < width).to(weights.dtype)
    if CENTRED:
        added = sampled_offset(place_query, place_strides, column, places, width, SAMPLES, weights.dtype)
        tile = tl.where(real[:, None], tile + added[None, :], 0.0)
    return tile


@triton.jit
def _centred_tile(features, strides, number, column, width, weights):
    """[N, C] of the words' keys or values less their weighted common offset, 0 on padding, and that offset [C]."""
    real = weights > 0
    tile = load_tile(features, number, column, strides[1], strides[2], real, column < width).to(weights.dtype)
    share = weights[:, None] * tile
    mean = common_offset(tl.sum(share, axis=0), tl.sum(share * tile, axis=0), features)
    return tl.where(real[:, None], tile - mean[None, :], 0.0), mean


@triton.jit
def _softmax(logits):
    exponentials = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    return exponentials / tl.sum(exponentials, axis=1)[:, None]


@triton.jit(do_not_specialize=["places", "stored_places", "words", "tiles"])
def _words_forward_kernel(
    place_query, place_query_strides, place_value, place_value_strides,  # as they are, for their common offset
    word_query, word_query_strides, word_key, word_key_strides, word_value, word_value_strides, weight,
    query, key,  # [B_images, ., C], of places
    image_index, query_out, key_out, value_out, weight_out,
    offset,  # [B, e], what the copies of values lost
    place_logits, word_logits,
    softmax_out,  # [B, P, N], V
    logits,  # [B, N, P], C
    tile_max,  # [B, P / ROWS, N]
    place_offset,  # [B, e], the common offset of the places' values; None if their copies lost it
    places, stored_places, padded_places, words, width, value_width, channels, value_channels, tiles,
    SAMPLES: tl.constexpr, GROUPED: tl.constexpr, WORDS: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """C and V of a block of places; copies of the words' queries, keys and values in the three programs after."""
    expression = tl.program_id(1).to(tl.int64)
    image = image_of(image_index, expression, GROUPED)
    block = tl.program_id(0)
    number = tl.arange(0, WORDS)
    weights = tl.load(weight + expression * words + number, mask=number < words, other=0.0)
    place_query += image * place_query_strides[0]
    place_value += image * place_value_strides[0]
    word_query += expression * word_query_strides[0]
    word_key += expression * word_key_strides[0]
    word_value += expression * word_value_strides[0]
    if block == tiles:
        for start in range(0, channels, CHUNK):
            column = start + tl.arange(0, CHUNK)
            tile = _query_tile(
                word_query, word_query_strides, place_query, place_query_strides, number, column, places, width,
                weights, place_offset is None, SAMPLES,
            )  # fmt: skip
            store_padded(query_out + expression * WORDS * channels, tile, number, column, channels, PRECISION)
    elif softmax_out is not None:
        if block == tiles + 1:
            for start in range(0, channels, CHUNK):
                column = start + tl.arange(0, CHUNK)
                tile, _ = _centred_tile(word_key, word_key_strides, number, column, width, weights)
                store_padded(key_out + expression * WORDS * channels, tile, number, column, channels, PRECISION)
        elif block == tiles + 2:
            out = expression * WORDS * value_channels
            for start in range(0, value_channels, CHUNK):
                column = start + tl.arange(0, CHUNK)
                tile, mean = _centred_tile(word_value, word_value_strides, number, column, value_width, weights)
                store_padded(value_out + out, tile, number, column, value_channels, PRECISION)
                lost = sampled_offset(
                    place_value, place_value_strides, column, places, value_width, SAMPLES, ACCUMULATOR
                )
                if place_offset is None:
                    mean += lost
                else:
                    tl.store(place_offset + expression * value_channels + column, lost)
                tl.store(offset + expression * value_channels + column, mean)
        else:
            row = block * ROWS + tl.arange(0, ROWS)
            query += image * stored_places * channels
            key += image * stored_places * channels
            own = tl.zeros([ROWS, WORDS], ACCUMULATOR)
            place_part = tl.zeros([ROWS, WORDS], ACCUMULATOR)
            word_part = tl.zeros([WORDS, WORDS], ACCUMULATOR)
            for start in range(0, channels, CHUNK):
                column = start + tl.arange(0, CHUNK)
                query_tile = load_rows(query, row, column, channels, places)
                key_tile = load_rows(key, row, column, channels, places)
                queries = _query_tile(
                    word_query, word_query_strides, place_query, place_query_strides, number, column, places,
                    width, weights, place_offset is None, SAMPLES,
                )  # fmt: skip
                queries = rounded(queries.to(key_tile.dtype), PRECISION)
                keys, _ = _centred_tile(word_key, word_key_strides, number, column, width, weights)
                keys = tl.trans(rounded(keys.to(key_tile.dtype), PRECISION))
                own = tl.dot(key_tile, tl.trans(queries), own, input_precision=PRECISION, out_dtype=ACCUMULATOR)
                place_part = tl.dot(query_tile, keys, place_part, input_precision=PRECISION, out_dtype=ACCUMULATOR)
                word_part = tl.dot(queries, keys, word_part, input_precision=PRECISION, out_dtype=ACCUMULATOR)
            own = tl.where((row < places)[:, None], own, float("-inf"))
            at = expression * padded_places * WORDS
            tl.store(logits + at + number[None, :] * padded_places + row[:, None], own)
            tl.store(tile_max + (expression * tiles + block) * WORDS + number, tl.max(own, axis=0))
            store_padded(place_logits + at, place_part, row, number, WORDS, "ieee")
            word_part = tl.where((weights > 0)[None, :], word_part, float("-inf"))
            if block == 0:
                tl.store(weight_out + expression * WORDS + number, weights)
                store_padded(word_logits + expression * WORDS * WORDS, word_part, number, number, WORDS, "ieee")
            softmax = tl.zeros([ROWS, WORDS], ACCUMULATOR)
            for word in range(0, words):
                share = tl.load(weight + expression * words + word)
                if share > 0:
                    own_part = tl.sum(tl.where((number == word)[:, None], word_part, 0.0), axis=0)
                    softmax += share * _softmax(place_part + own_part[None, :])
            store_padded(softmax_out + at, softmax, row, number, WORDS, PRECISION)


@triton.jit(do_not_specialize=["batch", "places", "words"])
def _words_backward_kernel(
    grad,  # [B, P, e], padded
    attended,  # [B, places, value_width]
    offset, word_value, weight, place_logits, word_logits,
    delta,  # [B, P]
    softmax_out,  # [B, P, N], V
    grad_place_logits,  # [B, P, N]
    grad_word_logits,  # [P / ROWS, B, N, N]
    batch, places, value_width, padded_places, value_channels, words,
    WORDS: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Gradients of M, summed over words and over a block of places, and delta.

    delta is the mean of grad value^T under the softmax over places. The gradients of the logits are invariant to
    subtracting it; only rounding improves.
    """
    expression = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    number = tl.arange(0, WORDS)
    grad += expression * padded_places * value_channels
    attended += expression * places * value_width
    word_value += expression * WORDS * value_channels
    at = expression * padded_places * WORDS
    place_part = load_padded(place_logits + at, row, number, WORDS)

    grad_weights = tl.zeros([ROWS, WORDS], ACCUMULATOR)
    mean = tl.zeros([ROWS], ACCUMULATOR)
    for start in range(0, value_channels, CHUNK):
        column = start + tl.arange(0, CHUNK)
        grad_tile = load_padded(grad, row, column, value_channels)
        value_tile = load_padded(word_value, number, column, value_channels)
        grad_weights = tl.dot(
            grad_tile, tl.trans(value_tile), grad_weights, input_precision=PRECISION, out_dtype=ACCUMULATOR
        )
        result = load_tile(attended, row, column, value_width, 1, row < places, column < value_width)
        added = tl.load(offset + expression * value_channels + column)
        centred = tl.where((row < places)[:, None], result.to(ACCUMULATOR) - added[None, :], 0.0)
        mean += tl.sum(grad_tile.to(ACCUMULATOR) * centred, axis=1)

    softmax = tl.zeros([ROWS, WORDS], ACCUMULATOR)
    grad_places = tl.zeros([ROWS, WORDS], ACCUMULATOR)
    own = grad_word_logits + (tl.program_id(0) * batch + expression) * WORDS * WORDS
    for word in range(0, WORDS):
        share = tl.load(weight + expression * WORDS + word)
        grad_word = tl.zeros([WORDS], ACCUMULATOR)
        if share > 0:
            word_part = tl.load(word_logits + (expression * WORDS + word) * WORDS + number)
            part = _softmax(place_part + word_part[None, :])
            softmax += share * part
            # Exactly zero where a single word has all the weight.
            grad_token_logits = share * part * (grad_weights - tl.sum(part * grad_weights, axis=1)[:, None])
            grad_places += grad_token_logits
            grad_word = tl.sum(grad_token_logits, axis=0)
        tl.store(own + word * WORDS + number, grad_word)
    mean -= tl.sum(softmax * grad_weights, axis=1)
    tl.store(delta + expression * padded_places + row, mean)
    store_padded(softmax_out + at, softmax, row, number, WORDS, PRECISION)
    store_padded(grad_place_logits + at, grad_places, row, number, WORDS, PRECISION)


def words_forward(
    call: Call, features: list[Tensor], weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Fill the state from word_query to word_logits; for features and weight see `schedule.forward`.

    Returns:
        Padded: V [B, P, N], C [B, N, P], the maxima of C's tiles [B, tiles, N], and the common offset of the
        places' values [B, e] where they are read in place.
    """
    sizes, state, _ = call
    batch, rows, words = sizes.batch, sizes.padded_places, sizes.padded_words
    tiles = rows // tile_of("words", features[0].dtype).rows
    outputs = (
        state.query.new_empty(batch, rows, words),
        state.weight.new_empty(batch, words, rows),
        state.weight.new_empty(batch, tiles, words),
        torch.empty_like(state.offset) if sizes.in_place else None,
    )
    _launch_forward(call, features, weight, outputs, tiles, 3)
    return outputs


def _launch_forward(
    call: Call, features: list[Tensor], weight: Tensor, outputs: Sequence[Tensor | None], tiles: int, copies: int
) -> None:
    """Fill the first copies, and the outputs of each tile of places."""
    sizes, state, image_index = call
    query, _, value, *words = features
    tile = tile_of("words", query.dtype)
    launch(
        _words_forward_kernel,
        (tiles + copies, sizes.batch),
        query, query.stride(), value, value.stride(),
        *(item for part in words for item in (part, part.stride())),
        weight, state.query, state.key, image_index,
        state.word_query, state.word_key, state.word_value, state.weight, state.offset,
        state.place_logits, state.word_logits, *outputs,
        sizes.places, state.key.shape[1], sizes.padded_places, weight.shape[1], sizes.width, sizes.value_width,
        sizes.channels, sizes.value_channels, tiles,
        SAMPLES=SAMPLES, **call.constants, ROWS=tile.rows, CHUNK=tile.channels,
        **options(tile, query.dtype),
    )  # fmt: skip


def centred_operands(call: Call) -> Call:
    """The call with centred copies of query, key and word query where forward read the inputs in place.

    Products with rounded gradients of the logits would amplify an offset.
    """
    sizes, state, _ = call
    if not sizes.in_place:
        return call
    query, key = (state.value.new_empty(sizes.images, sizes.padded_places, sizes.channels) for _ in range(2))
    own = state._replace(query=query, key=key, word_query=torch.empty_like(state.word_query))
    centred = call._replace(state=own)
    copy_places(state.query, query, sizes)
    copy_places(state.key, key, sizes)
    features = [state.query, state.key, state.value] + [state.word_query] * 3
    _launch_forward(centred, features, state.weight, (None,) * 4, 0, 1)
    return centred


def words_backward(call: Call, grad: Tensor, attended: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From the padded gradient of forward's result: delta [B, P], V [B, P, N], and gradients of logits over words.

    They are those of places [B, P, N], and of words in parts [parts, B, N, N].
    """
    sizes, state, _ = call
    dtype = grad.dtype
    batch, rows, words = sizes.batch, sizes.padded_places, sizes.padded_words
    tile = tile_of("words", dtype)
    delta = state.weight.new_empty(batch, rows)
    # A float16 gradient of the logits would underflow.
    softmax, grad_places = (state.word_factor.new_empty(batch, rows, words) for _ in range(2))
    grad_words = state.weight.new_empty(rows // tile.rows, batch, words, words)
    launch(
        _words_backward_kernel,
        (rows // tile.rows, batch),
        grad, attended, state.offset, state.word_value, state.weight, state.place_logits, state.word_logits,
        delta, softmax, grad_places, grad_words,
        batch, sizes.places, sizes.value_width, rows, sizes.value_channels, sizes.words,
        WORDS=words, ROWS=tile.rows, CHUNK=tile.channels, **options(tile, dtype),
    )  # fmt: skip
    return delta, softmax, grad_places, grad_words
