"""Backward pass of the joint attention, dK and dV: each program loops over queries for one block of keys."""

import triton
import triton.language as tl
from torch import Tensor

from ...backends import compute_dtype
from ...triton import launch
from . import tile_sizes
from .blocks import LOG2_E, block_product, in_wide_range, load_block, load_logsumexp, real_keys


@triton.jit(do_not_specialize=["query_count", "key_count", "rows_per_split"])
def _joint_backward_dk(
    grad, grad_strides, query, query_strides, key, key_strides, value, value_strides, key_mask,
    mask_strides, logsumexp, delta, grad_key, query_count, key_count, rows_per_split,
    width, value_width,
    SCALE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, CHANNELS: tl.constexpr,
    VALUE_CHANNELS: tl.constexpr, SLICE: tl.constexpr, WHOLE: tl.constexpr,
    ACCUMULATOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dK of one block of keys and one slice of their channels, over the queries of one split."""
    key_blocks = tl.cdiv(key_count, KEYS)
    batch = (tl.program_id(0) // key_blocks).to(tl.int64)
    keys = (tl.program_id(0) % key_blocks).to(tl.int64) * KEYS + tl.arange(0, KEYS)
    slice_channels = tl.program_id(1).to(tl.int64) * SLICE + tl.arange(0, SLICE)
    real = real_keys(key_mask, mask_strides, batch, keys, key_count)
    grad += batch * grad_strides[0]
    query += batch * query_strides[0]
    key += batch * key_strides[0]
    value += batch * value_strides[0]

    if WHOLE:
        value_channels = tl.arange(0, VALUE_CHANNELS).to(tl.int64)
        key_block = load_block(key, key_strides, keys, slice_channels, real, width)
        value_block = load_block(value, value_strides, keys, value_channels, real, value_width)
    total = tl.zeros([KEYS, SLICE], ACCUMULATOR)
    start = tl.program_id(2) * rows_per_split
    for first in range(start, tl.minimum(start + rows_per_split, query_count), ROWS):
        rows = (first + tl.arange(0, ROWS)).to(tl.int64)
        real_rows = rows < query_count
        if WHOLE:
            query_block = load_block(query, query_strides, rows, slice_channels, real_rows, width)
            grad_block = load_block(grad, grad_strides, rows, value_channels, real_rows, value_width)
            logits = tl.dot(key_block, tl.trans(query_block), input_precision=PRECISION, out_dtype=ACCUMULATOR)
            grad_weights = tl.dot(
                value_block, tl.trans(grad_block), input_precision=PRECISION, out_dtype=ACCUMULATOR
            )
        else:
            logits = block_product(
                key, key_strides, keys, real, query, query_strides, rows, real_rows, width,
                CHANNELS, ACCUMULATOR, PRECISION,
            )  # fmt: skip
            grad_weights = block_product(
                value, value_strides, keys, real, grad, grad_strides, rows, real_rows,
                value_width, VALUE_CHANNELS, ACCUMULATOR, PRECISION,
            )  # fmt: skip
            query_block = load_block(query, query_strides, rows, slice_channels, real_rows, width)
        statistics = batch * query_count + rows
        largest, added = load_logsumexp(logsumexp, statistics, real_rows)
        row_delta = tl.load(delta + statistics, mask=real_rows, other=0.0)
        logits = tl.where(real[:, None], logits * (SCALE * LOG2_E), float("-inf"))
        weights = tl.exp2((logits - largest[None, :]) - added[None, :])
        grad_logits = weights * (grad_weights - row_delta[None, :])
        query_block = in_wide_range(query_block)
        total = tl.dot(
            grad_logits.to(query_block.dtype),
            query_block,
            total,
            input_precision=PRECISION,
            out_dtype=ACCUMULATOR,
        )

    total = tl.where(real[:, None], total * SCALE, 0.0)
    batches = tl.num_programs(0) // key_blocks
    outputs = ((tl.program_id(2) * batches + batch) * key_count + keys)[:, None] * width
    inside = (keys < key_count)[:, None] & (slice_channels < width)[None, :]
    tl.store(
        grad_key + outputs + slice_channels[None, :],
        total.to(grad_key.dtype.element_ty),
        mask=inside,
    )


@triton.jit(do_not_specialize=["query_count", "key_count", "rows_per_split"])
def _joint_backward_dv(
    grad, grad_strides, query, query_strides, key, key_strides, key_mask, mask_strides,
    logsumexp, grad_value, query_count, key_count, rows_per_split, width, value_width,
    SCALE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, CHANNELS: tl.constexpr,
    SLICE: tl.constexpr, WHOLE: tl.constexpr, ACCUMULATOR: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dV of one block of keys and one slice of the values' channels, over the queries of one split."""
    key_blocks = tl.cdiv(key_count, KEYS)
    batch = (tl.program_id(0) // key_blocks).to(tl.int64)
    keys = (tl.program_id(0) % key_blocks).to(tl.int64) * KEYS + tl.arange(0, KEYS)
    slice_channels = tl.program_id(1).to(tl.int64) * SLICE + tl.arange(0, SLICE)
    real = real_keys(key_mask, mask_strides, batch, keys, key_count)
    grad += batch * grad_strides[0]
    query += batch * query_strides[0]
    key += batch * key_strides[0]

    if WHOLE:
        channels = tl.arange(0, CHANNELS).to(tl.int64)
        key_block = load_block(key, key_strides, keys, channels, real, width)
    total = tl.zeros([KEYS, SLICE], ACCUMULATOR)
    start = tl.program_id(2) * rows_per_split
    for first in range(start, tl.minimum(start + rows_per_split, query_count), ROWS):
        rows = (first + tl.arange(0, ROWS)).to(tl.int64)
        real_rows = rows < query_count
        if WHOLE:
            query_block = load_block(query, query_strides, rows, channels, real_rows, width)
            logits = tl.dot(key_block, tl.trans(query_block), input_precision=PRECISION, out_dtype=ACCUMULATOR)
        else:
            logits = block_product(
                key, key_strides, keys, real, query, query_strides, rows, real_rows, width,
                CHANNELS, ACCUMULATOR, PRECISION,
            )  # fmt: skip
        largest, added = load_logsumexp(logsumexp, batch * query_count + rows, real_rows)
        logits = tl.where(real[:, None], logits * (SCALE * LOG2_E), float("-inf"))
        weights = tl.exp2((logits - largest[None, :]) - added[None, :])
        grad_block = load_block(grad, grad_strides, rows, slice_channels, real_rows, value_width)
        total = tl.dot(
            weights.to(grad_block.dtype),
            grad_block,
            total,
            input_precision=PRECISION,
            out_dtype=ACCUMULATOR,
        )

    total = tl.where(real[:, None], total, 0.0)
    batches = tl.num_programs(0) // key_blocks
    outputs = ((tl.program_id(2) * batches + batch) * key_count + keys)[:, None] * value_width
    inside = (keys < key_count)[:, None] & (slice_channels < value_width)[None, :]
    tl.store(
        grad_value + outputs + slice_channels[None, :],
        total.to(grad_value.dtype.element_ty),
        mask=inside,
    )


def launch_backward_dk(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None,
    scale: float,
    logsumexp: Tensor,
    delta: Tensor,
) -> Tensor:
    """dK = scale * dS^T query, [B, Tk, d]; arguments as in `launch_joint_backward`, and delta [B, Tq]."""
    batch, query_count, width = query.shape
    key_count, value_width = value.shape[1:]
    tile = tile_sizes.backward_dk_tile(query.dtype, width, value_width)
    whole = tile_sizes.fits_whole(tile, width, value_width)
    slice_width = tile_sizes.slice_width(width)
    blocks, slices = batch * triton.cdiv(key_count, tile.keys), triton.cdiv(width, slice_width)
    splits, rows_per_split = _split(blocks * slices, query_count, tile.rows)
    parts = _parts(splits, key)
    launch.launch(
        _joint_backward_dk, (blocks, slices, splits), grad, grad.stride(), query,
        query.stride(), key, key.stride(), value, value.stride(), key_mask,
        None if key_mask is None else key_mask.stride(), logsumexp, delta, parts,
        query_count, key_count, rows_per_split, width, value_width,
        SCALE=scale, ROWS=tile.rows, KEYS=tile.keys,
        CHANNELS=tile_sizes.step(tile, width, whole),
        VALUE_CHANNELS=tile_sizes.step(tile, value_width, whole), SLICE=slice_width,
        WHOLE=whole, ACCUMULATOR=launch.accumulator(query.dtype),
        PRECISION=launch.precision(query.dtype), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return _summed(parts, key)


def launch_backward_dv(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None,
    scale: float,
    logsumexp: Tensor,
) -> Tensor:
    """dV = P^T grad, [B, Tk, e]; arguments as in `launch_joint_backward`."""
    batch, query_count, width = query.shape
    key_count, value_width = value.shape[1:]
    tile = tile_sizes.backward_dv_tile(query.dtype, width, value_width)
    whole = tile_sizes.fits_whole(tile, width, tile_sizes.slice_width(value_width))
    slice_width = tile_sizes.slice_width(value_width)
    blocks, slices = (
        batch * triton.cdiv(key_count, tile.keys),
        triton.cdiv(value_width, slice_width),
    )
    splits, rows_per_split = _split(blocks * slices, query_count, tile.rows)
    parts = _parts(splits, value)
    launch.launch(
        _joint_backward_dv, (blocks, slices, splits), grad, grad.stride(), query,
        query.stride(), key, key.stride(), key_mask,
        None if key_mask is None else key_mask.stride(), logsumexp, parts, query_count,
        key_count, rows_per_split, width, value_width,
        SCALE=scale, ROWS=tile.rows, KEYS=tile.keys,
        CHANNELS=tile_sizes.step(tile, width, whole), SLICE=slice_width, WHOLE=whole,
        ACCUMULATOR=launch.accumulator(query.dtype), PRECISION=launch.precision(query.dtype),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return _summed(parts, value)


def _split(programs: int, query_count: int, rows: int) -> tuple[int, int]:
    """The number of splits of the loop over queries, and the queries in each."""
    row_blocks = triton.cdiv(query_count, rows)
    steps = triton.cdiv(row_blocks, tile_sizes.splits(programs, row_blocks))
    return max(triton.cdiv(row_blocks, max(steps, 1)), 1), steps * rows


def _parts(splits: int, like: Tensor) -> Tensor:
    """A buffer [splits, *like.shape]: the gradient itself for one split, else partial sums in wider dtype."""
    dtype = like.dtype if splits == 1 else compute_dtype(like.dtype)
    return like.new_empty(splits, *like.shape, dtype=dtype)


def _summed(parts: Tensor, like: Tensor) -> Tensor:
    return parts[0] if len(parts) == 1 else parts.sum(0).to(like.dtype)
