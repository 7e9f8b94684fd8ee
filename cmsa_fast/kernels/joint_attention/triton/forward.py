"""Forward pass of the joint attention: online softmax over blocks of keys, as in flash attention."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...backends import compute_dtype
from ...triton import launch
from ...triton.primitives import dot, load_tile, products, store_tile
from . import tile_sizes

LOG2_E = tl.constexpr(1.4426950408889634)

Operands = tuple[Tensor, Tensor, Tensor, Tensor | None]  # query, key, value, key_mask


@triton.jit
def real_keys(key_mask, keys, key_count):  # [KEYS]
    """True for keys that exist and are not masked."""
    real = keys < key_count
    if key_mask is not None:
        real = real & tl.load(key_mask + keys, mask=real, other=0).to(tl.int1)
    return real


@triton.jit(do_not_specialize=["query_count", "key_count"])
def _joint_forward(
    query, key, value, key_mask, attended, logsumexp, query_count, key_count, width, value_width,
    SCALE: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, CHANNELS: tl.constexpr, SLICE: tl.constexpr,
    WHOLE: tl.constexpr, ACCUMULATOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attended values of one block of queries and one slice of the values' channels, over all keys."""
    row_blocks = tl.cdiv(query_count, OWN)
    batch = (tl.program_id(0) // row_blocks).to(tl.int64)
    rows = (tl.program_id(0) % row_blocks) * OWN + tl.arange(0, OWN)
    real_rows = rows < query_count
    value_channels = tl.program_id(1) * SLICE + tl.arange(0, SLICE)
    real_values = value_channels < value_width
    query += batch * query_count * width
    key += batch * key_count * width
    value += batch * key_count * value_width
    if key_mask is not None:
        key_mask += batch * key_count

    if WHOLE:
        channels = tl.arange(0, CHANNELS)
        query_tile = load_tile(query, rows, channels, width, 1, real_rows, channels < width)
    largest = tl.full([OWN], float("-inf"), ACCUMULATOR)
    sums = tl.zeros([OWN], ACCUMULATOR)
    total = tl.zeros([OWN, SLICE], ACCUMULATOR)
    for first in range(0, key_count, OTHER):
        keys = first + tl.arange(0, OTHER)
        real = real_keys(key_mask, keys, key_count)
        if WHOLE:
            key_tile = load_tile(key, keys, channels, width, 1, real, channels < width)
            logits = dot(query_tile, tl.trans(key_tile), tl.zeros([OWN, OTHER], ACCUMULATOR), PRECISION)
        else:
            logits = products(
                query, rows, width, 1, real_rows, key, keys, width, 1, real, width,
                CHANNELS, PRECISION, ACCUMULATOR,
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
        value_tile = load_tile(value, keys, value_channels, value_width, 1, real, real_values)
        total = dot(weights.to(value_tile.dtype), value_tile, total * shrink[:, None], PRECISION)

    # A row without an unmasked key attends to nothing; with logsumexp inf its weights are 0 in backward.
    empty = sums == 0
    sums = tl.where(empty, 1.0, sums)
    attended += batch * query_count * value_width
    store_tile(attended, total / sums[:, None], rows, value_channels, value_width, 1, real_rows, real_values)
    if tl.program_id(1) == 0:
        parts = logsumexp + (batch * query_count + rows) * 2
        tl.store(parts, tl.where(empty, float("inf"), largest), mask=real_rows)
        tl.store(parts + 1, tl.log2(sums), mask=real_rows)


@triton.jit(do_not_specialize=["key_count"])
def _centre_keys(
    key, key_mask, result, key_count, width,
    KEYS: tl.constexpr, CHANNELS: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """Some channels of one batch entry's keys less their mean, where it is larger than their spread around it.

    The offset adds one number to all logits of a query, which softmax does not see; only rounding improves.
    Products of 16-bit keys are exact, which rounded keys would lose, so a 16-bit channel stays as it is if a
    difference is not exact.
    """
    channels = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channels < width
    batch = tl.program_id(0).to(tl.int64)
    key += batch * key_count * width
    result += batch * key_count * width
    if key_mask is not None:
        key_mask += batch * key_count
    total = tl.zeros([KEYS, CHANNELS], ACCUMULATOR)
    squares = tl.zeros([KEYS, CHANNELS], ACCUMULATOR)
    number = tl.zeros([KEYS], ACCUMULATOR)
    for first in range(0, key_count, KEYS):
        keys = first + tl.arange(0, KEYS)
        real = real_keys(key_mask, keys, key_count)
        tile = load_tile(key, keys, channels, width, 1, real, inside).to(ACCUMULATOR)
        total += tile
        squares += tile * tile
        number += real.to(ACCUMULATOR)
    count = tl.maximum(tl.sum(number, 0), 1.0)
    mean = tl.sum(total, 0) / count
    offset = tl.where(2 * mean * mean > tl.sum(squares, 0) / count, mean, 0.0)
    offset = offset.to(result.dtype.element_ty).to(ACCUMULATOR)
    inexact = tl.zeros([KEYS, CHANNELS], tl.int32)
    for first in range(0, key_count, KEYS):
        keys = first + tl.arange(0, KEYS)
        real = real_keys(key_mask, keys, key_count)
        tile = load_tile(key, keys, channels, width, 1, real, inside).to(ACCUMULATOR)
        difference = (tile - offset[None, :]).to(result.dtype.element_ty).to(ACCUMULATOR)
        inexact = tl.maximum(inexact, (difference + offset[None, :] != tile).to(tl.int32))
    if result.dtype.element_ty != ACCUMULATOR:
        offset = tl.where(tl.max(inexact, 0) > 0, 0.0, offset)
    for first in range(0, key_count, KEYS):
        keys = first + tl.arange(0, KEYS)
        real = real_keys(key_mask, keys, key_count)
        tile = load_tile(key, keys, channels, width, 1, real, inside).to(ACCUMULATOR)
        store_tile(result, tile - offset[None, :], keys, channels, width, 1, keys < key_count, inside)


def prepare(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None) -> Operands:
    """Contiguous operands, the keys less their common offset."""
    key, key_mask = key.contiguous(), None if key_mask is None else key_mask.contiguous()
    batch, key_count, width = key.shape
    result = torch.empty_like(key)
    tile = tile_sizes.tile("keys", key.dtype)
    launch.launch(
        _centre_keys, (batch, triton.cdiv(width, tile.channels)), key, key_mask, result, key_count, width,
        KEYS=tile.rows, CHANNELS=tile.channels, ACCUMULATOR=launch.accumulator(key.dtype),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return query.contiguous(), result, value.contiguous(), key_mask


def launch_joint_forward(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """softmax(scale query key^T) value, over the keys that are true in `key_mask`.

    Args:
        query: [B, Tq, d].
        key: [B, Tk, d].
        value: [B, Tk, e].
        key_mask: bool [B, Tk]; other keys and their values have no influence. None: All keys are attended to.
        scale: Factor of the logits; a compile-time constant, so each new value compiles the kernel again.

    Returns:
        The attended values [B, Tq, e] in the inputs' dtype, 0 in rows without an unmasked key.
        The base-2 log-sum-exp of each row as two summands [B, Tq, 2] in float32 (float64 for float64 inputs): the
        largest logit, and the log-sum-exp relative to it, which would be lost by rounding in a sum with large
        logits. They are of the centred keys. inf and 0 in rows without an unmasked key.
    """
    operands = prepare(query, key, value, key_mask)
    batch, query_count, width = query.shape
    key_count, value_width = value.shape[1:]
    values = tile_sizes.slice_width(value_width)
    tile = tile_sizes.tile("forward", query.dtype, max(width, value_width))
    whole = max(tile_sizes.padded(width), values) <= tile.channels
    attended = query.new_empty(batch, query_count, value_width)
    logsumexp = query.new_empty(batch, query_count, 2, dtype=compute_dtype(query.dtype))
    launch.launch(
        _joint_forward, (batch * triton.cdiv(query_count, tile.rows), triton.cdiv(value_width, values)),
        *operands, attended, logsumexp, query_count, key_count, width, value_width,
        SCALE=scale, CHANNELS=tile_sizes.step(tile, width, whole), SLICE=values, WHOLE=whole,
        **tile_sizes.constants(tile, query.dtype),
    )  # fmt: skip
    return attended, logsumexp
