"""Backward: the gradients of the features, as products of what the other kernels left."""

import triton
import triton.language as tl
from torch import Tensor

from ...triton.launch import launch, options
from ...triton.primitives import dot, expressions_of, image_of, load_padded, rounded, store_tile
from ..state import Call
from .tile_sizes import channel_block, tile_of


@triton.jit(do_not_specialize=["batch", "places", "first_row", "left_rows", "inner", "right_start"])
def _place_products_kernel(
    left,  # [., rows, P]
    right,  # [., ., C]
    word_left,  # [B, P, N], or None
    word_right,  # [B, N, C]
    image_index,
    result,  # [B_images, places, width]
    batch, places, width, first_row, left_rows, inner, right_start, right_rows, padded_places, channels,
    word_row_stride, word_stride,
    TRANSPOSED: tl.constexpr, PER_EXPRESSION: tl.constexpr, ADDED: tl.constexpr, GROUPED: tl.constexpr,
    WORDS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """left or left^T of an image, or of its expressions, times right, plus the sum of word_left @ word_right."""
    image = tl.program_id(2).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    number = tl.arange(0, WORDS)
    total = tl.zeros([ROWS, CHANNELS], ACCUMULATOR)
    first, last = expressions_of(image, batch, GROUPED and PER_EXPRESSION)
    for part in range(first, last):
        if image_of(image_index, part, GROUPED and PER_EXPRESSION) == image:
            own_left = left + part * left_rows * padded_places
            own_right = right + (part * right_rows + right_start) * channels
            for start in range(0, inner, KEYS):
                column = start + tl.arange(0, KEYS)
                right_tile = load_padded(own_right, column, channel, channels)
                if TRANSPOSED:
                    left_tile = tl.trans(load_padded(own_left, column, row, padded_places))
                else:
                    left_tile = load_padded(own_left, row, column, padded_places)
                total = tl.dot(
                    left_tile, right_tile.to(left_tile.dtype), total,
                    input_precision=PRECISION, out_dtype=ACCUMULATOR,
                )  # fmt: skip
    if word_left is not None:
        first, last = expressions_of(image, batch, GROUPED)
        for expression in range(first, last):
            if image_of(image_index, expression, GROUPED) == image:
                own_left = word_left + expression * padded_places * WORDS
                own_left += (first_row + row)[:, None] * word_row_stride + number[None, :] * word_stride
                left_tile = tl.load(own_left)
                right_tile = load_padded(word_right + expression * WORDS * channels, number, channel, channels)
                total = dot(left_tile, right_tile.to(left_tile.dtype), total, PRECISION)
    place = first_row + row
    inside = place < places
    result += image * places * width
    if ADDED:
        old = result + place[:, None] * width + channel[None, :]
        total += tl.load(old, mask=inside[:, None] & (channel < width)[None, :], other=0.0).to(ACCUMULATOR)
    store_tile(result, total, place, channel, width, 1, inside, channel < width)


@triton.jit(do_not_specialize=["batch", "parts", "places"])
def _sum_word_logits_kernel(
    word_logits,  # [parts, 2, B, N, P]
    gradient,  # [B, N, P]
    batch, parts, places, padded_places,
    WORDS: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """The sum of the parts, less its mean.

    Each word's gradient of C sums to zero up to rounding. That error would be multiplied by the word's query,
    which is largest where the softmax is saturated and the true gradient vanishes, so it is subtracted,
    distributed over the places in proportion to the softmax.
    """
    own = (tl.program_id(1).to(tl.int64) * WORDS + tl.program_id(0)) * padded_places
    size = batch.to(tl.int64) * WORDS * padded_places
    left_over = tl.zeros([KEYS], ACCUMULATOR)
    share = tl.zeros([KEYS], ACCUMULATOR)
    for start in range(0, padded_places, KEYS):
        column = start + tl.arange(0, KEYS)
        for part in range(0, parts):
            parts_of = word_logits + 2 * part * size + own + column
            left_over += tl.load(parts_of, mask=column < places, other=0.0)
            share += tl.load(parts_of + size, mask=column < places, other=0.0)
    # A word of padding has no share and no gradient.
    scale = tl.sum(left_over, axis=0) / tl.maximum(tl.sum(share, axis=0), 1.2e-38)
    for start in range(0, padded_places, KEYS):
        column = start + tl.arange(0, KEYS)
        total = tl.zeros([KEYS], ACCUMULATOR)
        for part in range(0, parts):
            parts_of = word_logits + 2 * part * size + own + column
            total += tl.load(parts_of, mask=column < places, other=0.0)
            total -= scale * tl.load(parts_of + size, mask=column < places, other=0.0)
        tl.store(gradient + own + column, rounded(total.to(gradient.dtype.element_ty), PRECISION))


@triton.jit
def _product(
    left, row_stride, stride, right, inner, channels, total, number, channel,
    KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    for start in range(0, inner, KEYS):
        column = start + tl.arange(0, KEYS)
        left_tile = tl.load(left + number[:, None] * row_stride + column[None, :] * stride)
        right_tile = load_padded(right, column, channel, channels).to(left_tile.dtype)
        total = tl.dot(left_tile, right_tile, total, input_precision=PRECISION, out_dtype=total.dtype)
    return total


@triton.jit(do_not_specialize=["batch", "words", "parts"])
def _word_products_kernel(
    query, key, grad, word_query, word_key,
    gradient,  # [B, N, P], of C
    softmax,  # [B, P, N], V
    grad_place_logits,  # [B, P, N]
    grad_word_logits,  # [parts, B, N, N]
    image_index, grad_query, grad_key, grad_value,
    batch, words, width, value_width, padded_places, channels, value_channels, parts,
    GROUPED: tl.constexpr, WORDS: tl.constexpr, KEYS: tl.constexpr, CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """The gradients of the words' queries, keys and values, one for each program along the second axis."""
    expression = tl.program_id(2).to(tl.int64)
    image = image_of(image_index, expression, GROUPED)
    part = tl.program_id(1)
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    number = tl.arange(0, WORDS)
    is_word = number < words
    total = tl.zeros([WORDS, CHANNELS], ACCUMULATOR)
    at = expression * padded_places * WORDS
    if part == 2:
        if tl.program_id(0) * CHANNELS < value_channels:
            upstream = grad + expression * padded_places * value_channels
            total = _product(
                softmax + at, 1, WORDS, upstream, padded_places, value_channels, total, number, channel,
                KEYS, PRECISION,
            )  # fmt: skip
            store_tile(
                grad_value + expression * words * value_width, total, number, channel, value_width, 1,
                is_word, channel < value_width,
            )  # fmt: skip
    elif tl.program_id(0) * CHANNELS < channels:
        grad_words = tl.zeros([WORDS, WORDS], ACCUMULATOR)
        for block in range(0, parts):
            block_sum = grad_word_logits + (block * batch + expression) * WORDS * WORDS
            grad_words += load_padded(block_sum, number, number, WORDS)
        grad_operand = grad_words.to(gradient.dtype.element_ty)
        own = image * padded_places * channels
        if part == 0:
            total = _product(
                gradient + at, padded_places, 1, key + own, padded_places, channels, total, number, channel,
                KEYS, PRECISION,
            )  # fmt: skip
            words_tile = load_padded(word_key + expression * WORDS * channels, number, channel, channels)
            total = dot(grad_operand, words_tile.to(grad_operand.dtype), total, PRECISION)
            out = grad_query + expression * words * width
        else:
            total = _product(
                grad_place_logits + at, 1, WORDS, query + own, padded_places, channels, total, number, channel,
                KEYS, PRECISION,
            )  # fmt: skip
            words_tile = load_padded(word_query + expression * WORDS * channels, number, channel, channels)
            total = dot(tl.trans(grad_operand), words_tile.to(grad_operand.dtype), total, PRECISION)
            out = grad_key + expression * words * width
        store_tile(out, total, number, channel, width, 1, is_word, channel < width)


def places_backward(
    call: Call,
    left: Tensor,
    right: Tensor,
    words: tuple[Tensor, Tensor] | None,
    result: Tensor,
    *,
    first_row: int,
    transposed: bool,
    per_expression: bool = False,
    added: bool = False,
) -> None:
    """Write a gradient of places: left right, or left^T right, plus word_left word_right.

    Args:
        call: Of forward.
        left: [., rows, P], of a slab of rows: for each image, or for each expression if per_expression (the
            products of an image's expressions are summed).
        right: [., P, C], padded; with `transposed` its rows of the slab are used.
        words: [B, P, N] (or [B, N, P] with `transposed`) and [B, N, C]; summed over an image's expressions.
        result: [B_images, places, width].
        first_row: The first row of the slab.
        transposed: Whether the product runs over the slab's rows, to all rows of the result.
        added: Whether to add to the result.
    """
    sizes, _, image_index = call
    tile = tile_of("products", right.dtype)
    rows, padded_places = left.shape[1:]
    channels = right.shape[2]
    block = channel_block(channels, tile.channels)
    word_left, word_right = words or (None, None)
    strides = (sizes.padded_words, 1)
    if transposed:
        strides = (1, padded_places)
    launch(
        _place_products_kernel,
        (channels // block, (padded_places if transposed else rows) // tile.rows, sizes.images),
        left, right, word_left, word_right, image_index, result,
        sizes.batch, sizes.places, result.shape[2], 0 if transposed else first_row, rows,
        min(rows, sizes.places - first_row) if transposed else sizes.places,
        first_row if transposed else 0, right.shape[1],
        padded_places, channels, *strides,
        TRANSPOSED=transposed, PER_EXPRESSION=per_expression, ADDED=added, **call.constants,
        ROWS=tile.rows, KEYS=tile.keys, CHANNELS=block,
        **options(tile, right.dtype),
    )  # fmt: skip


def word_logits_backward(call: Call, word_logits: Tensor) -> Tensor:
    """The gradient of C in parts [parts, 2, B, N, P] -> its sum [B, N, P], an operand."""
    sizes, state, _ = call
    parts, _, batch, words, keys = word_logits.shape
    gradient = state.word_factor.new_empty(batch, words, keys)
    tile = tile_of("word_products", state.query.dtype)
    launch(
        _sum_word_logits_kernel,
        (words, batch),
        word_logits, gradient, batch, parts, sizes.places, keys,
        WORDS=words, KEYS=tile.keys, **options(tile, state.query.dtype),
    )  # fmt: skip
    return gradient


def words_products(
    call: Call,
    grad: Tensor,
    gradient: Tensor,
    softmax: Tensor,
    grad_place_logits: Tensor,
    grad_word_logits: Tensor,
) -> list[Tensor]:
    """The gradients of the words' queries and keys [B, N, d] and values [B, N, e].

    Args:
        call: Of forward, with centred operands.
        grad: [B, P, e], of the result, padded.
        gradient: [B, N, P], of C.
        softmax, grad_place_logits, grad_word_logits: Of `words_backward`.
    """
    sizes, state, image_index = call
    dtype = grad.dtype
    tile = tile_of("word_products", dtype)
    block = tile.channels
    widths = (sizes.width, sizes.width, sizes.value_width)
    grads = [grad.new_empty(sizes.batch, sizes.words, width) for width in widths]
    launch(
        _word_products_kernel,
        (max(sizes.channels, sizes.value_channels) // block, 3, sizes.batch),
        state.query, state.key, grad, state.word_query, state.word_key,
        gradient, softmax, grad_place_logits, grad_word_logits, image_index, *grads,
        sizes.batch, sizes.words, sizes.width, sizes.value_width, sizes.padded_places,
        sizes.channels, sizes.value_channels, len(grad_word_logits),
        **call.constants, KEYS=tile.keys, CHANNELS=block,
        **options(tile, dtype),
    )  # fmt: skip
    return grads
