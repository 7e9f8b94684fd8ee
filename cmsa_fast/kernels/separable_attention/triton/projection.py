"""The output projection plus residual of a CMSA level (`level_tail`) in one kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...triton.launch import (
    INTERPRETED,
    Tile,
    accumulator,
    architecture,
    arithmetic,
    launch,
    precision,
)
from ...triton.primitives import load_tile, products, store_tile

# Rows are output channels and keys places. One table for all architectures: it fits the smallest of them.
_TILES = {
    "half": Tile(rows=128, keys=128, channels=64, warps=8, stages=3),
    "tf32": Tile(rows=64, keys=128, channels=32, warps=8, stages=3),
    "ieee": Tile(rows=64, keys=64, channels=32, warps=4, stages=2),
}


@triton.jit
def _level_tail_kernel(
    attended,  # [B, P, WIDTH]
    weight,  # [C, WIDTH]
    visual,  # [G, P, Cv]
    mean_word,  # [B, Cl]
    coordinates,  # [C - Cv - Cl, P]
    image_index,  # [B], or None
    result,  # [B, C, P]
    places,
    channels,
    visual_channels,
    word_channels,
    attended_batch_stride,
    attended_row_stride,
    attended_stride,
    weight_row_stride,
    weight_stride,
    visual_batch_stride,
    visual_row_stride,
    visual_stride,
    word_batch_stride,
    word_stride,
    coordinate_stride,
    coordinate_place_stride,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    """One block of channels and places of an expression; neighbouring programs share rows of the weight."""
    place_blocks = tl.cdiv(places, KEYS)
    channel_blocks = tl.cdiv(channels, ROWS)
    program = tl.program_id(0)
    expression = (program // (place_blocks * channel_blocks)).to(tl.int64)
    first = program // place_blocks % channel_blocks * ROWS
    channel = first + tl.arange(0, ROWS)
    place = program % place_blocks * KEYS + tl.arange(0, KEYS)
    real_channel = channel < channels
    real_place = place < places

    total = products(
        weight, channel, weight_row_stride, weight_stride, real_channel,
        attended + expression * attended_batch_stride,
        place, attended_row_stride, attended_stride, real_place,
        WIDTH, CHUNK, PRECISION, ACCUMULATOR,
    )  # fmt: skip

    if first < visual_channels:
        image = expression
        if image_index is not None:
            image = tl.load(image_index + expression)
        residual = load_tile(
            visual + image * visual_batch_stride, channel, place,
            visual_stride, visual_row_stride, channel < visual_channels, real_place,
        )  # fmt: skip
        total += residual.to(ACCUMULATOR)
    word = channel - visual_channels
    is_word = (word >= 0) & (word < word_channels)
    words = mean_word + expression * word_batch_stride + word.to(tl.int64) * word_stride
    total += tl.load(words, mask=is_word, other=0.0).to(ACCUMULATOR)[:, None]
    if first + ROWS > visual_channels + word_channels:
        spatial = word - word_channels
        residual = load_tile(
            coordinates, spatial, place, coordinate_stride, coordinate_place_stride,
            (spatial >= 0) & real_channel, real_place,
        )  # fmt: skip
        total += residual.to(ACCUMULATOR)

    store_tile(
        result + expression * channels * places, total, channel, place, places, 1,
        real_channel, real_place,
    )  # fmt: skip


def launch_level_tail(
    attended: Tensor,
    output_weight: Tensor,
    unit_visual: Tensor,
    mean_word: Tensor,
    coordinates: Tensor,
    image_index: Tensor | None,
) -> Tensor:
    """The forward pass of `cmsa_fast.kernels.level_tail`.

    Args:
        attended: [B, P, d], with any strides, as all inputs.
        output_weight: [C, d].
        unit_visual: [B_images, P, Cv].
        mean_word: [B, Cl].
        coordinates: [C - Cv - Cl, P].
        image_index: int64 [B], or None.

    Returns:
        [B, C, P] in the inputs' dtype; summed in float32 (float64 for float64 inputs).
    """
    batch, places, width = attended.shape
    channels = len(output_weight)
    tile = level_tail_tile(attended.dtype, architecture())
    result = attended.new_empty(batch, channels, places)
    launch(
        _level_tail_kernel,
        (batch * triton.cdiv(channels, tile.rows) * triton.cdiv(places, tile.keys),),
        attended,
        output_weight,
        unit_visual,
        mean_word,
        coordinates,
        None if image_index is None else image_index.contiguous(),
        result,
        places,
        channels,
        unit_visual.shape[2],
        mean_word.shape[1],
        *attended.stride(),
        *output_weight.stride(),
        *unit_visual.stride(),
        *mean_word.stride(),
        *coordinates.stride(),
        WIDTH=width,
        ROWS=tile.rows,
        KEYS=tile.keys,
        CHUNK=tile.channels,
        PRECISION=precision(attended.dtype),
        ACCUMULATOR=accumulator(attended.dtype),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return result


def level_tail_tile(dtype: torch.dtype, on_architecture: int) -> Tile:
    """The tile on an architecture of `launch.ARCHITECTURES` or in the interpreter."""
    return _TILES[arithmetic(dtype)] if on_architecture else INTERPRETED
