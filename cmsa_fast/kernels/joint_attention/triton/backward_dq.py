"""The joint attention's backward pass: the queries' gradient, and the launcher of all three."""

import triton
import triton.language as tl
from torch import Tensor

from ...triton import launch
from . import tile_sizes as joint_tiles
from .backward_dkv import launch_key_gradient, launch_value_gradient
from .blocks import LOG2_E, block_product, in_wide_range, load_block, load_logsumexp, real_keys


@triton.jit(do_not_specialize=["query_count"])
def _attended_dot_gradient(
    grad,
    grad_strides,
    attended,
    attended_strides,
    projection,
    query_count,
    value_width,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each row's sum over channels of grad * attended, which is its sum over keys of P * dP."""
    row_blocks = tl.cdiv(query_count, ROWS)
    batch = (tl.program_id(0) // row_blocks).to(tl.int64)
    rows = (tl.program_id(0) % row_blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real_rows = rows < query_count
    # The diagonal of a product that rounds as dP does: a row with all its weight on one key has dP equal to the
    # sum to the last bit, and so no gradient of its logits, as it should.
    products = block_product(
        grad + batch * grad_strides[0],
        grad_strides,
        rows,
        real_rows,
        attended + batch * attended_strides[0],
        attended_strides,
        rows,
        real_rows,
        value_width,
        CHANNELS,
        ACCUMULATOR,
        PRECISION,
    )
    diagonal = tl.arange(0, ROWS)[:, None] == tl.arange(0, ROWS)[None, :]
    total = tl.sum(tl.where(diagonal, products, 0.0), 1)
    tl.store(projection + batch * query_count + rows, total, mask=real_rows)


@triton.jit(do_not_specialize=["query_count", "key_count"])
def _joint_query_gradient(
    grad,
    grad_strides,
    query,
    query_strides,
    key,
    key_strides,
    value,
    value_strides,
    key_mask,
    mask_strides,
    logsumexp,
    projection,
    grad_query,
    query_count,
    key_count,
    width,
    value_width,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    CHANNELS: tl.constexpr,
    VALUE_CHANNELS: tl.constexpr,
    SLICE: tl.constexpr,
    WHOLE: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of queries and one slice of their channels, over all keys: scale * P (dP - projection) key."""
    row_blocks = tl.cdiv(query_count, ROWS)
    batch = (tl.program_id(0) // row_blocks).to(tl.int64)
    rows = (tl.program_id(0) % row_blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real_rows = rows < query_count
    slice_channels = tl.program_id(1).to(tl.int64) * SLICE + tl.arange(0, SLICE)
    grad += batch * grad_strides[0]
    query += batch * query_strides[0]
    key += batch * key_strides[0]
    value += batch * value_strides[0]
    statistics = batch * query_count + rows
    largest, added = load_logsumexp(logsumexp, statistics, real_rows)
    projected = tl.load(projection + statistics, mask=real_rows, other=0.0)

    if WHOLE:
        value_channels = tl.arange(0, VALUE_CHANNELS).to(tl.int64)
        query_block = load_block(query, query_strides, rows, slice_channels, real_rows, width)
        grad_block = load_block(grad, grad_strides, rows, value_channels, real_rows, value_width)
    total = tl.zeros([ROWS, SLICE], ACCUMULATOR)
    for first in range(0, key_count, KEYS):
        keys = (first + tl.arange(0, KEYS)).to(tl.int64)
        real = real_keys(key_mask, mask_strides, batch, keys, key_count)
        if WHOLE:
            key_block = load_block(key, key_strides, keys, slice_channels, real, width)
            value_block = load_block(value, value_strides, keys, value_channels, real, value_width)
            logits = tl.dot(
                query_block, tl.trans(key_block), input_precision=PRECISION, out_dtype=ACCUMULATOR
            )
            of_weights = tl.dot(
                grad_block, tl.trans(value_block), input_precision=PRECISION, out_dtype=ACCUMULATOR
            )
        else:
            logits = block_product(
                query,
                query_strides,
                rows,
                real_rows,
                key,
                key_strides,
                keys,
                real,
                width,
                CHANNELS,
                ACCUMULATOR,
                PRECISION,
            )
            of_weights = block_product(
                grad,
                grad_strides,
                rows,
                real_rows,
                value,
                value_strides,
                keys,
                real,
                value_width,
                VALUE_CHANNELS,
                ACCUMULATOR,
                PRECISION,
            )
            key_block = load_block(key, key_strides, keys, slice_channels, real, width)
        logits = tl.where(real[None, :], logits * (SCALE * LOG2_E), float("-inf"))
        weights = tl.exp2((logits - largest[:, None]) - added[:, None])
        of_logits = weights * (of_weights - projected[:, None])
        key_block = in_wide_range(key_block)
        total = tl.dot(
            of_logits.to(key_block.dtype),
            key_block,
            total,
            input_precision=PRECISION,
            out_dtype=ACCUMULATOR,
        )

    outputs = (batch * query_count + rows)[:, None] * width + slice_channels[None, :]
    inside = real_rows[:, None] & (slice_channels < width)[None, :]
    tl.store(grad_query + outputs, (total * SCALE).to(grad_query.dtype.element_ty), mask=inside)


def launch_joint_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None,
    scale: float,
    attended: Tensor,
    logsumexp: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `launch_joint_forward`'s inputs; no sum depends on the order in which programs end.

    Args:
        grad: [B, Tq, e], of the attended values, with any strides.
        query, key, value, key_mask, scale: as given to `launch_joint_forward`.
        attended, logsumexp: its results.

    Returns:
        The gradients of query, key and value, contiguous, in the inputs' dtype; 0 at keys that are not real.
    """
    projection = _launch_projection(grad, attended, logsumexp, query.shape[2])
    arguments = (grad, query, key, value, key_mask, scale, logsumexp, projection)
    return (
        _launch_query_gradient(*arguments),
        launch_key_gradient(*arguments),
        launch_value_gradient(grad, query, key, value, key_mask, scale, logsumexp),
    )


def _launch_projection(grad: Tensor, attended: Tensor, logsumexp: Tensor, width: int) -> Tensor:
    batch, query_count, value_width = grad.shape
    # Contracted in the same steps as the queries' gradient contracts dP.
    gradient_tile = joint_tiles.query_gradient_tile(grad.dtype, width, value_width)
    whole = joint_tiles.fits_whole(gradient_tile, width, value_width)
    tile = joint_tiles.projection_tile(grad.dtype)
    projection = logsumexp.new_empty(logsumexp.shape[:2])
    launch.launch(
        _attended_dot_gradient,
        (batch * triton.cdiv(query_count, tile.rows),),
        grad,
        grad.stride(),
        attended,
        attended.stride(),
        projection,
        query_count,
        value_width,
        ROWS=tile.rows,
        CHANNELS=joint_tiles.step(gradient_tile, value_width, whole),
        ACCUMULATOR=launch.accumulator(grad.dtype),
        PRECISION=launch.precision(grad.dtype),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return projection


def _launch_query_gradient(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None,
    scale: float,
    logsumexp: Tensor,
    projection: Tensor,
) -> Tensor:
    batch, query_count, width = query.shape
    key_count, value_width = value.shape[1:]
    tile = joint_tiles.query_gradient_tile(query.dtype, width, value_width)
    whole = joint_tiles.fits_whole(tile, width, value_width)
    slice_width = joint_tiles.slice_width(width)
    grad_query = query.new_empty(query.shape)
    launch.launch(
        _joint_query_gradient,
        (batch * triton.cdiv(query_count, tile.rows), triton.cdiv(width, slice_width)),
        grad,
        grad.stride(),
        query,
        query.stride(),
        key,
        key.stride(),
        value,
        value.stride(),
        key_mask,
        None if key_mask is None else key_mask.stride(),
        logsumexp,
        projection,
        grad_query,
        query_count,
        key_count,
        width,
        value_width,
        SCALE=scale,
        ROWS=tile.rows,
        KEYS=tile.keys,
        CHANNELS=joint_tiles.step(tile, width, whole),
        VALUE_CHANNELS=joint_tiles.step(tile, value_width, whole),
        SLICE=slice_width,
        WHOLE=whole,
        ACCUMULATOR=launch.accumulator(query.dtype),
        PRECISION=launch.precision(query.dtype),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return grad_query
