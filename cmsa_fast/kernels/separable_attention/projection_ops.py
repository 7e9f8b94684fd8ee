"""The level tail's Triton kernel as an operator: schemas, fake implementations, autograd and FLOP formulas.

As in `ops`, the kernel is imported when the operator first runs, and nothing looks at the values of a tensor.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..library import register, register_gradient
from ..validation import check_triton
from .projection_eager import gradient_of_attended, gradient_of_images, gradient_of_weight


def _forward(attended: Tensor, *arguments: Any) -> Tensor:
    check_triton(attended)
    from .triton.projection import launch_level_tail

    return launch_level_tail(attended, *arguments)


def _backward(
    grad: Tensor,
    attended: Tensor,
    output_weight: Tensor,
    image_index: Tensor | None,
    images: int,
    visual_channels: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of attended, weight and images; without image_index the last is a view of `grad`, and empty here."""
    with torch.autocast(grad.device.type, enabled=False):
        of_images = grad.new_empty(0)
        if image_index is not None:
            of_images = gradient_of_images(grad[:, :visual_channels], image_index, images)
        return (
            gradient_of_attended(grad, output_weight),
            gradient_of_weight(grad, attended),
            of_images,
        )


def _fake_forward(attended: Tensor, output_weight: Tensor, *_: Any) -> Tensor:
    return attended.new_empty(len(attended), len(output_weight), attended.shape[1])


def _fake_backward(
    grad: Tensor,
    attended: Tensor,
    output_weight: Tensor,
    image_index: Tensor | None,
    images: int,
    visual_channels: int,
) -> tuple[Tensor, Tensor, Tensor]:
    of_images = (images, visual_channels, grad.shape[2]) if image_index is not None else (0,)
    return (
        attended.new_empty(attended.shape),
        output_weight.new_empty(output_weight.shape),
        grad.new_empty(of_images),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    attended, output_weight, unit_visual, mean_word, coordinates, image_index = inputs
    ctx.save_for_backward(attended, output_weight, image_index)
    ctx.images = len(unit_visual)
    ctx.sizes = [unit_visual.shape[2], mean_word.shape[1], len(coordinates)]


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    attended, output_weight, image_index = ctx.saved_tensors
    of_attended, of_weight, of_images = torch.ops.cmsa_fast.level_tail_backward(
        grad, attended, output_weight, image_index, ctx.images, ctx.sizes[0]
    )
    of_visual, of_word, of_spatial = grad.split(ctx.sizes, dim=1)
    of_visual = of_visual if image_index is None else of_images
    return of_attended, of_weight, of_visual.mT, of_word.sum(2), of_spatial.sum(0), None


register(
    "level_tail_forward",
    "(Tensor attended, Tensor output_weight, Tensor unit_visual, Tensor mean_word, Tensor coordinates, "
    "Tensor? image_index) -> Tensor",
    _forward,
    _fake_forward,
)
register(
    "level_tail_backward",
    "(Tensor grad, Tensor attended, Tensor output_weight, Tensor? image_index, SymInt images, "
    "SymInt visual_channels) -> (Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)
register_gradient("level_tail_forward", _differentiate, _save, "level_tail_backward")


def level_tail(
    attended: Tensor,
    output_weight: Tensor,
    unit_visual: Tensor,
    mean_word: Tensor,
    coordinates: Tensor,
    image_index: Tensor | None,
) -> Tensor:
    """`cmsa_fast.kernels.level_tail` by the Triton kernel; arguments are not checked here."""
    return torch.ops.cmsa_fast.level_tail_forward(
        attended, output_weight, unit_visual, mean_word, coordinates, image_index
    )


@register_flop_formula(torch.ops.cmsa_fast.level_tail_forward)
def _forward_flop(attended: Any, output_weight: Any, *_: Any, **__: Any) -> int:
    batch, places, width = attended
    return 2 * batch * places * width * output_weight[0]


@register_flop_formula(torch.ops.cmsa_fast.level_tail_backward)
def _backward_flop(grad: Any, attended: Any, output_weight: Any, *_: Any, **__: Any) -> int:
    return 2 * _forward_flop(attended, output_weight)
