"""Copies of the inputs as the other kernels read them: less their common offsets, padded with zeros, contiguous.

Attention is invariant to an offset that all queries, keys or values share; only rounding improves without it
(see `cmsa_fast.kernels.separable_attention.numerics`). The offset of 16-bit features is rounded to 16 bits, so
that subtracting it is mostly exact (Sterbenz's lemma). 16-bit queries and keys are read as they are in forward
where their layout allows it, and copied in backward.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...triton.launch import accumulator, launch, precision
from ...triton.primitives import image_of, load_tile, store_padded
from ..state import Sizes, State
from .tile_sizes import tile_of


@triton.jit
def _column_sums(
    features, strides, image, column, places, width, sums, squares,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    total = tl.zeros([CHUNK], ACCUMULATOR)
    square = tl.zeros([CHUNK], ACCUMULATOR)
    for start in range(0, places, ROWS):
        row = start + tl.arange(0, ROWS)
        tile = load_tile(
            features + image * strides[0], row, column, strides[1], strides[2], row < places, column < width
        ).to(ACCUMULATOR)
        total += tl.sum(tile, axis=0)
        square += tl.sum(tile * tile, axis=0)
    tl.store(sums + column, total)
    tl.store(squares + column, square)


@triton.jit(do_not_specialize=["places"])
def _statistics_kernel(
    query, query_strides, key, key_strides, value, value_strides,
    sums,  # [B_images, 3, 2, C], of the columns and of their squares
    places, width, value_width, columns,
    FIRST: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(2).to(tl.int64)
    part = FIRST + tl.program_id(1)
    column = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    sums += (image * 3 + part) * 2 * columns
    squares = sums + columns
    if part == 0:
        _column_sums(query, query_strides, image, column, places, width, sums, squares, ROWS, CHUNK, ACCUMULATOR)
    elif part == 1:
        _column_sums(key, key_strides, image, column, places, width, sums, squares, ROWS, CHUNK, ACCUMULATOR)
    else:
        _column_sums(
            value, value_strides, image, column, places, value_width, sums, squares, ROWS, CHUNK, ACCUMULATOR
        )


@triton.jit
def _centre(
    features, strides, row, places, width, sums, columns, offset, first, result, channels,
    CENTRED: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Copy rows less their common offset: the mean where it outweighs the spread around it, else zero."""
    common = False
    if CENTRED:
        of_mean = tl.zeros([CHUNK], ACCUMULATOR)
        of_rows = tl.zeros([CHUNK], ACCUMULATOR)
        for start in range(0, channels, CHUNK):
            column = start + tl.arange(0, CHUNK)
            mean = tl.load(sums + column) / places
            of_mean += mean * mean
            of_rows += tl.load(sums + columns + column) / places
        # False where a row is not finite, which would otherwise spread to all rows.
        common = 2 * tl.sum(of_mean, axis=0) > tl.sum(of_rows, axis=0)
    for start in range(0, channels, CHUNK):
        column = start + tl.arange(0, CHUNK)
        tile = load_tile(features, row, column, strides[1], strides[2], row < places, column < width)
        if CENTRED:
            mean = tl.where(common, tl.load(sums + column) / places, 0.0)
            mean = mean.to(features.dtype.element_ty).to(ACCUMULATOR)
            if first:
                tl.store(offset + column, mean)
            tile = tl.where((row < places)[:, None], tile.to(ACCUMULATOR) - mean[None, :], 0.0)
        store_padded(result, tile, row, column, channels, PRECISION)


