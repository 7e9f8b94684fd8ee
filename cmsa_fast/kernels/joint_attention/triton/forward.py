"""Forward pass of the joint attention: online softmax over blocks of keys, as in flash attention."""

import triton
import triton.language as tl
from torch import Tensor

from ...backends import compute_dtype
from ...triton import launch
from . import tile_sizes
from .blocks import LOG2_E, block_product, load_block, real_keys


@triton.jit(do_not_specialize=["query_count", "key_count"])
def _joint_forward(
    query, query_strides, key, key_strides, value, value_strides, key_mask, mask_strides,
    attended, logsumexp, query_count, key_count, width, value_width,
    SCALE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, CHANNELS: tl.constexpr,
    VALUES: tl.constexpr, WHOLE: tl.constexpr, ACCUMULATOR: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Attended values of one block of queries and one slice of the values' channels, over all keys."""
    row_blocks = tl.cdiv(query_count, ROWS)
    batch = (tl.program_id(0) // row_blocks).to(tl.int64)
    rows = (tl.program_id(0) % row_blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real_rows = rows < query_count
    value_channels = tl.program_id(1).to(tl.int64) * VALUES + tl.arange(0, VALUES)
    query += batch * query_strides[0]
    key += batch * key_strides[0]
    value += batch * value_strides[0]

    if WHOLE:
        channels = tl.arange(0, CHANNELS).to(tl.int64)
        query_block = load_block(query, query_strides, rows, channels, real_rows, width)
    largest = tl.full([ROWS], float("-inf"), ACCUMULATOR)
    sums = tl.zeros([ROWS], ACCUMULATOR)
    total = tl.zeros([ROWS, VALUES], ACCUMULATOR)
    for first in range(0, key_count, KEYS):
        keys = (first + tl.arange(0, KEYS)).to(tl.int64)
        real = real_keys(key_mask, mask_strides, batch, keys, key_count)
        if WHOLE:
            key_block = load_block(key, key_strides, keys, channels, real, width)
            logits = tl.dot(query_block, tl.trans(key_block), input_precision=PRECISION, out_dtype=ACCUMULATOR)
        else:
            logits = block_product(
                query, query_strides, rows, real_rows, key, key_strides, keys, real, width,
                CHANNELS, ACCUMULATOR, PRECISION,
            )  # fmt: skip
        # In base 2, and scaled after the product, so that no scaled query is rounded.
        logits = tl.where(real[None, :], logits * (SCALE * LOG2_E), float("-inf"))
        raised = tl.maximum(largest, tl.max(logits, 1))
        # A finite pivot for rows without an unmasked key so far: -inf - (-inf) would be NaN.
        pivot = tl.where(raised == float("-inf"), 0.0, raised)
        weights = tl.exp2(logits - pivot[:, None])
        shrink = tl.exp2(largest - pivot)
        largest = raised
        sums = sums * shrink + tl.sum(weights, 1)
        value_block = load_block(value, value_strides, keys, value_channels, real, value_width)
        total = tl.dot(
            weights.to(value_block.dtype),
            value_block,
            total * shrink[:, None],
            input_precision=PRECISION,
            out_dtype=ACCUMULATOR,
        )

    # A row without an unmasked key attends to nothing.
    total = total / tl.where(sums == 0, 1.0, sums)[:, None]
    outputs = (batch * query_count + rows)[:, None] * value_width + value_channels[None, :]
    inside = real_rows[:, None] & (value_channels < value_width)[None, :]
    tl.store(attended + outputs, total.to(attended.dtype.element_ty), mask=inside)
    if tl.program_id(1) == 0:
        # For a row without an unmasked key inf, which makes its weights 0 in the backward pass.
        empty = sums == 0
        largest = tl.where(empty, float("inf"), largest)
        added = tl.log2(tl.where(empty, 1.0, sums))
        parts = logsumexp + (batch * query_count + rows) * 2
        tl.store(parts, largest, mask=real_rows)
        tl.store(parts + 1, added, mask=real_rows)


def launch_joint_forward(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """softmax(scale query key^T) value, over the keys that are true in `key_mask`.

    Args:
        query: [B, Tq, d], with any strides, as all inputs.
        key: [B, Tk, d].
        value: [B, Tk, e].
        key_mask: bool [B, Tk]; other keys and their values have no influence. None: All keys are attended to.
        scale: Factor of the logits; a compile-time constant, so each new value compiles the kernel again.

    Returns:
        The attended values [B, Tq, e] in the inputs' dtype, 0 in rows without an unmasked key.
        The base-2 log-sum-exp of each row as two summands [B, Tq, 2] in float32 (float64 for float64 inputs): the
        largest logit, and the log-sum-exp relative to it, which would be lost by rounding in a sum with large
        logits. inf and 0 in rows without an unmasked key.
    """
    batch, query_count, width = query.shape
    key_count, value_width = value.shape[1:]
    tile = tile_sizes.forward_tile(query.dtype, width, value_width)
    whole = tile_sizes.fits_whole(tile, width, tile_sizes.slice_width(value_width))
    values = tile_sizes.slice_width(value_width)
    attended = query.new_empty(batch, query_count, value_width)
    logsumexp = query.new_empty(batch, query_count, 2, dtype=compute_dtype(query.dtype))
    launch.launch(
        _joint_forward,
        (batch * triton.cdiv(query_count, tile.rows), triton.cdiv(value_width, values)), query,
        query.stride(), key, key.stride(), value, value.stride(), key_mask,
        None if key_mask is None else key_mask.stride(), attended, logsumexp, query_count,
        key_count, width, value_width,
        SCALE=scale, ROWS=tile.rows, KEYS=tile.keys,
        CHANNELS=tile_sizes.step(tile, width, whole), VALUES=values, WHOLE=whole,
        ACCUMULATOR=launch.accumulator(query.dtype), PRECISION=launch.precision(query.dtype),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return attended, logsumexp
