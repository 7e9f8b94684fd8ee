"""Copies of the places' features as the other kernels read them: less their common offset, padded with zeros.

Attention is invariant to an offset that all queries, keys or values share; only rounding improves without it. Any
offset is exact, so that of places is the mean of a sample of them, in the channels where it outweighs the spread.
It is rounded to the features' dtype, so that subtracting it from 16-bit features is mostly exact (Sterbenz).
16-bit features are read as they are in forward where their layout allows it: their products are exact in float32,
and `values` subtracts what the offset adds to W x_value. Queries and keys are copied in backward.
"""

import triton
import triton.language as tl
from torch import Tensor

from ...triton.launch import launch, options
from ...triton.primitives import load_tile, store_padded
from ..state import Sizes
from .tile_sizes import tile_of

# Places that their common offset is the mean of.
SAMPLES = 32


@triton.jit
def common_offset(mean, square, features):
    """The mean where it outweighs the spread around it, else zero; zero too where a row is not finite."""
    mean = tl.where(2 * mean * mean > square, mean, 0.0)
    return mean.to(features.dtype.element_ty).to(square.dtype)


@triton.jit
def sampled_offset(features, strides, column, places, width, SAMPLES: tl.constexpr, ACCUMULATOR: tl.constexpr):
    """The common offset of an image's features in some channels, from a sample of its places."""
    sample = tl.arange(0, SAMPLES) * places // SAMPLES
    rows = load_tile(features, sample, column, strides[1], strides[2], sample < places, column < width)
    rows = rows.to(ACCUMULATOR)
    return common_offset(tl.sum(rows, axis=0) / SAMPLES, tl.sum(rows * rows, axis=0) / SAMPLES, features)


@triton.jit(do_not_specialize=["places"])
def _places_kernel(
    features, strides,
    result,  # [B_images, P, C]
    places, width, padded_places, channels,
    CENTRED: tl.constexpr, SAMPLES: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(2).to(tl.int64)
    features += image * strides[0]
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    tile = load_tile(features, row, column, strides[1], strides[2], row < places, column < width)
    if CENTRED:
        mean = sampled_offset(features, strides, column, places, width, SAMPLES, ACCUMULATOR)
        tile = tl.where((row < places)[:, None], tile.to(ACCUMULATOR) - mean[None, :], 0.0)
    store_padded(result + image * padded_places * channels, tile, row, column, channels, PRECISION)


def pad(features: Tensor, sizes: Sizes) -> Tensor:
    """[B, P, e] with any strides -> contiguous, padded with zeros."""
    result = features.new_empty(len(features), sizes.padded_places, sizes.value_channels)
    copy_places(features, result, sizes, centred=False)
    return result


def copy_places(features: Tensor, result: Tensor, sizes: Sizes, *, centred: bool = True) -> None:
    """Fill the result [., P, C], padded, from features of places with any strides."""
    tile = tile_of("prepare", features.dtype)
    channels = result.shape[2]
    launch(
        _places_kernel,
        (channels // tile.channels, sizes.padded_places // tile.rows, len(features)),
        features, features.stride(), result,
        sizes.places, features.shape[2], sizes.padded_places, channels,
        CENTRED=centred, SAMPLES=SAMPLES, ROWS=tile.rows, CHUNK=tile.channels, **options(tile, features.dtype),
    )  # fmt: skip
