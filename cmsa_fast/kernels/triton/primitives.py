"""Building blocks of kernels: loads and stores of tiles, rounding to TF32, and products."""

import triton
import triton.language as tl


@triton.jit
def load_tile(pointer, rows, columns, row_stride, column_stride, row_mask, column_mask):
    """[R, C] at the given rows and columns, 0 where a mask is False."""
    offsets = rows.to(tl.int64)[:, None] * row_stride + columns.to(tl.int64)[None, :] * column_stride
    return tl.load(pointer + offsets, mask=row_mask[:, None] & column_mask[None, :], other=0.0)


@triton.jit
def store_tile(pointer, tile, rows, columns, row_stride, column_stride, row_mask, column_mask):
    """Store [R, C] at the given rows and columns, in the pointer's dtype."""
    offsets = rows.to(tl.int64)[:, None] * row_stride + columns.to(tl.int64)[None, :] * column_stride
    tile = tile.to(pointer.dtype.element_ty)
    tl.store(pointer + offsets, tile, mask=row_mask[:, None] & column_mask[None, :])


@triton.jit
def rounded(tile, PRECISION: tl.constexpr):
    """A float32 operand of TF32 products, rounded to nearest as `cvt.rna`; `tl.dot` alone would truncate it."""
    if PRECISION == "tf32":
        if tile.dtype == tl.float32:
            nearest = ((tile.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
            return tl.where(tile == tile, nearest, tile)
        else:
            return tile
    else:
        return tile


@triton.jit
def dot(left, right, total, PRECISION: tl.constexpr):
    """total + left @ right; operands that are already rounded can use `tl.dot` itself."""
    return tl.dot(
        rounded(left, PRECISION), rounded(right, PRECISION), total,
        input_precision=PRECISION, out_dtype=total.dtype,
    )  # fmt: skip


@triton.jit
def products(
    left, left_rows, left_row_stride, left_stride, left_mask,
    right, right_rows, right_row_stride, right_stride, right_mask,
    width, CHUNK: tl.constexpr, PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """left[left_rows] @ right[right_rows]^T, contracted CHUNK channels at a time, [L, R]."""
    total = tl.zeros([left_rows.shape[0], right_rows.shape[0]], ACCUMULATOR)
    for start in range(0, width, CHUNK):
        channels = start + tl.arange(0, CHUNK)
        inside = channels < width
        left_tile = load_tile(left, left_rows, channels, left_row_stride, left_stride, left_mask, inside)
        right_tile = load_tile(right, channels, right_rows, right_stride, right_row_stride, inside, right_mask)
        total = dot(left_tile, right_tile, total, PRECISION)
    return total


@triton.jit
def load_padded(pointer, rows, columns, row_stride):
    """[R, C] of a contiguous array padded to whole tiles."""
    return tl.load(pointer + rows[:, None] * row_stride + columns[None, :])


@triton.jit
def load_rows(pointer, rows, columns, row_stride, count):
    """[R, C] of a contiguous array whose columns are padded to whole tiles, 0 in the rows from `count` on."""
    pointers = pointer + rows[:, None] * row_stride + columns[None, :]
    return tl.load(pointers, mask=(rows < count)[:, None], other=0.0)


@triton.jit
def store_padded(pointer, tile, rows, columns, row_stride, PRECISION: tl.constexpr):
    """Store [R, C] into a contiguous array padded to whole tiles, as an operand of later products."""
    tile = rounded(tile.to(pointer.dtype.element_ty), PRECISION)
    tl.store(pointer + rows[:, None] * row_stride + columns[None, :], tile)


@triton.jit
def padded_products(
    left, left_rows, left_count, right, right_rows, right_count, width,
    CHUNK: tl.constexpr, PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """left[left_rows] @ right[right_rows]^T of contiguous, rounded operands, [L, R]; see `load_rows`."""
    total = tl.zeros([left_rows.shape[0], right_rows.shape[0]], ACCUMULATOR)
    for start in range(0, width, CHUNK):
        channels = start + tl.arange(0, CHUNK)
        left_tile = load_rows(left, left_rows, channels, width, left_count)
        right_tile = load_rows(right, right_rows, channels, width, right_count)
        total = tl.dot(left_tile, tl.trans(right_tile), total, input_precision=PRECISION, out_dtype=ACCUMULATOR)
    return total


@triton.jit
def image_of(image_index, expression, GROUPED: tl.constexpr):
    """The image of an expression."""
    if GROUPED:
        return tl.load(image_index + expression)
    else:
        return expression


@triton.jit
def expressions_of(image, batch, GROUPED: tl.constexpr):
    """The range of expressions among which those of an image are."""
    if GROUPED:
        return image * 0, image * 0 + batch
    else:
        return image, image + 1
