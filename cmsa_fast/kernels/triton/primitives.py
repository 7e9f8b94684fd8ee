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
def token_products(
    query,
    query_rows,
    query_row_stride,
    query_stride,
    query_mask,
    word,
    word_stride,
    key,
    key_rows,
    key_row_stride,
    key_stride,
    key_mask,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    """(query[query_rows] + word) @ key[key_rows]^T, the sum formed first, [Q, K]."""
    total = tl.zeros([query_rows.shape[0], key_rows.shape[0]], ACCUMULATOR)
    for start in range(0, WIDTH, CHUNK):
        channels = start + tl.arange(0, CHUNK)
        inside = channels < WIDTH
        query_tile = load_tile(query, query_rows, channels, query_row_stride, query_stride, query_mask, inside)
        part = tl.load(word + channels.to(tl.int64) * word_stride, mask=inside, other=0.0)
        token = query_tile.to(ACCUMULATOR) + part.to(ACCUMULATOR)[None, :]
        key_tile = load_tile(key, channels, key_rows, key_stride, key_row_stride, inside, key_mask)
        total = tl.dot(
            token.to(key_tile.dtype),
            key_tile,
            total,
            input_precision=PRECISION,
            out_dtype=ACCUMULATOR,
        )
    return total


@triton.jit
def column(tile, number):
    """Column `number` of [R, C], as [R]."""
    chosen = tl.arange(0, tile.shape[1])[None, :] == number
    return tl.sum(tl.where(chosen, tile, 0.0), axis=1)


@triton.jit
def any_true(mask):
    """Whether a mask [R, C] has a true entry."""
    return tl.max(tl.max(mask.to(tl.int32), axis=1), axis=0) > 0


@triton.jit
def direct_softmax(
    query,
    query_rows,
    query_row_stride,
    query_stride,
    query_mask,
    word,
    key,
    key_rows,
    key_row_stride,
    key_stride,
    key_mask,
    mask,
    largest,
    ratio,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
):
    """exp(logits - largest) * ratio of the tokens query[query_rows] + word over the keys, [Q, K]."""
    logits = token_products(
        query,
        query_rows,
        query_row_stride,
        query_stride,
        query_mask,
        word,
        1,
        key,
        key_rows,
        key_row_stride,
        key_stride,
        key_mask,
        WIDTH,
        CHUNK,
        PRECISION,
        ACCUMULATOR,
    )
    present = key_mask
    if MASKED:
        present = tl.load(mask + key_rows, mask=key_mask, other=0) != 0
    # The maximum and the sum are kept apart: with large logits, a single log-sum-exp would lose the sum.
    softmax = tl.exp(tl.minimum(logits - largest[:, None], 0.0)) * ratio[:, None]
    return tl.where(present[None, :], softmax, 0.0)


@triton.jit
def load_padded(pointer, rows, columns, row_stride):
    """[R, C] of a contiguous array padded to whole tiles."""
    return tl.load(pointer + rows[:, None] * row_stride + columns[None, :])


@triton.jit
def store_padded(pointer, tile, rows, columns, row_stride, PRECISION: tl.constexpr):
    """Store [R, C] into a contiguous array padded to whole tiles, as an operand of later products."""
    tile = rounded(tile.to(pointer.dtype.element_ty), PRECISION)
    tl.store(pointer + rows[:, None] * row_stride + columns[None, :], tile)


@triton.jit
def padded_products(
    left, left_rows, right, right_rows, width,
    CHUNK: tl.constexpr, PRECISION: tl.constexpr, ACCUMULATOR: tl.constexpr,
):  # fmt: skip
    """left[left_rows] @ right[right_rows]^T of contiguous, padded and rounded operands, [L, R]."""
    total = tl.zeros([left_rows.shape[0], right_rows.shape[0]], ACCUMULATOR)
    for start in range(0, width, CHUNK):
        channels = start + tl.arange(0, CHUNK)
        left_tile = load_padded(left, left_rows, channels, width)
        right_tile = load_padded(right, right_rows, channels, width)
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
