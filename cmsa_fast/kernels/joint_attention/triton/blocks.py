"""Loads and products of blocks, shared by the kernels of the joint attention and of its tail."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_block(matrix, strides, rows, channels, real_rows, width):  # [ROWS, CHANNELS]
    """A block of a matrix, 0 outside `real_rows` and `width`; strides end with those of rows and channels."""
    offsets = rows[:, None] * strides[-2] + channels[None, :] * strides[-1]
    inside = real_rows[:, None] & (channels < width)[None, :]
    return tl.load(matrix + offsets, mask=inside, other=0.0)


@triton.jit
def block_product(
    left, left_strides, left_rows, left_real, right, right_strides, right_rows, right_real,
    width,
    CHANNELS: tl.constexpr, ACCUMULATOR: tl.constexpr, PRECISION: tl.constexpr,
):  # [LEFT, RIGHT]  # fmt: skip
    """left[left_rows] @ right[right_rows]^T, contracted CHANNELS at a time."""
    total = tl.zeros([left_rows.shape[0], right_rows.shape[0]], ACCUMULATOR)
    for first in range(0, width, CHANNELS):
        channels = (first + tl.arange(0, CHANNELS)).to(tl.int64)
        left_block = load_block(left, left_strides, left_rows, channels, left_real, width)
        right_block = load_block(right, right_strides, right_rows, channels, right_real, width)
        total = tl.dot(
            left_block,
            tl.trans(right_block),
            total,
            input_precision=PRECISION,
            out_dtype=ACCUMULATOR,
        )
    return total


@triton.jit
def real_keys(key_mask, mask_strides, batch, keys, key_count):  # [KEYS]
    """True for keys that exist and are not masked."""
    real = keys < key_count
    if key_mask is not None:
        marks = key_mask + batch * mask_strides[0] + keys * mask_strides[1]
        real = real & tl.load(marks, mask=real, other=0).to(tl.int1)
    return real


@triton.jit
def load_logsumexp(logsumexp, rows, real_rows):  # [ROWS], [ROWS]
    """The two parts of the rows' logsumexp; past the end inf and 0, which makes weights 0."""
    largest = tl.load(logsumexp + rows * 2, mask=real_rows, other=float("inf"))
    return largest, tl.load(logsumexp + rows * 2 + 1, mask=real_rows, other=0.0)


@triton.jit
def in_wide_range(part):
    """Cast float16, whose range is too small for gradients of logits, to float32."""
    if part.dtype == tl.float16:
        return part.to(tl.float32)
    else:
        return part
