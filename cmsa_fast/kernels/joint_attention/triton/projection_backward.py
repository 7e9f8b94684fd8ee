"""Backward pass of the joint attention's tail; the argument of ReLU is recomputed."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...backends import compute_dtype
from ...triton import launch
from . import tile_sizes
from .blocks import block_product, load_block
from .projection import mean_over_words, real_words, words_first


@triton.jit(do_not_specialize=["places", "words"])
def _tail_backward_attended(
    grad, grad_strides, attended, attended_strides, weight, weight_strides, bias, bias_strides,
    word_mask, mask_strides, word_counts, grad_attended, places, words, width, channels,
    PLACES: tl.constexpr, OUTPUTS: tl.constexpr, CHANNELS: tl.constexpr, SLICE: tl.constexpr,
    ACCUMULATOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of attended for one block of places at one word and one slice of channels."""
    place_blocks = tl.cdiv(places, PLACES)
    expression_word = tl.program_id(0) // place_blocks
    batch, word = (expression_word // words).to(tl.int64), (expression_word % words).to(tl.int64)
    rows = (tl.program_id(0) % place_blocks).to(tl.int64) * PLACES + tl.arange(0, PLACES)
    real_rows = rows < places
    slice_channels = tl.program_id(1).to(tl.int64) * SLICE + tl.arange(0, SLICE)
    attended += batch * attended_strides[0] + word * attended_strides[1]
    grad += batch * grad_strides[0]

    count = words
    visited = channels
    if word_mask is not None:
        count = tl.load(word_counts + batch)
        real = tl.load(word_mask + batch * mask_strides[0] + word * mask_strides[1]).to(tl.int1)
        visited = tl.where(real, channels, 0)
    total = tl.zeros([PLACES, SLICE], ACCUMULATOR)
    for first in range(0, visited, OUTPUTS):
        outputs = (first + tl.arange(0, OUTPUTS)).to(tl.int64)
        real_outputs = outputs < channels
        projected = block_product(
            attended, attended_strides, rows, real_rows, weight, weight_strides, outputs,
            real_outputs, width, CHANNELS, ACCUMULATOR, PRECISION,
        )  # fmt: skip
        if bias is not None:
            offset = tl.load(bias + outputs * bias_strides[0], mask=real_outputs, other=0.0)
            projected += offset.to(ACCUMULATOR)[None, :]
        grad_result = load_block(grad, grad_strides, rows, outputs, real_rows, channels)
        grad_projected = tl.where(projected <= 0, 0.0, grad_result)
        weight_block = load_block(weight, weight_strides, outputs, slice_channels, real_outputs, width)
        total = tl.dot(
            grad_projected.to(weight_block.dtype),
            weight_block,
            total,
            input_precision=PRECISION,
            out_dtype=ACCUMULATOR,
        )

    total = total / tl.maximum(count, 1)
    tokens = (batch * places + rows) * words + word
    tl.store(
        grad_attended + tokens[:, None] * width + slice_channels[None, :],
        total.to(grad_attended.dtype.element_ty),
        mask=real_rows[:, None] & (slice_channels < width)[None, :],
    )


@triton.jit(do_not_specialize=["places", "words", "splits"])
def _tail_backward_weight(
    grad, grad_strides, attended, attended_strides, weight, weight_strides, bias, bias_strides,
    word_order, word_counts, grad_weight, grad_bias, places, words, splits, width, channels,
    PLACES: tl.constexpr, OUTPUTS: tl.constexpr, CHANNELS: tl.constexpr, SLICE: tl.constexpr,
    ACCUMULATOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of one block of the weight's rows and one slice of its columns, over one split of the tokens."""
    outputs = tl.program_id(0).to(tl.int64) * OUTPUTS + tl.arange(0, OUTPUTS)
    real_outputs = outputs < channels
    slice_channels = tl.program_id(1).to(tl.int64) * SLICE + tl.arange(0, SLICE)
    part = tl.program_id(2).to(tl.int64)
    batch, split = part // splits, tl.program_id(2) % splits
    attended += batch * attended_strides[0]
    grad += batch * grad_strides[0]
    offset = tl.zeros([OUTPUTS], ACCUMULATOR)
    if bias is not None:
        offset += tl.load(bias + outputs * bias_strides[0], mask=real_outputs, other=0.0)

    count = words
    if word_counts is not None:
        count = tl.load(word_counts + batch)
    place_blocks = tl.cdiv(places, PLACES)
    steps = count * place_blocks
    steps_per_split = tl.cdiv(steps, splits)
    total = tl.zeros([OUTPUTS, SLICE], ACCUMULATOR)
    bias_total = tl.zeros([OUTPUTS], ACCUMULATOR)
    start = split * steps_per_split
    for step in range(start, tl.minimum(start + steps_per_split, steps)):
        word = step // place_blocks
        if word_order is not None:
            word = tl.load(word_order + batch * words + word)
        tokens = attended + tl.cast(word, tl.int64) * attended_strides[1]
        rows = ((step % place_blocks) * PLACES + tl.arange(0, PLACES)).to(tl.int64)
        real_rows = rows < places
        projected = block_product(
            weight, weight_strides, outputs, real_outputs, tokens, attended_strides, rows,
            real_rows, width, CHANNELS, ACCUMULATOR, PRECISION,
        )  # fmt: skip
        projected += offset[:, None]
        grad_result = tl.trans(
            load_block(grad, grad_strides, rows, outputs, real_rows, channels)
        )  # [OUTPUTS, PLACES]
        grad_projected = tl.where(projected <= 0, 0.0, grad_result)
        bias_total += tl.sum(grad_projected.to(ACCUMULATOR), 1)
        token_block = load_block(tokens, attended_strides, rows, slice_channels, real_rows, width)
        total = tl.dot(
            grad_projected.to(token_block.dtype),
            token_block,
            total,
            input_precision=PRECISION,
            out_dtype=ACCUMULATOR,
        )

    count = tl.maximum(count, 1)
    tl.store(
        grad_weight + (part * channels + outputs)[:, None] * width + slice_channels[None, :],
        total / count,
        mask=real_outputs[:, None] & (slice_channels < width)[None, :],
    )
    if tl.program_id(1) == 0:
        tl.store(grad_bias + part * channels + outputs, bias_total / count, mask=real_outputs)


def launch_tail_backward(
    grad: Tensor,
    attended: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    word_mask: Tensor | None,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients of `launch_tail_forward`'s inputs; deterministic, without atomics.

    Args:
        grad: [B, P, C], with any strides.
        attended, weight, bias, word_mask, relu: As given to `launch_tail_forward`.

    Returns:
        The gradients of attended (0 at padded words), of weight, and of bias (None if bias is None).
    """
    if not relu:
        return _linear_backward(grad, attended, weight, bias, word_mask)
    word_order, word_counts = real_words(word_mask)
    grad_attended = _launch_backward_attended(grad, attended, weight, bias, word_mask, word_counts)
    grad_weight, grad_bias = _launch_backward_weight(grad, attended, weight, bias, word_order, word_counts)
    return grad_attended, grad_weight, None if bias is None else grad_bias


def _launch_backward_attended(
    grad: Tensor,
    attended: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    word_mask: Tensor | None,
    word_counts: Tensor | None,
) -> Tensor:
    batch, places, words, width = attended.shape
    channels = len(weight)
    tile = tile_sizes.tail_backward_attended_tile(attended.dtype)
    slice_width = tile_sizes.slice_width(width)
    grad_attended = attended.new_empty(attended.shape)
    launch.launch(
        _tail_backward_attended,
        (batch * words * triton.cdiv(places, tile.rows), triton.cdiv(width, slice_width)), grad,
        grad.stride(), attended, words_first(attended), weight, weight.stride(), bias,
        None if bias is None else bias.stride(), word_mask,
        None if word_mask is None else word_mask.stride(), word_counts, grad_attended, places,
        words, width, channels,
        PLACES=tile.rows, OUTPUTS=tile.keys,
        CHANNELS=tile_sizes.step(tile, width, whole=False), SLICE=slice_width,
        ACCUMULATOR=launch.accumulator(attended.dtype),
        PRECISION=launch.precision(attended.dtype), num_warps=tile.warps,
        num_stages=tile.stages,
    )  # fmt: skip
    return grad_attended


def _launch_backward_weight(
    grad: Tensor,
    attended: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    word_order: Tensor | None,
    word_counts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Sums of one part per expression and split, because expressions have different numbers of words."""
    batch, places, words, width = attended.shape
    channels = len(weight)
    tile = tile_sizes.tail_backward_weight_tile(attended.dtype)
    slice_width = tile_sizes.slice_width(width)
    blocks, slices = triton.cdiv(channels, tile.keys), triton.cdiv(width, slice_width)
    splits = tile_sizes.splits(batch * blocks * slices, words * triton.cdiv(places, tile.rows))
    wide = compute_dtype(weight.dtype)
    grad_weight = weight.new_empty(batch * splits, channels, width, dtype=wide)
    grad_bias = weight.new_empty(batch * splits, channels, dtype=wide)
    launch.launch(
        _tail_backward_weight, (blocks, slices, batch * splits), grad, grad.stride(), attended,
        words_first(attended), weight, weight.stride(), bias,
        None if bias is None else bias.stride(), word_order, word_counts, grad_weight, grad_bias,
        places, words, splits, width, channels,
        PLACES=tile.rows, OUTPUTS=tile.keys,
        CHANNELS=tile_sizes.step(tile, width, whole=False), SLICE=slice_width,
        ACCUMULATOR=launch.accumulator(attended.dtype),
        PRECISION=launch.precision(attended.dtype), num_warps=tile.warps,
        num_stages=tile.stages,
    )  # fmt: skip
    return grad_weight.sum(0).to(weight.dtype), grad_bias.sum(0).to(weight.dtype)


def _linear_backward(
    grad: Tensor,
    attended: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    word_mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    mean = mean_over_words(attended, word_mask).to(weight.dtype)
    grad_weight = grad.flatten(0, 1).mT @ mean.flatten(0, 1)
    grad_bias = None if bias is None else grad.sum((0, 1))
    grad_mean = (grad @ weight)[:, :, None]
    if word_mask is None:
        grad_attended = (grad_mean / attended.shape[2]).expand(attended.shape).contiguous()
    else:
        counts = word_mask.sum(1).clamp(min=1)[:, None, None, None]
        real = word_mask[:, None, :, None]
        grad_attended = torch.where(real, grad_mean / counts, 0)
    return grad_attended, grad_weight, grad_bias