@triton.jit(do_not_specialize=["places"])
def _centre_places_kernel(
    query, query_strides, key, key_strides, value, value_strides, sums,
    offset,  # [B_images, 3, C]
    query_out, key_out, value_out,
    places, width, value_width, padded_places, channels, value_channels, columns,
    FIRST: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(2).to(tl.int64)
    part = FIRST + tl.program_id(1)
    first = tl.program_id(0) == 0
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    sums += (image * 3 + part) * 2 * columns
    offset += (image * 3 + part) * columns
    if part == 0:
        _centre(
            query + image * query_strides[0], query_strides, row, places, width, sums, columns, offset, first,
            query_out + image * padded_places * channels, channels, True, CHUNK, PRECISION, ACCUMULATOR,
        )  # fmt: skip
    elif part == 1:
        _centre(
            key + image * key_strides[0], key_strides, row, places, width, sums, columns, offset, first,
            key_out + image * padded_places * channels, channels, True, CHUNK, PRECISION, ACCUMULATOR,
        )  # fmt: skip
    else:
        _centre(
            value + image * value_strides[0], value_strides, row, places, value_width, sums, columns, offset,
            first, value_out + image * padded_places * value_channels, value_channels,
            True, CHUNK, PRECISION, ACCUMULATOR,
        )  # fmt: skip


@triton.jit
def _centre_words(
    features, strides, expression, number, real, weight, added, offset, result, width, channels,
    CENTRED: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Copy words less their weighted common offset if CENTRED, else plus `added`; padding becomes zero."""
    features += expression * strides[0]
    common = False
    if CENTRED:
        of_mean = tl.zeros([CHUNK], ACCUMULATOR)
        of_words = tl.zeros([CHUNK], ACCUMULATOR)
        for start in range(0, channels, CHUNK):
            column = start + tl.arange(0, CHUNK)
            tile = load_tile(features, number, column, strides[1], strides[2], real, column < width)
            tile = tile.to(ACCUMULATOR)
            mean = tl.sum(weight[:, None] * tile, axis=0)
            of_mean += mean * mean
            of_words += tl.sum(weight[:, None] * tile * tile, axis=0)
        common = 2 * tl.sum(of_mean, axis=0) > tl.sum(of_words, axis=0)
    for start in range(0, channels, CHUNK):
        column = start + tl.arange(0, CHUNK)
        tile = load_tile(features, number, column, strides[1], strides[2], real, column < width)
        tile = tile.to(ACCUMULATOR)
        if CENTRED:
            mean = tl.where(common, tl.sum(weight[:, None] * tile, axis=0), 0.0)
            mean = mean.to(features.dtype.element_ty).to(ACCUMULATOR)
            tile -= mean[None, :]
            if offset is not None:
                tl.store(offset + column, mean + tl.load(added + column))
        elif added is not None:
            tile += tl.load(added + column)[None, :]
        tile = tl.where(real[:, None], tile, 0.0)
        store_padded(result, tile, number, column, channels, PRECISION)


@triton.jit(do_not_specialize=["words"])
def _centre_words_kernel(
    query, query_strides, key, key_strides, value, value_strides, weight, place_offset, image_index,
    query_out, key_out, value_out, weight_out, offset_out,
    words, width, value_width, channels, value_channels, columns,
    SHIFTED: tl.constexpr, GROUPED: tl.constexpr, WORDS: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    expression = tl.program_id(1).to(tl.int64)
    part = tl.program_id(0)
    number = tl.arange(0, WORDS)
    weights = tl.load(weight + expression * words + number, mask=number < words, other=0.0)
    real = weights > 0
    place_offset += image_of(image_index, expression, GROUPED) * 3 * columns
    out = expression * WORDS * channels
    if part == 0:
        tl.store(weight_out + expression * WORDS + number, weights)
        # Where the places' queries lost their common offset, the words' queries gain it.
        added = place_offset if SHIFTED else None
        _centre_words(
            query, query_strides, expression, number, real, weights, added, None, query_out + out,
            width, channels, False, CHUNK, PRECISION, ACCUMULATOR,
        )  # fmt: skip
    elif part == 1:
        _centre_words(
            key, key_strides, expression, number, real, weights, None, None, key_out + out,
            width, channels, True, CHUNK, PRECISION, ACCUMULATOR,
        )  # fmt: skip
    else:
        _centre_words(
            value, value_strides, expression, number, real, weights, place_offset + 2 * columns,
            offset_out + expression * value_channels, value_out + expression * WORDS * value_channels,
            value_width, value_channels, True, CHUNK, PRECISION, ACCUMULATOR,
        )  # fmt: skip


@triton.jit(do_not_specialize=["places"])
def _pad_kernel(
    features, strides, result, places, width, padded_places, channels,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    _centre(
        features + batch * strides[0], strides, row, places, width, result, 0, result, False,
        result + batch * padded_places * channels, channels, False, CHUNK, PRECISION, ACCUMULATOR,
    )  # fmt: skip


def prepare(
    features: list[Tensor], weight: Tensor, image_index: Tensor | None, sizes: Sizes, state: State
) -> None:
    """Fill the first eight tensors of the state; query and key only if they are not empty.

    Args:
        features: Place query, key, value and word query, key, value, with any strides.
        weight: [B, N], 1 / (number of real words) on real words, 0 on padding, contiguous.
        image_index: int64 [B], contiguous, or None.
        sizes: Of the features.
        state: To be filled.
    """
    copied = state.query.shape[1] > 0
    offset = _copy_places(features[:3], sizes, state, 0 if copied else 2, 3)
    _copy_words(features[3:], weight, offset, image_index, sizes, state, 3, shifted=copied)


def prepare_products(image_index: Tensor | None, sizes: Sizes, state: State) -> State:
    """The state with centred copies of query, key and word query where forward read the inputs in place.

    Products with rounded gradients of the logits would amplify an offset.
    """
    if state.query.shape[1] == sizes.padded_places:
        return state
    query, key = (state.value.new_empty(sizes.images, sizes.padded_places, sizes.channels) for _ in range(2))
    centred = state._replace(query=query, key=key, word_query=torch.empty_like(state.word_query))
    offset = _copy_places([state.query, state.key, state.key], sizes, centred, 0, 2)
    words = [state.word_query] * 3
    _copy_words(words, state.weight, offset, image_index, sizes, centred, 1, shifted=True)
    return centred


def _copy_places(features: list[Tensor], sizes: Sizes, state: State, first: int, last: int) -> Tensor:
    """Fill parts first..last - 1 of query, key and value; returns their offsets, [B_images, 3, C]."""
    dtype = state.value.dtype
    tile = tile_of("prepare", dtype)
    columns = max(sizes.channels, sizes.value_channels)
    sums = state.weight.new_empty(sizes.images, 3, 2, columns)
    offset = state.weight.new_empty(sizes.images, 3, columns)
    inputs = [item for part in features for item in (part, part.stride())]
    constants = {"FIRST": first, "ROWS": tile.rows, "CHUNK": tile.channels, "num_warps": tile.warps}
    launch(
        _statistics_kernel,
        (columns // tile.channels, last - first, sizes.images),
        *inputs, sums, sizes.places, sizes.width, sizes.value_width, columns,
        ACCUMULATOR=accumulator(dtype), **constants,
    )  # fmt: skip
    launch(
        _centre_places_kernel,
        (sizes.padded_places // tile.rows, last - first, sizes.images),
        *inputs, sums, offset, state.query, state.key, state.value,
        sizes.places, sizes.width, sizes.value_width, sizes.padded_places,
        sizes.channels, sizes.value_channels, columns,
        PRECISION=precision(dtype), ACCUMULATOR=accumulator(dtype), **constants,
    )  # fmt: skip
    return offset


def _copy_words(
    features: list[Tensor],
    weight: Tensor,
    offset: Tensor,
    image_index: Tensor | None,
    sizes: Sizes,
    state: State,
    parts: int,
    *,
    shifted: bool,
) -> None:
    """Fill the first parts of word query, key and value; the query takes the places' offset if shifted."""
    dtype = state.value.dtype
    tile = tile_of("prepare", dtype)
    inputs = [item for part in features for item in (part, part.stride())]
    launch(
        _centre_words_kernel,
        (parts, sizes.batch),
        *inputs, weight, offset, image_index,
        state.word_query, state.word_key, state.word_value, state.weight, state.offset,
        weight.shape[1], sizes.width, sizes.value_width, sizes.channels, sizes.value_channels, offset.shape[2],
        SHIFTED=shifted, GROUPED=image_index is not None, WORDS=sizes.padded_words, CHUNK=tile.channels,
        PRECISION=precision(dtype), ACCUMULATOR=accumulator(dtype), num_warps=tile.warps,
    )  # fmt: skip


def pad(features: Tensor, sizes: Sizes) -> Tensor:
    """[B, P, e] with any strides -> contiguous, padded with zeros."""
    tile = tile_of("prepare", features.dtype)
    result = features.new_empty(len(features), sizes.padded_places, sizes.value_channels)
    launch(
        _pad_kernel,
        (sizes.padded_places // tile.rows, len(features)),
        features, features.stride(), result,
        sizes.places, sizes.value_width, sizes.padded_places, sizes.value_channels,
        ROWS=tile.rows, CHUNK=tile.channels, PRECISION=precision(features.dtype),
        ACCUMULATOR=accumulator(features.dtype), num_warps=tile.warps,
    )  # fmt: skip
    return result
