"""The joint attention's tail with ReLU, forward and backward: projection, ReLU and mean over real words.

Backward computes the argument of ReLU again. Its one kernel is launched for attended and for weight.
"""

import triton
import triton.language as tl
from torch import Tensor

from ...backends import compute_dtype
from ...triton import launch
from ...triton.primitives import dot, load_tile, products, store_tile
from . import tile_sizes


@triton.jit
def _load_bias(bias, outputs, real_outputs, ACCUMULATOR: tl.constexpr):  # [OUTPUTS]
    if bias is not None:
        return tl.load(bias + outputs, mask=real_outputs, other=0.0).to(ACCUMULATOR)
    else:
        return tl.zeros(outputs.shape, ACCUMULATOR)


@triton.jit
def _real_words(word_mask, batch, words, WORDS: tl.constexpr):  # [WORDS], scalar
    """The number of an expression's real words up to each word, and of all."""
    number = tl.arange(0, WORDS)
    real = number < words
    if word_mask is not None:
        real = real & tl.load(word_mask + batch * words + number, mask=real, other=0).to(tl.int1)
    ranks = tl.cumsum(real.to(tl.int32), 0)
    return ranks, tl.max(ranks, 0)


@triton.jit
def _nth_word(ranks, number):
    """The real word before which there are `number` others."""
    return tl.sum((ranks <= number).to(tl.int32), 0)


