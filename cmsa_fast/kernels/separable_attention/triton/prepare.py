"""Copies of the inputs as the other kernels read them: less their common offsets, padded with zeros, contiguous.

Attention is invariant to an offset that all queries, keys or values share; only rounding improves without it. Any
offset is exact, so that of places is the mean of a sample of them, in the channels where it outweighs the spread.
It is rounded to the features' dtype, so that subtracting it from 16-bit features is mostly exact (Sterbenz).
16-bit queries and keys are read as they are in forward where their layout allows it, and copied in backward.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...backends import compute_dtype
from ...triton.launch import launch, options
from ...triton.primitives import image_of, load_tile, store_padded
from ..state import Call, Sizes
from .tile_sizes import tile_of

# Places that their common offset is the mean of.
_SAMPLES = 32


@triton.jit
def _common(mean, square, features):
    """The mean where it outweighs the spread around it, else zero; zero too where a row is not finite."""
    mean = tl.where(2 * mean * mean > square, mean, 0.0)
    return mean.to(features.dtype.element_ty).to(square.dtype)


@triton.jit(do_not_specialize=["places"])
def _places_kernel(
    features, strides,
    offset,  # [B_images, C], or None for a copy that is only padded
    result,  # [B_images, P, C]
    places, width, padded_places, channels,
    SAMPLES: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(2).to(tl.int64)
    features += image * strides[0]
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    tile = load_tile(features, row, column, strides[1], strides[2], row < places, column < width)
    if offset is not None:
        sample = tl.arange(0, SAMPLES) * places // SAMPLES
        rows = load_tile(features, sample, column, strides[1], strides[2], sample < places, column < width)
        rows = rows.to(ACCUMULATOR)
        mean = _common(tl.sum(rows, axis=0) / SAMPLES, tl.sum(rows * rows, axis=0) / SAMPLES, features)
        if tl.program_id(1) == 0:
            tl.store(offset + image * channels + column, mean)
        tile = tl.where((row < places)[:, None], tile.to(ACCUMULATOR) - mean[None, :], 0.0)
    store_padded(result + image * padded_places * channels, tile, row, column, channels, PRECISION)


@triton.jit
def _copy_words(
    features, strides, expression, number, weight, added, offset, result, width, channels,
    CENTRED: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Copy words less their weighted common offset if CENTRED, else plus `added`; padding becomes zero."""
    features += expression * strides[0]
    real = weight > 0
    for start in range(0, channels, CHUNK):
        column = start + tl.arange(0, CHUNK)
        tile = load_tile(features, number, column, strides[1], strides[2], real, column < width)
        tile = tile.to(ACCUMULATOR)
        if CENTRED:
            share = weight[:, None] * tile
            mean = _common(tl.sum(share, axis=0), tl.sum(share * tile, axis=0), features)
            tile -= mean[None, :]
            if offset is not None:
                tl.store(offset + column, mean + tl.load(added + column))
        elif added is not None:
            tile += tl.load(added + column)[None, :]
        tile = tl.where(real[:, None], tile, 0.0)
        store_padded(result, tile, number, column, channels, PRECISION)


