"""Forward over places: the attended values W x_value + V y_value + offset of a slab of rows."""

import triton
import triton.language as tl
from torch import Tensor

from ...triton.launch import accumulator, launch, precision
from ...triton.primitives import dot, image_of, load_padded, rounded, store_tile
from ..state import Call, column_block
from .tile_sizes import channel_block, tile_of


@triton.jit(do_not_specialize=["places", "stored_places", "first_row", "rows"])
def _values_kernel(
    exponentials, tile_max, word_factor, ratio, row_max, value,
    place_offset,  # [B, e], to be subtracted from the values; None if their copy lost it
    softmax,  # [B, P, N], V
    word_value, offset, image_index,
    attended,  # [B, places, value_width]
    places, stored_places, value_width, first_row, rows, padded_places, value_channels,
    GROUPED: tl.constexpr, WORDS: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, CHANNELS: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    expression = tl.program_id(2).to(tl.int64)
    image = image_of(image_index, expression, GROUPED)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    number = tl.arange(0, WORDS)
    exponentials += image * rows * padded_places
    tile_max += image * (padded_places // BLOCK) * rows
    value += image * stored_places * value_channels
    word_factor += expression * WORDS * padded_places
    at = expression * padded_places + first_row
    largest = tl.load(row_max + at + row)
    weights = load_padded(ratio + at * WORDS, row, number, WORDS).to(word_factor.dtype.element_ty)
    weights = rounded(weights, PRECISION)
    total = tl.zeros([ROWS, CHANNELS], ACCUMULATOR)
    sums = tl.zeros([ROWS], ACCUMULATOR)
    for start in tl.range(0, places, KEYS, num_stages=STAGES):
        column = start + tl.arange(0, KEYS)
        tile = load_padded(exponentials, row, column, padded_places).to(ACCUMULATOR)
        factor = load_padded(word_factor, number, column, padded_places)
        # Exponentials are relative to the maximum of their tile.
        scale = tl.exp(tl.load(tile_max + start // BLOCK * rows + row) - largest)
        mixed = tl.dot(weights, factor, input_precision=PRECISION, out_dtype=ACCUMULATOR)
        tile = (tile * scale[:, None] * mixed).to(value.dtype.element_ty)
        value_tile = load_padded(value, tl.minimum(column, stored_places - 1), channel, value_channels)
        if place_offset is not None:
            sums += tl.sum(tile.to(ACCUMULATOR), axis=1)
        total = tl.dot(
            rounded(tile, PRECISION), value_tile, total, input_precision=PRECISION, out_dtype=ACCUMULATOR
        )
    total = dot(
        load_padded(softmax + at * WORDS, row, number, WORDS),
        load_padded(word_value + expression * WORDS * value_channels, number, channel, value_channels),
        total, PRECISION,
    )  # fmt: skip
    total += tl.load(offset + expression * value_channels + channel)[None, :]
    if place_offset is not None:
        # W, rounded, times the values less their offset, and the offset.
        total += (1 - sums)[:, None] * tl.load(place_offset + expression * value_channels + channel)[None, :]
    store_tile(
        attended + expression * places * value_width, total, first_row + row, channel, value_width, 1,
        first_row + row < places, channel < value_width,
    )  # fmt: skip


def values_forward(
    call: Call,
    exponentials: Tensor,
    tile_max: Tensor,
    softmax: Tensor,
    place_offset: Tensor | None,
    first_row: int,
    attended: Tensor,
) -> None:
    """Fill a slab of rows, from first_row, of attended [B, places, e].

    Exponentials and tile_max are those of `logits.exponentials_of`, softmax and place_offset of `words_forward`.
    """
    sizes, state, image_index = call
    dtype = state.value.dtype
    tile = tile_of("values", dtype)
    rows = exponentials.shape[1]
    channels = channel_block(sizes.value_channels, tile.channels)
    launch(
        _values_kernel,
        (sizes.value_channels // channels, rows // tile.rows, sizes.batch),
        exponentials, tile_max, state.word_factor, state.ratio, state.row_max, state.value,
        place_offset, softmax, state.word_value, state.offset, image_index, attended,
        sizes.places, state.value.shape[1], sizes.value_width, first_row, rows, sizes.padded_places,
        sizes.value_channels,
        **call.constants, BLOCK=column_block(state.value),
        ROWS=tile.rows, KEYS=tile.keys, CHANNELS=channels, STAGES=tile.stages,
        PRECISION=precision(dtype), ACCUMULATOR=accumulator(dtype), num_warps=tile.warps,
    )  # fmt: skip
