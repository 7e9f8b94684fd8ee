"""Backward over places: from the gradient of the result to W and the gradient of the logits, for a slab of rows.

With E = exp(A - row maximum) and T = E * (grad value^T - delta), the gradient of A is T * (R E_C) - E * (G E_C),
where G = ((T E_C^T) * R) / Z, and that of C is E_C * (R^T T - G^T E).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...triton.launch import launch, options, row_splits
from ...triton.primitives import expressions_of, image_of, load_padded, padded_products, rounded, store_padded
from ..state import Call, column_block
from .tile_sizes import tile_of


@triton.jit(do_not_specialize=["places", "stored_places", "first_row", "rows"])
def _gradients_kernel(
    exponentials, tile_max, grad, value, word_factor, row_max, delta, image_index,
    scaled,  # [B, rows, P], T
    sums,  # [B, P / KEYS, rows, N], T E_C^T of each tile
    places, stored_places, first_row, rows, padded_places, value_channels,
    GROUPED: tl.constexpr, WORDS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    expression = tl.program_id(2).to(tl.int64)
    image = image_of(image_index, expression, GROUPED)
    tile_number, tiles = tl.program_id(0), tl.num_programs(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tile_number * KEYS + tl.arange(0, KEYS)
    # The last tile may be wider than the padding.
    inside = (column < padded_places)[None, :]
    stored = tl.minimum(column, padded_places - 1)
    number = tl.arange(0, WORDS)
    at = expression * padded_places + first_row
    grad_weights = padded_products(
        grad + at * value_channels, row, places - first_row,
        value + image * stored_places * value_channels, column, places,
        value_channels, CHUNK, PRECISION, ACCUMULATOR,
    )  # fmt: skip
    largest = tl.load(tile_max + (image * (padded_places // BLOCK) + tile_number * (KEYS // BLOCK)) * rows + row)
    scale = tl.exp(largest - tl.load(row_max + at + row))
    own = row[:, None] * padded_places + column[None, :]
    tile = tl.load(exponentials + image * rows * padded_places + own, mask=inside, other=0.0).to(ACCUMULATOR)
    product = tile * (scale[:, None] * (grad_weights - tl.load(delta + at + row)[:, None]))
    product = rounded(product.to(scaled.dtype.element_ty), PRECISION)
    tl.store(scaled + expression * rows * padded_places + own, product, mask=inside)
    factor = load_padded(word_factor + expression * WORDS * padded_places, number, stored, padded_places)
    partial = tl.dot(product, tl.trans(factor), input_precision=PRECISION, out_dtype=ACCUMULATOR)
    store_padded(sums + (expression * tiles + tile_number) * rows * WORDS, partial, row, number, WORDS, "ieee")


@triton.jit(do_not_specialize=["first_row", "rows", "tiles"])
def _correction_kernel(
    sums, ratio, weight,
    correction,  # [B, rows, N], G
    first_row, rows, padded_places, tiles,
    WORDS: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    expression = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    number = tl.arange(0, WORDS)
    sums += expression * tiles * rows * WORDS
    total = tl.zeros([ROWS, WORDS], ACCUMULATOR)
    for tile in range(0, tiles):
        total += load_padded(sums + tile * rows * WORDS, row, number, WORDS)
    weights = load_padded(ratio + (expression * padded_places + first_row) * WORDS, row, number, WORDS)
    # All real words have the same weight. R / Z overflows near the floor, so the product with the sum comes first.
    share = tl.max(tl.load(weight + expression * WORDS + number), axis=0)
    total = total * weights * (weights / share)
    store_padded(correction + expression * rows * WORDS, total, row, number, WORDS, "ieee")


@triton.jit(do_not_specialize=["first_row", "rows", "rows_per_split", "batch"])
def _weights_kernel(
    exponentials, tile_max, scaled, ratio, correction, row_max, word_factor, image_index,
    grad_logits,  # [B_images, rows, P]; W overwrites scaled
    word_logits,  # [splits, 2, B, N, P], the gradient of C and the softmax summed over rows
    batch, first_row, rows, rows_per_split, padded_places,
    GROUPED: tl.constexpr, WORDS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """The gradient of A, summed over an image's expressions, and W in place of T."""
    image = tl.program_id(2).to(tl.int64)
    split = tl.program_id(1)
    column = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    number = tl.arange(0, WORDS)
    exponentials += image * rows * padded_places
    tile_max += (image * (padded_places // BLOCK) + tl.program_id(0) * KEYS // BLOCK) * rows
    grad_logits += image * rows * padded_places
    first, last = expressions_of(image, batch, GROUPED)
    for expression in range(first, last):
        if image_of(image_index, expression, GROUPED) == image:
            own = scaled + expression * rows * padded_places
            ratios = ratio + (expression * padded_places + first_row) * WORDS
            corrections = correction + expression * rows * WORDS
            factor = load_padded(word_factor + expression * WORDS * padded_places, number, column, padded_places)
            grad_words = tl.zeros([KEYS, WORDS], ACCUMULATOR)
            shares = tl.zeros([KEYS, WORDS], ACCUMULATOR)
            last_row = tl.minimum(rows, (split + 1) * rows_per_split)
            for start in tl.range(split * rows_per_split, last_row, ROWS, num_stages=STAGES):
                row = start + tl.arange(0, ROWS)
                tile = load_padded(exponentials, row, column, padded_places)
                product = load_padded(own, row, column, padded_places)
                weights = load_padded(ratios, row, number, WORDS)
                scale = tl.load(tile_max + row) - tl.load(row_max + expression * padded_places + first_row + row)
                scale = tl.exp(scale)[:, None]
                # Exponentials are relative to the maximum of their tile: their factors are scaled instead.
                own_weights = rounded((scale * weights).to(factor.dtype), PRECISION)
                corrected = scale * load_padded(corrections, row, number, WORDS)
                corrected = rounded(corrected.to(factor.dtype), PRECISION)
                weights = rounded(weights.to(factor.dtype), PRECISION)
                mixed = tl.dot(weights, factor, input_precision=PRECISION, out_dtype=ACCUMULATOR)
                subtracted = tl.dot(corrected, factor, input_precision=PRECISION, out_dtype=ACCUMULATOR)
                grad_words = tl.dot(
                    tl.trans(product), weights, grad_words, input_precision=PRECISION, out_dtype=ACCUMULATOR
                )
                grad_words = tl.dot(
                    tl.trans(tile), -corrected, grad_words, input_precision=PRECISION, out_dtype=ACCUMULATOR
                )
                shares = tl.dot(
                    tl.trans(tile), own_weights, shares, input_precision=PRECISION, out_dtype=ACCUMULATOR
                )
                wide = tile.to(ACCUMULATOR)
                grad_tile = product.to(ACCUMULATOR) * mixed - wide * subtracted
                if GROUPED:
                    grad_tile += load_padded(grad_logits, row, column, padded_places).to(ACCUMULATOR)
                store_padded(own, wide * scale * mixed, row, column, padded_places, PRECISION)
                store_padded(grad_logits, grad_tile, row, column, padded_places, PRECISION)
            at = (split * 2 * batch + expression) * WORDS * padded_places
            factor = tl.trans(factor.to(ACCUMULATOR))
            out = column[:, None] + number[None, :] * padded_places
            tl.store(word_logits + at + out, grad_words * factor)
            tl.store(word_logits + at + batch * WORDS * padded_places + out, shares * factor)


def gradients_backward(
    call: Call, grad: Tensor, delta: Tensor, exponentials: Tensor, tile_max: Tensor, first_row: int
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Args:
        call: Of forward.
        grad: [B, P, e], of the result, padded.
        delta: [B, P], of `words_backward`.
        exponentials, tile_max: Of the slab, see `logits.exponentials_of`.
        first_row: The first row of the slab.

    Returns:
        W of the slab [B, rows, P]; the gradient of A, summed over the expressions of each image,
        [B_images, rows, P]; and the gradient of C with the softmax summed over rows, in parts
        [2, splits, 2, B, N, P]. Tokens in the direct form are missing in all, as the second half of the parts.
    """
    sizes, state, image_index = call
    dtype = grad.dtype
    rows, keys = exponentials.shape[1:]
    words, batch = sizes.padded_words, sizes.batch
    weights = exponentials.new_empty(batch, rows, keys)
    # An image's gradient is summed over its expressions.
    grad_logits = torch.empty_like(exponentials) if image_index is None else torch.zeros_like(exponentials)
    tile = tile_of("gradients", dtype)
    tiles = triton.cdiv(keys, tile.keys)
    sums = state.weight.new_empty(batch, tiles, rows, words)
    correction = state.weight.new_empty(batch, rows, words)
    constants = call.constants | {"BLOCK": column_block(grad)}
    launch(
        _gradients_kernel,
        (tiles, rows // tile.rows, batch),
        exponentials, tile_max, grad, state.value, state.word_factor, state.row_max, delta, image_index,
        weights, sums, sizes.places, state.value.shape[1], first_row, rows, keys, sizes.value_channels,
        ROWS=tile.rows, KEYS=tile.keys, CHUNK=tile.channels, **constants, **options(tile, dtype),
    )  # fmt: skip
    tile = tile_of("ratio", dtype)
    launch(
        _correction_kernel,
        (rows // tile.rows, batch),
        sums, state.ratio, state.weight, correction, first_row, rows, keys, tiles,
        WORDS=words, ROWS=tile.rows, **options(tile, dtype),
    )  # fmt: skip
    tile = tile_of("weights", dtype)
    splits, rows_per_split = row_splits(rows, tile.rows, keys // tile.keys * sizes.images)
    word_logits = state.weight.new_empty(2, splits, 2, batch, words, keys)
    launch(
        _weights_kernel,
        (triton.cdiv(sizes.places, tile.keys), splits, sizes.images),
        exponentials, tile_max, weights, state.ratio, correction, state.row_max, state.word_factor, image_index,
        grad_logits, word_logits, batch, first_row, rows, rows_per_split, keys,
        ROWS=tile.rows, KEYS=tile.keys, STAGES=tile.stages, **constants, **options(tile, dtype),
    )  # fmt: skip
    return weights, grad_logits, word_logits
