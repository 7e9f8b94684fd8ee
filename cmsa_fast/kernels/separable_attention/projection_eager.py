"""The output projection plus residual of a CMSA level in plain PyTorch, forward and backward, on any device.

Memory. The residual's parts are copied into their channels of the result [B, C, P], and the matmul accumulates
the projection into it. In backward the gradients of the residual's parts are views or sums of the result's
gradient, and the weight's is summed one expression's product [C, d] at a time.
"""

from typing import Any

import torch
from torch import Tensor

from ..backends import compute_dtype, without_autocast


def level_tail(
    attended: Tensor,
    output_weight: Tensor,
    unit_visual: Tensor,
    mean_word: Tensor,
    coordinates: Tensor,
    image_index: Tensor | None,
) -> Tensor:
    """`cmsa_fast.kernels.level_tail` with PyTorch's matmul; arguments are not checked."""
    if not torch.compiler.is_compiling():
        return _Tail.apply(attended, output_weight, unit_visual, mean_word, coordinates, image_index)
    # In a graph the concatenation is explicit, because compilers differentiate a product that accumulates into
    # its own buffer wrongly (zeros in torch 2.11).
    batch, places, _ = attended.shape
    parts = [
        (unit_visual if image_index is None else unit_visual[image_index]).mT,
        mean_word[..., None].expand(-1, -1, places),
        coordinates.expand(batch, -1, -1),
    ]
    return torch.baddbmm(torch.cat(parts, dim=1), output_weight.expand(batch, -1, -1), attended.mT)


def attended_gradient(grad: Tensor, output_weight: Tensor) -> Tensor:
    """[B, P, d]."""
    return torch.bmm(grad.mT, output_weight.expand(len(grad), -1, -1))


def weight_gradient(grad: Tensor, attended: Tensor) -> Tensor:
    """[C, d], summed over expressions in order, in float32 for 16-bit inputs."""
    total = grad.new_zeros(grad.shape[1], attended.shape[2], dtype=compute_dtype(grad.dtype))
    for grad_result, tokens in zip(grad, attended, strict=True):
        total += grad_result @ tokens
    return total.to(grad.dtype)


def image_gradient(grad: Tensor, image_index: Tensor, images: int) -> Tensor:
    """[B, Cv, P] -> [B_images, Cv, P], the sum over the expressions of each image."""
    total = grad.new_zeros(images, *grad.shape[1:])
    # Which of the two needs no atomics depends on the device.
    if grad.is_cuda:
        return total.index_put_((image_index,), grad, accumulate=True)
    return total.index_add_(0, image_index, grad)


class _Tail(torch.autograd.Function):
    """Its backward is made of differentiable operations, so it can be differentiated twice."""

    @staticmethod
    def forward(
        ctx: Any,
        attended: Tensor,
        output_weight: Tensor,
        unit_visual: Tensor,
        mean_word: Tensor,
        coordinates: Tensor,
        image_index: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(attended, output_weight, image_index)
        ctx.images = len(unit_visual)
        ctx.sizes = [unit_visual.shape[2], mean_word.shape[1], len(coordinates)]
        batch, places, _ = attended.shape
        result = attended.new_empty(batch, len(output_weight), places)
        visual_part, word_part, coordinate_part = result.split(ctx.sizes, dim=1)
        visual = unit_visual.mT
        visual_part.copy_(visual if image_index is None else visual[image_index])
        word_part.copy_(mean_word[..., None])
        coordinate_part.copy_(coordinates)
        weight = output_weight.expand(batch, -1, -1)
        # PyTorch's FLOP counter counts this product, but not baddbmm_.
        return torch.baddbmm(result, weight, attended.mT, out=result)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        attended, output_weight, image_index = ctx.saved_tensors
        grad_visual, grad_word, grad_coordinates = grad.split(ctx.sizes, dim=1)
        needed = ctx.needs_input_grad
        with without_autocast(grad.device):
            if needed[2] and image_index is not None:
                grad_visual = image_gradient(grad_visual, image_index, ctx.images)
            return (
                attended_gradient(grad, output_weight) if needed[0] else None,
                weight_gradient(grad, attended) if needed[1] else None,
                grad_visual.mT if needed[2] else None,
                grad_word.sum(2) if needed[3] else None,
                grad_coordinates.sum(0) if needed[4] else None,
                None,
            )
