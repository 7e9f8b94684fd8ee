"""PyTorch operators of the separable attention's Triton kernels and of the level tail's.

Each operator has a schema, a fake implementation, a gradient and a FLOP formula. This module imports torch alone;
the kernels are imported when an operator first runs, so graphs can be traced without Triton. Nothing here reads
the values of a tensor: branches that depend on data are taken on the GPU, so CUDA graphs can capture the kernels.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..backends import check_triton
from ..library import SEPARABLE_INPUTS, register, register_gradient
from . import eager  # noqa: F401  defines operators that have a formula below
from .projection_eager import attended_gradient, image_gradient, weight_gradient
from .state import Sizes, State


def level_tail(*arguments: Any) -> Tensor:
    """`cmsa_fast.kernels.level_tail` by the Triton kernel; arguments are not checked."""
    return torch.ops.cmsa_fast.level_tail_forward(*arguments)


def _separable_forward(*arguments: Any) -> tuple[Tensor, ...]:
    *features, weight, image_index = arguments
    check_triton(features[0])
    from .triton import schedule

    attended, state = schedule.forward(features, weight, image_index)
    return attended, *state


def _separable_backward(
    grad: Tensor, attended: Tensor, state: list[Tensor], image_index: Tensor | None, sizes: list[int]
) -> tuple[Tensor, ...]:
    from .triton import schedule

    return tuple(schedule.backward(grad, attended, image_index, Sizes(*sizes), State(*state)))


def _fake_separable_forward(*arguments: Any) -> tuple[Tensor, ...]:
    features = arguments[:6]
    sizes = Sizes.of(features)
    attended = features[0].new_empty(sizes.batch, sizes.places, sizes.value_width)
    return attended, *State.empty(sizes, features[0])


def _fake_separable_backward(
    grad: Tensor, attended: Tensor, state: list[Tensor], image_index: Tensor | None, sizes: list[int]
) -> tuple[Tensor, ...]:
    images, batch, places, words, width, value_width = sizes[:6]
    return tuple(
        grad.new_empty(count, rows, channels)
        for count, rows in ((images, places), (batch, words))
        for channels in (width, width, value_width)
    )


def _save_separable(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    attended, *state = output
    ctx.sizes = Sizes.of(inputs[:6])
    if ctx.sizes.in_place:
        state[:3] = inputs[:3]
    ctx.save_for_backward(inputs[7], attended, *state)
    ctx.set_materialize_grads(False)


def _differentiate_separable(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 8
    image_index, attended, *state = ctx.saved_tensors
    return *torch.ops.cmsa_fast.separable_backward(grad, attended, state, image_index, ctx.sizes), None, None


def _tail_forward(attended: Tensor, *arguments: Any) -> Tensor:
    check_triton(attended)
    from .triton.projection import launch_level_tail

    return launch_level_tail(attended, *arguments)


def _tail_backward(
    grad: Tensor,
    attended: Tensor,
    output_weight: Tensor,
    image_index: Tensor | None,
    images: int,
    visual_channels: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of attended, weight and images; without image_index the last is a view of grad, here empty."""
    grad_visual = grad.new_empty(0)
    if image_index is not None:
        grad_visual = image_gradient(grad[:, :visual_channels], image_index, images)
    return attended_gradient(grad, output_weight), weight_gradient(grad, attended), grad_visual


def _fake_tail_forward(attended: Tensor, output_weight: Tensor, *_: Any) -> Tensor:
    return attended.new_empty(attended.shape[0], len(output_weight), attended.shape[1])


