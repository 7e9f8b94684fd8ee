"""Forward pass of the joint attention's tail: projection, ReLU and mean over real words in one kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from ...backends import compute_dtype
from ...triton import launch
from . import tile_sizes
from .blocks import block_product


@triton.jit(do_not_specialize=["places", "words"])
def _tail_forward(
    attended, attended_strides, weight, weight_strides, bias, bias_strides, word_order,
    word_counts, result, places, words, width, channels,
    PLACES: tl.constexpr, OUTPUTS: tl.constexpr, CHANNELS: tl.constexpr,
    ACCUMULATOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The mean for one block of places and one block of output channels, over the real words."""
    place_blocks = tl.cdiv(places, PLACES)
    batch = (tl.program_id(0) // place_blocks).to(tl.int64)
    rows = (tl.program_id(0) % place_blocks).to(tl.int64) * PLACES + tl.arange(0, PLACES)
    outputs = tl.program_id(1).to(tl.int64) * OUTPUTS + tl.arange(0, OUTPUTS)
    real_rows = rows < places
    real_outputs = outputs < channels
    attended += batch * attended_strides[0]
    offset = tl.zeros([OUTPUTS], ACCUMULATOR)
    if bias is not None:
        offset += tl.load(bias + outputs * bias_strides[0], mask=real_outputs, other=0.0)

    count = words
    if word_counts is not None:
        count = tl.load(word_counts + batch)
    total = tl.zeros([PLACES, OUTPUTS], ACCUMULATOR)
    for number in range(0, count):
        word = number
        if word_order is not None:
            word = tl.load(word_order + batch * words + number)
        projected = block_product(
            attended + tl.cast(word, tl.int64) * attended_strides[1], attended_strides, rows,
            real_rows, weight, weight_strides, outputs, real_outputs, width, CHANNELS,
            ACCUMULATOR, PRECISION,
        )  # fmt: skip
        projected += offset[None, :]
        # Not tl.maximum, which would turn NaN into 0.
        total += tl.where(projected <= 0, 0.0, projected)

    total = total / tl.maximum(count, 1)
    tl.store(
        result + (batch * places + rows)[:, None] * channels + outputs[None, :],
        total.to(result.dtype.element_ty),
        mask=real_rows[:, None] & real_outputs[None, :],
    )


def launch_tail_forward(
    attended: Tensor, weight: Tensor, bias: Tensor | None, word_mask: Tensor | None, relu: bool
) -> Tensor:
    """The mean over real words n of act(attended[b, p, n] weight^T + bias).

    Args:
        attended: [B, P, N, d], with any strides, as all inputs.
        weight: [C, d].
        bias: [C], or None.
        word_mask: bool [B, N]; padded words have no influence. None: All words are real.
        relu: Use ReLU as act. Otherwise it is the identity, and the mean is taken first, in PyTorch.

    Returns:
        [B, P, C] in the inputs' dtype; summed in float32 (float64 for float64 inputs).
    """
    if not relu:
        mean = mean_over_words(attended, word_mask)
        return functional.linear(mean.to(weight.dtype), weight, bias)
    batch, places, words, width = attended.shape
    channels = len(weight)
    tile = tile_sizes.tail_tile(attended.dtype)
    result = attended.new_empty(batch, places, channels)
    launch.launch(
        _tail_forward,
        (batch * triton.cdiv(places, tile.rows), triton.cdiv(channels, tile.keys)), attended,
        words_first(attended), weight, weight.stride(), bias,
        None if bias is None else bias.stride(), *real_words(word_mask), result, places, words,
        width, channels,
        PLACES=tile.rows, OUTPUTS=tile.keys,
        CHANNELS=tile_sizes.step(tile, width, whole=False),
        ACCUMULATOR=launch.accumulator(attended.dtype),
        PRECISION=launch.precision(attended.dtype), num_warps=tile.warps,
        num_stages=tile.stages,
    )  # fmt: skip
    return result


def words_first(attended: Tensor) -> tuple[int, ...]:
    """The strides of attended [B, P, N, d] as those of [B, N, P, d]."""
    return attended.transpose(1, 2).stride()


def real_words(word_mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Indices of each expression's words, real ones first [B, N], and their numbers [B]; no synchronisation."""
    if word_mask is None:
        return None, None
    padded = (~word_mask).to(torch.int8)
    order = padded.argsort(dim=1, stable=True).to(torch.int32, memory_format=torch.contiguous_format)
    return order, word_mask.sum(1, dtype=torch.int32)


def mean_over_words(attended: Tensor, word_mask: Tensor | None) -> Tensor:
    """[B, P, N, d] -> [B, P, d] in the dtype to compute in, without a copy of `attended`."""
    wide = compute_dtype(attended.dtype)
    if word_mask is None:
        return attended.sum(2, dtype=wide) / attended.shape[2]
    total = torch.zeros_like(attended[:, :, 0], dtype=wide, memory_format=torch.contiguous_format)
    for word in range(attended.shape[2]):
        total += torch.where(word_mask[:, word, None, None], attended[:, :, word], 0)
    return total / word_mask.sum(1).clamp(min=1)[:, None, None]
