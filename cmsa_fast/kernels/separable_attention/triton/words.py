"""The softmax over words, forward and backward, and the words' factor of the softmax over places.

A token's logits over words are M[p, n, n'] = (x_query_p + y_query_n) . y_key_n', the sum of one product for the
place and one for the word; n' are so few that their softmax is taken as it stands. Its mean over n is V[p, n'].
Over places the word's part of the logits is C[n, p'] = y_query_n . x_key_p', and its factor is
E_C = exp(C - row maximum).
"""

import triton
import triton.language as tl
from torch import Tensor

from ...triton.launch import launch, options
from ...triton.primitives import image_of, load_padded, load_tile, padded_products, store_padded
from ..state import Call
from .tile_sizes import tile_of


@triton.jit(do_not_specialize=["places", "stored_places"])
def _word_logits_kernel(
    query, key, word_key, weight, image_index,
    logits,  # [B, N, P], C
    tile_max,  # [B, P / KEYS, N]
    word_logits,  # [B, N, N]
    places, stored_places, padded_places, channels,
    GROUPED: tl.constexpr, WORDS: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """C of one tile of places, or of the words themselves in the last program."""
    expression = tl.program_id(1).to(tl.int64)
    image = image_of(image_index, expression, GROUPED)
    block = tl.program_id(0)
    number = tl.arange(0, WORDS)
    query += expression * WORDS * channels
    if block * KEYS < padded_places:
        column = block * KEYS + tl.arange(0, KEYS)
        tile = padded_products(
            query, number, key + image * stored_places * channels, tl.minimum(column, stored_places - 1), channels,
            CHUNK, PRECISION, ACCUMULATOR,
        )  # fmt: skip
        tile = tl.where((column < places)[None, :], tile, float("-inf"))
        store_padded(logits + expression * WORDS * padded_places, tile, number, column, padded_places, "ieee")
        tiles = padded_places // KEYS
        tl.store(tile_max + (expression * tiles + block) * WORDS + number, tl.max(tile, axis=1))
    else:
        own = padded_products(
            query,
            number,
            word_key + expression * WORDS * channels,
            number,
            channels,
            CHUNK,
            PRECISION,
            ACCUMULATOR,
        )
        real = tl.load(weight + expression * WORDS + number) > 0
        own = tl.where(real[None, :], own, float("-inf"))
        store_padded(word_logits + expression * WORDS * WORDS, own, number, number, WORDS, "ieee")


@triton.jit
def _softmax(logits):
    exponentials = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    return exponentials / tl.sum(exponentials, axis=1)[:, None]


@triton.jit(do_not_specialize=["stored_places", "words", "tiles"])
def _words_forward_kernel(
    query, word_key, weight, image_index, logits, tile_max, word_logits,
    word_factor, place_logits,
    softmax_out,  # [B, P, N], V
    stored_places, padded_places, channels, words, tiles,
    GROUPED: tl.constexpr, WORDS: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """V of a block of places, and E_C for the same places as keys."""
    expression = tl.program_id(1).to(tl.int64)
    image = image_of(image_index, expression, GROUPED)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    number = tl.arange(0, WORDS)
    largest = tl.full([WORDS], float("-inf"), ACCUMULATOR)
    for tile in range(0, tiles):
        largest = tl.maximum(largest, tl.load(tile_max + (expression * tiles + tile) * WORDS + number))
    at = expression * WORDS * padded_places
    factor = tl.exp(load_padded(logits + at, number, row, padded_places) - largest[:, None])
    store_padded(word_factor + at, factor, number, row, padded_places, PRECISION)

    place_part = padded_products(
        query + image * stored_places * channels, tl.minimum(row, stored_places - 1),
        word_key + expression * WORDS * channels, number,
        channels, CHUNK, PRECISION, ACCUMULATOR,
    )  # fmt: skip
    softmax = tl.zeros([ROWS, WORDS], ACCUMULATOR)
    for word in range(0, words):
        share = tl.load(weight + expression * WORDS + word)
        if share > 0:
            word_part = tl.load(word_logits + (expression * WORDS + word) * WORDS + number)
            softmax += share * _softmax(place_part + word_part[None, :])
    at = expression * padded_places * WORDS
    store_padded(place_logits + at, place_part, row, number, WORDS, "ieee")
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


def words_forward(call: Call) -> Tensor:
    """Fill word_factor, place_logits and word_logits of the state; returns V, [B, P, N], padded."""
    sizes, state, image_index = call
    dtype = state.query.dtype
    batch, rows, words = sizes.batch, sizes.padded_places, sizes.padded_words
    tile = tile_of("words", dtype)
    tiles = rows // tile.keys
    logits = state.weight.new_empty(batch, words, rows)
    tile_max = state.weight.new_empty(batch, tiles, words)
    softmax = state.query.new_empty(batch, rows, words)
    constants = call.constants | {"CHUNK": tile.channels} | options(tile, dtype)
    launch(
        _word_logits_kernel,
        (tiles + 1, batch),
        state.word_query, state.key, state.word_key, state.weight, image_index,
        logits, tile_max, state.word_logits,
        sizes.places, state.key.shape[1], rows, sizes.channels,
        KEYS=tile.keys, **constants,
    )  # fmt: skip
    launch(
        _words_forward_kernel,
        (rows // tile.rows, batch),
        state.query, state.word_key, state.weight, image_index, logits, tile_max, state.word_logits,
        state.word_factor, state.place_logits, softmax,
        state.query.shape[1], rows, sizes.channels, sizes.words, tiles,
        ROWS=tile.rows, **constants,
    )  # fmt: skip
    return softmax


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
