"""Forward over places: logits of a slab of rows, their exponentials, and the sums of the softmax.

With A = x_query x_key^T, E = exp(A - row maximum) and E_C from `words`, the sums are Z = E E_C^T and the mean
softmax is W = E * (R E_C) with R = weight / Z. Only Z and R depend on the expression; E is common to an image's.
"""

import triton
import triton.language as tl
from torch import Tensor

from ...triton.launch import accumulator, launch, options
from ...triton.primitives import expressions_of, image_of, load_padded, padded_products, rounded, store_padded
from ..state import Call, column_block
from .tile_sizes import FLOOR, tile_of


@triton.jit(do_not_specialize=["places", "first_row", "rows", "stored_places", "batch"])
def _logits_kernel(
    query, key, word_factor, image_index,
    exponentials,  # [B_images, rows, P]
    tile_max,  # [B_images, P / BLOCK, rows]
    sums,  # [B, P / KEYS, rows, N], Z of each tile
    batch, places, first_row, rows, stored_places, padded_places, channels,
    GROUPED: tl.constexpr, WORDS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(2).to(tl.int64)
    tile_number, tiles = tl.program_id(0), tl.num_programs(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tile_number * KEYS + tl.arange(0, KEYS)
    column_block = tile_number * (KEYS // BLOCK)
    # The last tile may be wider than the padding.
    stored = tl.minimum(column, padded_places - 1)
    number = tl.arange(0, WORDS)
    logits = padded_products(
        query + image * stored_places * channels, tl.minimum(first_row + row, stored_places - 1),
        key + image * stored_places * channels, tl.minimum(column, stored_places - 1), channels,
        CHUNK, PRECISION, ACCUMULATOR,
    )  # fmt: skip
    logits = tl.where((column < places)[None, :], logits, float("-inf"))
    # Finite in a tile of padding, so that the difference is no NaN.
    largest = tl.maximum(tl.max(logits, axis=1), -3.0e38)
    for block in tl.static_range(KEYS // BLOCK):
        if column_block + block < padded_places // BLOCK:
            tl.store(tile_max + (image * (padded_places // BLOCK) + column_block + block) * rows + row, largest)
    tile = tl.exp(logits - largest[:, None]).to(exponentials.dtype.element_ty)
    tile = rounded(tile, PRECISION)
    out = exponentials + image * rows * padded_places + row[:, None] * padded_places + column[None, :]
    tl.store(out, tile, mask=(column < padded_places)[None, :])
    # Z is summed from what is stored, so that its rounding cancels in R.
    first, last = expressions_of(image, batch, GROUPED)
    for expression in range(first, last):
        if image_of(image_index, expression, GROUPED) == image:
            factor = load_padded(word_factor + expression * WORDS * padded_places, number, stored, padded_places)
            partial = tl.dot(tile, tl.trans(factor), input_precision=PRECISION, out_dtype=ACCUMULATOR)
            at = (expression * tiles + tile_number) * rows * WORDS
            store_padded(sums + at, partial, row, number, WORDS, "ieee")


@triton.jit(do_not_specialize=["places", "first_row", "rows", "tiles", "blocks"])
def _ratio_kernel(
    tile_max, sums, weight, image_index, row_max, ratio, direct,
    places, first_row, rows, padded_places, tiles, blocks,
    GROUPED: tl.constexpr, WORDS: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr, FLOOR: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Row maxima, R, and which tokens take the direct form because their Z is below the floor."""
    expression = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    number = tl.arange(0, WORDS)
    tile_max += image_of(image_index, expression, GROUPED) * blocks * rows
    sums += expression * tiles * rows * WORDS
    largest = tl.full([ROWS], -3.0e38, ACCUMULATOR)
    for tile in range(0, tiles):
        largest = tl.maximum(largest, tl.load(tile_max + tile * BLOCKS * rows + row))
    total = tl.zeros([ROWS, WORDS], ACCUMULATOR)
    for tile in range(0, tiles):
        scale = tl.exp(tl.load(tile_max + tile * BLOCKS * rows + row) - largest)
        total += scale[:, None] * load_padded(sums + tile * rows * WORDS, row, number, WORDS)
    weights = tl.load(weight + expression * WORDS + number)[None, :]
    real = (weights > 0) & (first_row + row < places)[:, None]
    under = real & (total < FLOOR)
    at = expression * padded_places + first_row
    tl.store(row_max + at + row, largest)
    factored = real & ~under
    inverse = tl.where(factored, weights / tl.where(factored, total, 1.0), 0.0)
    store_padded(ratio + at * WORDS, inverse, row, number, WORDS, "ieee")
    flags = tl.where(under, (number * 0 + 1).to(tl.int64)[None, :] << number.to(tl.int64)[None, :], 0)
    tl.store(direct + at + row, tl.sum(flags, axis=1))


def exponentials_of(call: Call, first_row: int, exponentials: Tensor, tile_max: Tensor) -> Tensor:
    """Fill the exponentials and the maxima of their tiles for a slab of rows.

    Returns:
        Z of each tile, [B, tiles, rows, N].
    """
    sizes, state, image_index = call
    dtype = state.query.dtype
    tile = tile_of("logits", dtype)
    rows, keys = exponentials.shape[1:]
    tiles = triton.cdiv(keys, tile.keys)
    sums = state.weight.new_empty(sizes.batch, tiles, rows, sizes.padded_words)
    launch(
        _logits_kernel,
        (tiles, rows // tile.rows, sizes.images),
        state.query, state.key, state.word_factor, image_index, exponentials, tile_max, sums,
        sizes.batch, sizes.places, first_row, rows, state.key.shape[1], keys, sizes.channels,
        ROWS=tile.rows, KEYS=tile.keys, CHUNK=tile.channels, BLOCK=column_block(state.query),
        **call.constants, **options(tile, dtype),
    )  # fmt: skip
    return sums


def ratios_of(call: Call, sums: Tensor, tile_max: Tensor, first_row: int) -> None:
    """Fill row_max, ratio and direct of a slab of rows, from what `exponentials_of` left."""
    sizes, state, image_index = call
    dtype = state.query.dtype
    tiles, blocks, rows = sums.shape[1], *tile_max.shape[1:]
    tile = tile_of("ratio", dtype)
    launch(
        _ratio_kernel,
        (rows // tile.rows, sizes.batch),
        tile_max, sums, state.weight, image_index, state.row_max, state.ratio, state.direct,
        sizes.places, first_row, rows, sizes.padded_places, tiles, blocks,
        **call.constants, ROWS=tile.rows, BLOCKS=tile_of("logits", dtype).keys // column_block(state.query),
        FLOOR=FLOOR[state.weight.dtype],
        ACCUMULATOR=accumulator(dtype), num_warps=tile.warps,
    )  # fmt: skip
