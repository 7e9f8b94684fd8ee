"""The output projection plus residual of a CMSA level (`level_tail`) in one kernel."""

import triton
import triton.language as tl
from torch import Tensor

from ...triton.launch import launch, options
from ...triton.primitives import image_of, load_tile, products, store_tile
from .tile_sizes import tile_of


@triton.jit
def _level_tail_kernel(
    attended,  # [B, P, d]
    weight,  # [C, d]
    visual, visual_strides,  # [B_images, P, Cv]
    mean_word, word_strides,  # [B, Cl]
    coordinates, coordinate_strides,  # [C - Cv - Cl, P]
    image_index,
    result,  # [B, C, P]
    places, channels, visual_channels, word_channels, width,
    GROUPED: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
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
        weight, channel, width, 1, real_channel,
        attended + expression * places * width, place, width, 1, real_place, width, CHUNK, PRECISION, ACCUMULATOR,
    )  # fmt: skip

    if first < visual_channels:
        image = image_of(image_index, expression, GROUPED)
        total += load_tile(
            visual + image * visual_strides[0], channel, place, visual_strides[2], visual_strides[1],
            channel < visual_channels, real_place,
        ).to(ACCUMULATOR)  # fmt: skip
    word = channel - visual_channels
    is_word = (word >= 0) & (word < word_channels)
    words = mean_word + expression * word_strides[0] + word.to(tl.int64) * word_strides[1]
    total += tl.load(words, mask=is_word, other=0.0).to(ACCUMULATOR)[:, None]
    if first + ROWS > visual_channels + word_channels:
        spatial = word - word_channels
        total += load_tile(
            coordinates, spatial, place, coordinate_strides[0], coordinate_strides[1],
            (spatial >= 0) & real_channel, real_place,
        ).to(ACCUMULATOR)  # fmt: skip
    own = result + expression * channels * places
    store_tile(own, total, channel, place, places, 1, real_channel, real_place)


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
    tile = tile_of("level_tail", attended.dtype)
    result = attended.new_empty(batch, channels, places)
    launch(
        _level_tail_kernel,
        (batch * triton.cdiv(channels, tile.rows) * triton.cdiv(places, tile.keys),),
        attended.contiguous(), output_weight.contiguous(),
        unit_visual, unit_visual.stride(), mean_word, mean_word.stride(), coordinates, coordinates.stride(),
        None if image_index is None else image_index.contiguous(), result,
        places, channels, unit_visual.shape[2], mean_word.shape[1], width,
        GROUPED=image_index is not None, ROWS=tile.rows, KEYS=tile.keys, CHUNK=tile.channels,
        **options(tile, attended.dtype),
    )  # fmt: skip
    return result