@triton.jit(do_not_specialize=["words"])
def _words_kernel(
    query, query_strides, key, key_strides, value, value_strides, weight, query_offset, value_offset, image_index,
    query_out, key_out, value_out, weight_out, offset_out,
    words, width, value_width, channels, value_channels,
    GROUPED: tl.constexpr, WORDS: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    expression = tl.program_id(1).to(tl.int64)
    image = image_of(image_index, expression, GROUPED)
    part = tl.program_id(0)
    number = tl.arange(0, WORDS)
    weights = tl.load(weight + expression * words + number, mask=number < words, other=0.0)
    out = expression * WORDS * channels
    if part == 0:
        tl.store(weight_out + expression * WORDS + number, weights)
        # Where the places' queries lost their common offset, the words' queries gain it.
        added = query_offset + image * channels if query_offset is not None else None
        _copy_words(
            query, query_strides, expression, number, weights, added, None, query_out + out, width, channels,
            False, CHUNK, PRECISION, ACCUMULATOR,
        )  # fmt: skip
    elif part == 1:
        _copy_words(
            key, key_strides, expression, number, weights, None, None, key_out + out, width, channels,
            True, CHUNK, PRECISION, ACCUMULATOR,
        )  # fmt: skip
    else:
        _copy_words(
            value, value_strides, expression, number, weights, value_offset + image * value_channels,
            offset_out + expression * value_channels, value_out + expression * WORDS * value_channels,
            value_width, value_channels, True, CHUNK, PRECISION, ACCUMULATOR,
        )  # fmt: skip


def prepare(call: Call, features: list[Tensor], weight: Tensor) -> None:
    """Fill the first eight tensors of the state; query and key only if they are not empty.

    Args:
        call: Its state is to be filled.
        features: Place query, key, value and word query, key, value, with any strides.
        weight: [B, N], 1 / (number of real words) on real words, 0 on padding, contiguous.
    """
    sizes, state, _ = call
    query_offset = None
    if not sizes.in_place:
        query_offset = _copy_places(features[0], state.query, sizes)
        _copy_places(features[1], state.key, sizes)
    value_offset = _copy_places(features[2], state.value, sizes)
    _launch_words(call, features[3:], weight, query_offset, value_offset, 3)


def prepare_products(call: Call) -> Call:
    """The call with centred copies of query, key and word query where forward read the inputs in place.

    Products with rounded gradients of the logits would amplify an offset.
    """
    sizes, state, _ = call
    if not sizes.in_place:
        return call
    query, key = (state.value.new_empty(sizes.images, sizes.padded_places, sizes.channels) for _ in range(2))
    own = state._replace(query=query, key=key, word_query=torch.empty_like(state.word_query))
    centred = call._replace(state=own)
    offset = _copy_places(state.query, query, sizes)
    _copy_places(state.key, key, sizes)
    _launch_words(centred, [state.word_query] * 3, state.weight, offset, offset, 1)
    return centred


def pad(features: Tensor, sizes: Sizes) -> Tensor:
    """[B, P, e] with any strides -> contiguous, padded with zeros."""
    result = features.new_empty(len(features), sizes.padded_places, sizes.value_channels)
    _copy_places(features, result, sizes, centred=False)
    return result


def _copy_places(features: Tensor, result: Tensor, sizes: Sizes, *, centred: bool = True) -> Tensor | None:
    """Fill the result; returns the offsets [B_images, C]."""
    dtype = features.dtype
    tile = tile_of("prepare", dtype)
    channels = result.shape[2]
    offset = None
    if centred:
        offset = features.new_empty(len(features), channels, dtype=compute_dtype(dtype))
    launch(
        _places_kernel,
        (channels // tile.channels, sizes.padded_places // tile.rows, len(features)),
        features, features.stride(), offset, result,
        sizes.places, features.shape[2], sizes.padded_places, channels,
        SAMPLES=_SAMPLES, ROWS=tile.rows, CHUNK=tile.channels, **options(tile, dtype),
    )  # fmt: skip
    return offset


def _launch_words(
    call: Call,
    features: list[Tensor],
    weight: Tensor,
    query_offset: Tensor | None,
    value_offset: Tensor | None,
    parts: int,
) -> None:
    """Fill the first parts of word query, key and value, and their weight and offset."""
    sizes, state, image_index = call
    tile = tile_of("prepare", state.value.dtype)
    launch(
        _words_kernel,
        (parts, sizes.batch),
        *(item for part in features for item in (part, part.stride())),
        weight, query_offset, value_offset, image_index,
        state.word_query, state.word_key, state.word_value, state.weight, state.offset,
        weight.shape[1], sizes.width, sizes.value_width, sizes.channels, sizes.value_channels,
        **call.constants, CHUNK=tile.channels, **options(tile, state.value.dtype),
    )  # fmt: skip