def _fake_tail_backward(
    grad: Tensor,
    attended: Tensor,
    output_weight: Tensor,
    image_index: Tensor | None,
    images: int,
    visual_channels: int,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (0,) if image_index is None else (images, visual_channels, grad.shape[2])
    return (
        attended.new_empty(attended.shape),
        output_weight.new_empty(output_weight.shape),
        grad.new_empty(shape),
    )


def _save_tail(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    attended, output_weight, unit_visual, mean_word, coordinates, image_index = inputs
    ctx.save_for_backward(attended, output_weight, image_index)
    ctx.images = unit_visual.shape[0]
    ctx.sizes = [unit_visual.shape[2], mean_word.shape[1], len(coordinates)]


def _differentiate_tail(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    attended, output_weight, image_index = ctx.saved_tensors
    grad_attended, grad_weight, grad_images = torch.ops.cmsa_fast.level_tail_backward(
        grad, attended, output_weight, image_index, ctx.images, ctx.sizes[0]
    )
    grad_visual, grad_word, grad_coordinates = grad.split(ctx.sizes, dim=1)
    if image_index is not None:
        grad_visual = grad_images
    return (grad_attended, grad_weight, grad_visual.mT, grad_word.sum(2), grad_coordinates.sum(0), None)


register(
    "separable_forward",
    f"({SEPARABLE_INPUTS}) -> ({', '.join(['Tensor'] * (1 + len(State._fields)))})",
    _separable_forward,
    _fake_separable_forward,
)
register(
    "separable_backward",
    f"(Tensor grad, Tensor attended, Tensor[] state, Tensor? image_index, SymInt[] sizes) -> "
    f"({', '.join(['Tensor'] * 6)})",
    _separable_backward,
    _fake_separable_backward,
)
register_gradient("separable_forward", _differentiate_separable, _save_separable, "separable_backward")
register(
    "level_tail_forward",
    "(Tensor attended, Tensor output_weight, Tensor unit_visual, Tensor mean_word, Tensor coordinates, "
    "Tensor? image_index) -> Tensor",
    _tail_forward,
    _fake_tail_forward,
)
register(
    "level_tail_backward",
    "(Tensor grad, Tensor attended, Tensor output_weight, Tensor? image_index, SymInt images, "
    "SymInt visual_channels) -> (Tensor, Tensor, Tensor)",
    _tail_backward,
    _fake_tail_backward,
)
register_gradient("level_tail_forward", _differentiate_tail, _save_tail, "level_tail_backward")


def _separable_flop(sizes: Sizes) -> tuple[int, int]:
    """FLOP of all products over places and over words: forward, and backward with the logits recomputed."""
    _, batch, places, words, width, value_width = sizes[:6]
    pairs, word_logits = places * (width + value_width), words * width
    forward = places * pairs + 2 * places * places * words + word_logits * places
    backward = places * places * (3 * width + 2 * value_width + 6 * words) + 2 * word_logits * places
    forward += words * pairs + word_logits * words
    backward += 2 * (words * pairs + word_logits * words)
    return 2 * batch * forward, 2 * batch * backward


@register_flop_formula([torch.ops.cmsa_fast.separable_forward, torch.ops.cmsa_fast.factored_forward])
def _separable_forward_flop(*shapes: Any, **_: Any) -> int:
    (images, places, width), (batch, words, value_width) = shapes[0], shapes[5]
    return _separable_flop(Sizes(images, batch, places, words, width, value_width, *[0] * 5))[0]


@register_flop_formula(torch.ops.cmsa_fast.separable_backward)
def _separable_backward_flop(grad: Any, attended: Any, state: Any, image_index: Any, sizes: Any, **_: Any) -> int:
    return _separable_flop(Sizes(*sizes))[1]


@register_flop_formula(torch.ops.cmsa_fast.factored_backward)
def _factored_backward_flop(grad: Any, *shapes: Any, **_: Any) -> int:
    (images, places, width), (batch, words, value_width) = shapes[0], shapes[5]
    return _separable_flop(Sizes(images, batch, places, words, width, value_width, *[0] * 5))[1]


@register_flop_formula(torch.ops.cmsa_fast.level_tail_forward)
def _tail_forward_flop(attended: Any, output_weight: Any, *_: Any, **__: Any) -> int:
    batch, places, width = attended
    return 2 * batch * places * width * output_weight[0]


@register_flop_formula(torch.ops.cmsa_fast.level_tail_backward)
def _tail_backward_flop(grad: Any, attended: Any, output_weight: Any, *_: Any, **__: Any) -> int:
    return 2 * _tail_forward_flop(attended, output_weight)
