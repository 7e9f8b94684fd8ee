"""Backward pass of the joint attention: preprocessing, dQ, and the launcher of the whole pass."""

import triton
import triton.language as tl
from torch import Tensor

from ...triton import launch
from . import tile_sizes
from .backward_dkv import launch_backward_dk, launch_backward_dv
from .blocks import LOG2_E, block_product, in_wide_range, load_block, load_logsumexp, real_keys


@triton.jit(do_not_specialize=["query_count"])
def _joint_backward_preprocess(
    grad, grad_strides, attended, attended_strides, delta, query_count, value_width,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, ACCUMULATOR: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Per-row delta used by dQ and dK: sum over channels of grad * attended = sum over keys of P * dP."""
    row_blocks = tl.cdiv(query_count, ROWS)
    batch = (tl.program_id(0) // row_blocks).to(tl.int64)
    rows = (tl.program_id(0) % row_blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real_rows = rows < query_count
    # The diagonal of a product that rounds as dP does: for a row with all its weight on one key, dP and delta are
    # then bitwise identical and the gradient of its logits is exactly zero.
    products = block_product(
        grad + batch * grad_strides[0], grad_strides, rows, real_rows,
        attended + batch * attended_strides[0], attended_strides, rows, real_rows, value_width,
        CHANNELS, ACCUMULATOR, PRECISION,
    )  # fmt: skip
    diagonal = tl.arange(0, ROWS)[:, None] == tl.arange(0, ROWS)[None, :]
    total = tl.sum(tl.where(diagonal, products, 0.0), 1)
    tl.store(delta + batch * query_count + rows, total, mask=real_rows)


@triton.jit(do_not_specialize=["query_count", "key_count"])
def _joint_backward_dq(
    grad, grad_strides, query, query_strides, key, key_strides, value, value_strides, key_mask,
    mask_strides, logsumexp, delta, grad_query, query_count, key_count, width, value_width,
    SCALE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, CHANNELS: tl.constexpr,
    VALUE_CHANNELS: tl.constexpr, SLICE: tl.constexpr, WHOLE: tl.constexpr,
    ACCUMULATOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dQ = scale * P (dP - delta) key, for one block of queries and one slice of their channels."""
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
    row_delta = tl.load(delta + statistics, mask=real_rows, other=0.0)

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
            logits = tl.dot(query_block, tl.trans(key_block), input_precision=PRECISION, out_dtype=ACCUMULATOR)
            grad_weights = tl.dot(
                grad_block, tl.trans(value_block), input_precision=PRECISION, out_dtype=ACCUMULATOR
            )
        else:
            logits = block_product(
                query, query_strides, rows, real_rows, key, key_strides, keys, real, width,
                CHANNELS, ACCUMULATOR, PRECISION,
            )  # fmt: skip
            grad_weights = block_product(
                grad, grad_strides, rows, real_rows, value, value_strides, keys, real,
                value_width, VALUE_CHANNELS, ACCUMULATOR, PRECISION,
            )  # fmt: skip
            key_block = load_block(key, key_strides, keys, slice_channels, real, width)
        logits = tl.where(real[None, :], logits * (SCALE * LOG2_E), float("-inf"))
        weights = tl.exp2((logits - largest[:, None]) - added[:, None])
        grad_logits = weights * (grad_weights - row_delta[:, None])
        key_block = in_wide_range(key_block)
        total = tl.dot(
            grad_logits.to(key_block.dtype),
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
    """The gradients of `launch_joint_forward`'s inputs; deterministic, without atomics.

    Args:
        grad: [B, Tq, e], gradient of the attended values, with any strides.
        query, key, value, key_mask, scale: As given to `launch_joint_forward`.
        attended, logsumexp: Its results.

    Returns:
        The gradients of query, key and value, contiguous, in the inputs' dtype; 0 at masked keys.
    """
    delta = _launch_preprocess(grad, attended, logsumexp, query.shape[2])
    arguments = (grad, query, key, value, key_mask, scale, logsumexp, delta)
    return (
        _launch_backward_dq(*arguments),
        launch_backward_dk(*arguments),
        launch_backward_dv(grad, query, key, value, key_mask, scale, logsumexp),
    )


def _launch_preprocess(grad: Tensor, attended: Tensor, logsumexp: Tensor, width: int) -> Tensor:
    batch, query_count, value_width = grad.shape
    # Contracted in the same steps as dP in the kernel of dQ.
    gradient_tile = tile_sizes.backward_dq_tile(grad.dtype, width, value_width)
    whole = tile_sizes.fits_whole(gradient_tile, width, value_width)
    tile = tile_sizes.preprocess_tile(grad.dtype)
    delta = logsumexp.new_empty(logsumexp.shape[:2])
    launch.launch(
        _joint_backward_preprocess, (batch * triton.cdiv(query_count, tile.rows),), grad,
        grad.stride(), attended, attended.stride(), delta, query_count, value_width,
        ROWS=tile.rows, CHANNELS=tile_sizes.step(gradient_tile, value_width, whole),
        ACCUMULATOR=launch.accumulator(grad.dtype), PRECISION=launch.precision(grad.dtype),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return delta


def _launch_backward_dq(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None,
    scale: float,
    logsumexp: Tensor,
    delta: Tensor,
) -> Tensor:
    batch, query_count, width = query.shape
    key_count, value_width = value.shape[1:]
    tile = tile_sizes.backward_dq_tile(query.dtype, width, value_width)
    whole = tile_sizes.fits_whole(tile, width, value_width)
    slice_width = tile_sizes.slice_width(width)
    grad_query = query.new_empty(query.shape)
    launch.launch(
        _joint_backward_dq,
        (batch * triton.cdiv(query_count, tile.rows), triton.cdiv(width, slice_width)), grad,
        grad.stride(), query, query.stride(), key, key.stride(), value, value.stride(),
        key_mask, None if key_mask is None else key_mask.stride(), logsumexp, delta,
        grad_query, query_count, key_count, width, value_width,
        SCALE=scale, ROWS=tile.rows, KEYS=tile.keys,
        CHANNELS=tile_sizes.step(tile, width, whole),
        VALUE_CHANNELS=tile_sizes.step(tile, value_width, whole), SLICE=slice_width,
        WHOLE=whole, ACCUMULATOR=launch.accumulator(query.dtype),
        PRECISION=launch.precision(query.dtype), num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return grad_query