@triton.jit(do_not_specialize=["places", "words"])
def _tail_forward(
    attended, weight, bias, word_mask, result, places, words, width, channels,
    WORDS: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr, CHANNELS: tl.constexpr, ACCUMULATOR: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The mean for one block of places and one block of output channels, over the real words."""
    place_blocks = tl.cdiv(places, OWN)
    batch = (tl.program_id(0) // place_blocks).to(tl.int64)
    rows = (tl.program_id(0) % place_blocks) * OWN + tl.arange(0, OWN)
    outputs = tl.program_id(1) * OTHER + tl.arange(0, OTHER)
    real_rows = rows < places
    real_outputs = outputs < channels
    attended += batch * places * words * width
    offset = _load_bias(bias, outputs, real_outputs, ACCUMULATOR)

    ranks, count = _real_words(word_mask, batch, words, WORDS)
    total = tl.zeros([OWN, OTHER], ACCUMULATOR)
    for number in range(0, count):
        word = _nth_word(ranks, number)
        projected = offset[None, :] + products(
            attended + word * width, rows, words * width, 1, real_rows, weight, outputs, width, 1, real_outputs,
            width, CHANNELS, PRECISION, ACCUMULATOR,
        )  # fmt: skip
        # Not tl.maximum, which would turn NaN into 0.
        total += tl.where(projected <= 0, 0.0, projected)

    result += batch * places * channels
    store_tile(result, total / tl.maximum(count, 1), rows, outputs, channels, 1, real_rows, real_outputs)


@triton.jit(do_not_specialize=["places", "words", "parts"])
def _tail_backward(
    attended, weight, bias, word_mask, grad, result, grad_bias, places, words, parts, width,
    channels, OF: tl.constexpr, WORDS: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr,
    CHANNELS: tl.constexpr, SLICE: tl.constexpr, ACCUMULATOR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of one block of OF, "attended" or "weight", and one slice of its channels.

    Of attended, a program takes one word of some places and loops over output channels. Of weight and bias, it
    takes some output channels and loops over one part of an expression's real words and places.
    """
    if OF == "attended":
        own_blocks = tl.cdiv(places, OWN)
        expression_word = tl.program_id(0) // own_blocks
        batch = (expression_word // words).to(tl.int64)
        word = expression_word % words
        owns = (tl.program_id(0) % own_blocks) * OWN + tl.arange(0, OWN)
        real_owns = owns < places
    else:
        batch = (tl.program_id(2) // parts).to(tl.int64)
        owns = tl.program_id(0) * OWN + tl.arange(0, OWN)
        real_owns = owns < channels
    slice_channels = tl.program_id(1) * SLICE + tl.arange(0, SLICE)
    real_slice = slice_channels < width
    attended += batch * places * words * width
    grad += batch * places * channels
    ranks, count = _real_words(word_mask, batch, words, WORDS)
    if OF == "attended":
        tokens = attended + word * width
        start = 0
        stop = tl.cdiv(channels, OTHER)
        if word_mask is not None:
            stop = tl.where(tl.load(word_mask + batch * words + word).to(tl.int1), stop, 0)
    else:
        place_blocks = tl.cdiv(places, OTHER)
        steps = tl.cdiv(count * place_blocks, parts)
        start = (tl.program_id(2) % parts) * steps
        stop = tl.minimum(start + steps, count * place_blocks)
        offset = _load_bias(bias, owns, real_owns, ACCUMULATOR)[:, None]

    total = tl.zeros([OWN, SLICE], ACCUMULATOR)
    bias_total = tl.zeros([OWN], ACCUMULATOR)
    for step in range(start, stop):
        if OF == "attended":
            others = step * OTHER + tl.arange(0, OTHER)
            real_others = others < channels
            offset = _load_bias(bias, others, real_others, ACCUMULATOR)[None, :]
            projected = offset + products(
                tokens, owns, words * width, 1, real_owns, weight, others, width, 1, real_others, width,
                CHANNELS, PRECISION, ACCUMULATOR,
            )  # fmt: skip
            grad_tile = load_tile(grad, owns, others, channels, 1, real_owns, real_others)
            right = load_tile(weight, others, slice_channels, width, 1, real_others, real_slice)
        else:
            others = (step % place_blocks) * OTHER + tl.arange(0, OTHER)
            real_others = others < places
            tokens = attended + _nth_word(ranks, step // place_blocks) * width
            projected = offset + products(
                weight, owns, width, 1, real_owns, tokens, others, words * width, 1, real_others, width,
                CHANNELS, PRECISION, ACCUMULATOR,
            )  # fmt: skip
            grad_tile = load_tile(grad, owns, others, 1, channels, real_owns, real_others)
            right = load_tile(tokens, others, slice_channels, words * width, 1, real_others, real_slice)
        grad_tile = tl.where(projected <= 0, 0.0, grad_tile)
        if OF == "weight":
            bias_total += tl.sum(grad_tile.to(ACCUMULATOR), 1)
        total = dot(grad_tile.to(right.dtype), right, total, PRECISION)

    total = total / tl.maximum(count, 1)
    if OF == "attended":
        result += batch * places * words * width + word * width
        store_tile(result, total, owns, slice_channels, words * width, 1, real_owns, real_slice)
    else:
        part = tl.program_id(2).to(tl.int64)
        store_tile(
            result + part * channels * width, total, owns, slice_channels, width, 1, real_owns, real_slice
        )  # fmt: skip
        if tl.program_id(1) == 0:
            tl.store(grad_bias + part * channels + owns, bias_total / tl.maximum(count, 1), mask=real_owns)


def launch_tail_forward(attended: Tensor, weight: Tensor, bias: Tensor | None, word_mask: Tensor | None) -> Tensor:
    """The mean over real words n of relu(attended[b, p, n] weight^T + bias).

    Args:
        attended: [B, P, N, d].
        weight: [C, d].
        bias: [C], or None.
        word_mask: bool [B, N]; padded words have no influence. None: All words are real.

    Returns:
        [B, P, C] in the inputs' dtype; summed in float32 (float64 for float64 inputs).
    """
    batch, places, words, width = attended.shape
    channels = len(weight)
    tile = tile_sizes.tile("tail", attended.dtype)
    result = attended.new_empty(batch, places, channels)
    launch.launch(
        _tail_forward, (batch * triton.cdiv(places, tile.rows), triton.cdiv(channels, tile.keys)),
        *_operands(attended, weight, bias, word_mask), result, places, words, width, channels,
        WORDS=triton.next_power_of_2(words), CHANNELS=tile_sizes.step(tile, width),
        **tile_sizes.constants(tile, attended.dtype),
    )  # fmt: skip
    return result


def launch_tail_backward(
    grad: Tensor, attended: Tensor, weight: Tensor, bias: Tensor | None, word_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `launch_tail_forward`'s inputs; deterministic, without atomics.

    Args:
        grad: [B, P, C].
        attended, weight, bias, word_mask: As given to `launch_tail_forward`.

    Returns:
        The gradients of attended (0 at padded words), of weight, and of bias (also of an absent one).
    """
    batch, places, words, width = attended.shape
    channels = len(weight)
    operands = (*_operands(attended, weight, bias, word_mask), grad.contiguous())
    slice_width = tile_sizes.slice_width(width)
    slices = triton.cdiv(width, slice_width)
    wide = compute_dtype(weight.dtype)

    def run(of: str, blocks: int, parts: int, tile: launch.Tile, *results: Tensor) -> None:
        launch.launch(
            _tail_backward, (blocks, slices, batch * parts if of == "weight" else 1),
            *operands, *results, places, words, parts, width, channels,
            OF=of, WORDS=triton.next_power_of_2(words), CHANNELS=tile_sizes.step(tile, width), SLICE=slice_width,
            **tile_sizes.constants(tile, weight.dtype),
        )  # fmt: skip

    grad_attended = attended.new_empty(attended.shape)
    tile = tile_sizes.tile("attended", attended.dtype)
    run("attended", batch * words * triton.cdiv(places, tile.rows), 1, tile, grad_attended, grad_attended)

    # One part for each expression and split, because expressions have different numbers of words.
    tile = tile_sizes.tile("weight", attended.dtype)
    blocks = triton.cdiv(channels, tile.rows)
    parts, _ = tile_sizes.split(batch * blocks * slices, words * triton.cdiv(places, tile.keys))
    grad_weight = weight.new_empty(batch * parts, channels, width, dtype=wide)
    grad_bias = weight.new_empty(batch * parts, channels, dtype=wide)
    run("weight", blocks, parts, tile, grad_weight, grad_bias)
    return grad_attended, grad_weight.sum(0).to(weight.dtype), grad_bias.sum(0).to(weight.dtype)


def _operands(
    attended: Tensor, weight: Tensor, bias: Tensor | None, word_mask: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Contiguous operands."""
    bias, word_mask = (None if part is None else part.contiguous() for part in (bias, word_mask))
    return attended.contiguous(), weight.contiguous(), bias, word_mask
