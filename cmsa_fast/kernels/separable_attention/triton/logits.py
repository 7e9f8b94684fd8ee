"""Forward over places: logits of a slab of rows, their exponentials, and the sums of the softmax.

With A = x_query x_key^T, C from `words`, E = exp(A - row maximum) and E_C = exp(C - row maximum), the sums are
Z = E E_C^T and the mean softmax is W = E * (R E_C) with R = weight / Z. E is common to an image's expressions.
"""

import triton
import triton.language as tl
from torch import Tensor

from ...triton.launch import accumulator, launch, options
from ...triton.primitives import expressions_of, image_of, padded_products, rounded, store_padded
from ..state import Call, column_block
from .tile_sizes import FLOOR, tile_of


@triton.jit
def _word_max(tile_max, number, tiles):
    """The maximum of C of each word, [N]."""
    largest = tl.full([number.shape[0]], -3.0e38, tile_max.dtype.element_ty)
    for start in range(0, tiles, 32):
        tile = start + tl.arange(0, 32)
        own = tile_max + tile[:, None] * number.shape[0] + number[None, :]
        largest = tl.maximum(largest, tl.max(tl.load(own, mask=(tile < tiles)[:, None], other=-3.0e38), axis=0))
    return largest


@triton.jit(do_not_specialize=["places", "words", "first_row", "rows", "stored_places", "batch", "word_tiles"])
def _logits_kernel(
    query, key,
    word_logits,  # [B, N, P], C; without it, in backward, the next three are not needed either
    word_max,  # [B, word_tiles, N]
    word_factor, image_index,
    exponentials,  # [B_images, rows, P]
    tile_max,  # [B_images, P / BLOCK, rows]
    sums,  # [B, P / KEYS, rows, N], Z of each tile
    batch, places, words, first_row, rows, stored_places, padded_places, channels, word_tiles,
    GROUPED: tl.constexpr, WORDS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(2).to(tl.int64)
    tile_number, tiles = tl.program_id(0), tl.num_programs(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tile_number * KEYS + tl.arange(0, KEYS)
    column_block = tile_number * (KEYS // BLOCK)
    # The last tile may be wider than the padding.
    inside = (column < padded_places)[None, :]
    logits = padded_products(
        query + image * stored_places * channels, first_row + row, places,
        key + image * stored_places * channels, column, places, channels, CHUNK, PRECISION, ACCUMULATOR,
    )  # fmt: skip
    logits = tl.where((column < places)[None, :], logits, float("-inf"))
    # Finite in a tile of padding, so that the difference is no NaN.
    largest = tl.maximum(tl.max(logits, axis=1), -3.0e38)
    for block in tl.static_range(KEYS // BLOCK):
        if column_block + block < padded_places // BLOCK:
            tl.store(tile_max + (image * (padded_places // BLOCK) + column_block + block) * rows + row, largest)
    tile = rounded(tl.exp(logits - largest[:, None]).to(exponentials.dtype.element_ty), PRECISION)
    out = exponentials + image * rows * padded_places + row[:, None] * padded_places + column[None, :]
    tl.store(out, tile, mask=inside)
    if word_logits is not None:
        number = tl.arange(0, WORDS)
        is_word = number < words
        first, last = expressions_of(image, batch, GROUPED)
        for expression in range(first, last):
            if image_of(image_index, expression, GROUPED) == image:
                word_max_row = _word_max(word_max + expression * word_tiles * WORDS, number, word_tiles)
                own = expression * WORDS * padded_places + number[:, None] * padded_places + column[None, :]
                factor = tl.load(word_logits + own, mask=inside & is_word[:, None], other=float("-inf"))
                factor = tl.exp(factor - word_max_row[:, None]).to(word_factor.dtype.element_ty)
                factor = rounded(factor, PRECISION)
                if (tl.program_id(1) == 0) & (first_row == 0):
                    tl.store(word_factor + own, factor, mask=inside)
                # Z is summed from what is stored, so that its rounding cancels in R.
                partial = tl.dot(tile, tl.trans(factor), input_precision=PRECISION, out_dtype=ACCUMULATOR)
                at = (expression * tiles + tile_number) * rows * WORDS
                at += row[:, None] * WORDS + number[None, :]
                tl.store(sums + at, partial, mask=is_word[None, :])


@triton.jit(do_not_specialize=["places", "words", "first_row", "rows", "tiles", "blocks"])
def _ratio_kernel(
    tile_max, sums, weight, image_index, row_max, ratio, direct,
    places, words, first_row, rows, padded_places, tiles, blocks,
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
        own = sums + (tile * rows + row)[:, None] * WORDS + number[None, :]
        total += scale[:, None] * tl.load(own, mask=(number < words)[None, :], other=0.0)
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


def exponentials_of(
    call: Call, first_row: int, exponentials: Tensor, tile_max: Tensor, words: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Fill the exponentials and the maxima of their tiles for a slab of rows.

    Where words (C and the maxima of its tiles, of `words_forward`) are given, the first slab also fills the
    state's word_factor, and Z of each tile is returned, [B, tiles, rows, N]; else nothing of use.
    """
    sizes, state, image_index = call
    dtype = state.query.dtype
    tile = tile_of("logits", dtype)
    rows, keys = exponentials.shape[1:]
    tiles = triton.cdiv(keys, tile.keys)
    word_logits, word_max = words or (None, None)
    sums = state.weight.new_empty(sizes.batch if words else 0, tiles, rows, sizes.padded_words)
    launch(
        _logits_kernel,
        (tiles, rows // tile.rows, sizes.images),
        state.query, state.key, word_logits, word_max, state.word_factor, image_index,
        exponentials, tile_max, sums,
        sizes.batch, sizes.places, sizes.words, first_row, rows, state.key.shape[1], keys, sizes.channels,
        0 if word_max is None else word_max.shape[1],
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
        sizes.places, sizes.words, first_row, rows, sizes.padded_places, tiles, blocks,
        **call.constants, ROWS=tile.rows, BLOCKS=tile_of("logits", dtype).keys // column_block(state.query),
        FLOOR=FLOOR[state.weight.dtype],
        ACCUMULATOR=accumulator(dtype), num_warps=tile.warps,
    )  # fmt: skip
