"""Backward pass of the joint attention: one kernel, launched for the gradients of query, key and value."""

import triton
import triton.language as tl
from torch import Tensor

from ...backends import compute_dtype
from ...triton import launch
from ...triton.primitives import dot, load_tile, products, rounded, store_tile
from . import tile_sizes
from .forward import LOG2_E, Operands, prepare, real_keys


@triton.jit
def _factor_of_gradients(tile, PRECISION: tl.constexpr):
    """An operand, rounded, in a dtype in whose range the gradients of logits are: float16's is too small."""
    if tile.dtype == tl.float16:
        return tile.to(tl.float32)
    else:
        return rounded(tile, PRECISION)


@triton.jit
def _row_statistics(logsumexp, delta, rows, query_count):
    """The two parts of the logsumexp and delta; past the end inf, which makes weights 0, and 0."""
    real = rows < query_count
    largest = tl.load(logsumexp + rows * 2, mask=real, other=float("inf"))
    added = tl.load(logsumexp + rows * 2 + 1, mask=real, other=0.0)
    return largest, added, tl.load(delta + rows, mask=real, other=0.0)


@triton.jit(do_not_specialize=["query_count", "key_count", "steps"])
def _joint_backward(
    query, key, value, key_mask, grad, attended, logsumexp, delta, result, query_count, key_count, steps,
    width, value_width, SCALE: tl.constexpr, OF: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr,
    CHANNELS: tl.constexpr, VALUE_CHANNELS: tl.constexpr, SLICE: tl.constexpr, WHOLE: tl.constexpr,
    ACCUMULATOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of the input OF for one block of its rows and one slice of its channels.

    With the weights P, dP = grad value^T, delta = the sum of P dP over keys and dS = scale * P (dP - delta), the
    gradients are dS key, dS^T query and P^T grad. Each is a sum over the other side, of which the program takes
    `steps` blocks. The program for query also writes delta, which that for key reads.
    """
    if OF == "query":
        own, own_values, own_count = query, grad, query_count
        other, other_values, other_count = key, value, key_count
    else:
        own, own_values, own_count = key, value, key_count
        other, other_values, other_count = query, grad, query_count
    own_blocks = tl.cdiv(own_count, OWN)
    batch = (tl.program_id(0) // own_blocks).to(tl.int64)
    batches = tl.num_programs(0) // own_blocks
    owns = (tl.program_id(0) % own_blocks).to(tl.int64) * OWN + tl.arange(0, OWN)
    existing = owns < own_count
    out_width = value_width if OF == "value" else width
    slice_channels = tl.program_id(1) * SLICE + tl.arange(0, SLICE)
    real_slice = slice_channels < out_width
    value_channels = tl.arange(0, VALUE_CHANNELS)
    own += batch * own_count * width
    own_values += batch * own_count * value_width
    other += batch * other_count * width
    other_values += batch * other_count * value_width
    logsumexp += batch * query_count * 2
    delta += batch * query_count
    if key_mask is not None:
        key_mask += batch * key_count

    real_owns = existing
    if OF == "query":
        # The diagonal of a product that rounds as dP does: for a row with all its weight on one key, dP and delta
        # are then bitwise identical and the gradient of its logits is exactly zero.
        pairs = products(
            own_values, owns, value_width, 1, existing, attended + batch * query_count * value_width, owns,
            value_width, 1, existing, value_width, VALUE_CHANNELS if VALUE_CHANNELS < 64 else 64,
            PRECISION, ACCUMULATOR,
        )  # fmt: skip
        diagonal = tl.arange(0, OWN)[:, None] == tl.arange(0, OWN)[None, :]
        row_delta = tl.sum(tl.where(diagonal, pairs, 0.0), 1)
        if (tl.program_id(1) == 0) & (tl.program_id(2) == 0):
            tl.store(delta + owns, row_delta, mask=existing)
        largest, added, _ = _row_statistics(logsumexp, delta, owns[:, None], query_count)
        row_delta = row_delta[:, None]
    else:
        real_owns = real_keys(key_mask, owns, key_count)
    if WHOLE:
        channels = tl.arange(0, CHANNELS)
        own_tile = load_tile(own, owns, channels, width, 1, real_owns, channels < width)
        if OF != "value":
            own_value_tile = load_tile(
                own_values, owns, value_channels, value_width, 1, real_owns, value_channels < value_width
            )
    total = tl.zeros([OWN, SLICE], ACCUMULATOR)
    start = tl.program_id(2) * steps * OTHER
    for first in range(start, tl.minimum(start + steps * OTHER, other_count), OTHER):
        others = (first + tl.arange(0, OTHER)).to(tl.int64)
        if OF == "query":
            real_others = real_keys(key_mask, others, key_count)
            real = real_others[None, :]
        else:
            real_others = others < query_count
            real = real_owns[:, None]
            largest, added, row_delta = _row_statistics(logsumexp, delta, others[None, :], query_count)
        if WHOLE:
            other_tile = load_tile(other, others, channels, width, 1, real_others, channels < width)
            logits = dot(own_tile, tl.trans(other_tile), tl.zeros([OWN, OTHER], ACCUMULATOR), PRECISION)
        else:
            logits = products(
                own, owns, width, 1, real_owns, other, others, width, 1, real_others, width,
                CHANNELS, PRECISION, ACCUMULATOR,
            )  # fmt: skip
        logits = tl.where(real, logits * (SCALE * LOG2_E), float("-inf"))
        weights = tl.exp2((logits - largest) - added)
        if OF == "value":
            right = load_tile(other_values, others, slice_channels, value_width, 1, real_others, real_slice)
            right = rounded(right, PRECISION)
        else:
            if WHOLE:
                other_value_tile = load_tile(
                    other_values, others, value_channels, value_width, 1, real_others, value_channels < value_width
                )
                grad_weights = dot(
                    own_value_tile, tl.trans(other_value_tile), tl.zeros([OWN, OTHER], ACCUMULATOR), PRECISION
                )
                right = _factor_of_gradients(other_tile, PRECISION)
            else:
                grad_weights = products(
                    own_values, owns, value_width, 1, real_owns, other_values, others, value_width, 1, real_others,
                    value_width, VALUE_CHANNELS, PRECISION, ACCUMULATOR,
                )  # fmt: skip
                right = load_tile(other, others, slice_channels, width, 1, real_others, real_slice)
                right = _factor_of_gradients(right, PRECISION)
            weights = weights * (grad_weights - row_delta)
        weights = rounded(weights.to(right.dtype), PRECISION)
        total = tl.dot(weights, right, total, input_precision=PRECISION, out_dtype=ACCUMULATOR)

    if OF != "value":
        total *= SCALE
    total = tl.where(real_owns[:, None], total, 0.0)
    result += (tl.program_id(2) * batches + batch) * own_count * out_width
    store_tile(result, total, owns, slice_channels, out_width, 1, existing, real_slice)


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
        grad: [B, Tq, e], gradient of the attended values.
        query, key, value, key_mask, scale: As given to `launch_joint_forward`.
        attended, logsumexp: Its results.

    Returns:
        The gradients of query, key and value, contiguous, in the inputs' dtype; 0 at masked keys.
    """
    operands = prepare(query, key, value, key_mask)
    delta = logsumexp.new_empty(logsumexp.shape[:2])
    state = (grad.contiguous(), attended, logsumexp, delta)
    # In this order: the launch for query writes delta, which that for key reads.
    grad_query, grad_key, grad_value = (_launch(of, operands, state, scale) for of in ("query", "key", "value"))
    return grad_query, grad_key, grad_value


def _launch(of: str, operands: Operands, state: tuple[Tensor, ...], scale: float) -> Tensor:
    query, key, value, _ = operands
    own, other = {"query": (query, key), "key": (key, query), "value": (value, query)}[of]
    batch, own_count, out_width = own.shape
    width, value_width = query.shape[2], value.shape[2]
    slice_width = tile_sizes.slice_width(out_width)
    tile = tile_sizes.tile(of, own.dtype, max(width, value_width))
    value_channels = slice_width if of == "value" else tile_sizes.padded(value_width)
    whole = max(tile_sizes.padded(width), value_channels) <= tile.channels
    blocks, slices = batch * triton.cdiv(own_count, tile.rows), triton.cdiv(out_width, slice_width)
    parts, steps = tile_sizes.split(blocks * slices, triton.cdiv(other.shape[1], tile.keys))
    result = own.new_empty(parts, *own.shape, dtype=own.dtype if parts == 1 else compute_dtype(own.dtype))
    launch.launch(
        _joint_backward, (blocks, slices, parts), *operands, *state, result, query.shape[1], key.shape[1], steps,
        width, value_width, SCALE=scale, OF=of, CHANNELS=tile_sizes.step(tile, width, whole),
        VALUE_CHANNELS=tile_sizes.step(tile, value_width, whole), SLICE=slice_width, WHOLE=whole,
        **tile_sizes.constants(tile, own.dtype),
    )  # fmt: skip
    return result[0] if parts == 1 else result.sum(0).to(own.dtype)
