"""The tail of a CMSA level in plain PyTorch, forward and backward, on any device.

Memory. The result [B, C, P] begins as the residual, whose parts are copied each to its channels, and the library's
matmul adds the projection in place. In backward the gradients of the residual's parts are views or sums of the
result's gradient; the weight's is summed over expressions one product [C, d] at a time.
"""

from typing import Any

import torch
from torch import Tensor


def level_tail(
    attended: Tensor,
    output_weight: Tensor,
    unit_visual: Tensor,
    mean_word: Tensor,
    coordinates: Tensor,
    image_index: Tensor | None,
) -> Tensor:
    """`cmsa_fast.kernels.level_tail` by the library's matmul; arguments are not checked here."""
    if torch.compiler.is_compiling():
        return _traced(attended, output_weight, unit_visual, mean_word, coordinates, image_index)
    return _Tail.apply(attended, output_weight, unit_visual, mean_word, coordinates, image_index)


def _traced(
    attended: Tensor,
    output_weight: Tensor,
    unit_visual: Tensor,
    mean_word: Tensor,
    coordinates: Tensor,
    image_index: Tensor | None,
) -> Tensor:
    """For a graph: compilers differentiate a product into its own buffer wrongly (torch 2.11 gives zeros)."""
    batch, places, _ = attended.shape
    visual = unit_visual if image_index is None else unit_visual[image_index]
    parts = [
        visual.mT,
        mean_word[..., None].expand(-1, -1, places),
        coordinates.expand(batch, -1, -1),
    ]
    return torch.baddbmm(torch.cat(parts, dim=1), output_weight.expand(batch, -1, -1), attended.mT)


def gradient_of_attended(grad: Tensor, output_weight: Tensor) -> Tensor:
    """[B, P, d]."""
    return torch.bmm(grad.mT, output_weight.expand(len(grad), -1, -1))


def gradient_of_weight(grad: Tensor, attended: Tensor) -> Tensor:
    """[C, d], summed over expressions one after the other, in float32 where they are 16-bit."""
    exact = torch.float32 if grad.dtype.itemsize == 2 else grad.dtype
    total = grad.new_zeros(grad.shape[1], attended.shape[2], dtype=exact)
    for of_result, tokens in zip(grad, attended, strict=True):
        total += of_result @ tokens
    return total.to(grad.dtype)


def gradient_of_images(grad: Tensor, image_index: Tensor, images: int) -> Tensor:
    """[B, Cv, P] -> [B_images, Cv, P], the sum over the expressions of each image."""
    total = grad.new_zeros(images, *grad.shape[1:])
    # Which of the two has no atomics depends on the device.
    if grad.is_cuda:
        return total.index_put_((image_index,), grad, accumulate=True)
    return total.index_add_(0, image_index, grad)


class _Tail(torch.autograd.Function):
    """Its backward consists of differentiable operations, and so it can be differentiated again."""

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
        of_visual, of_word, of_spatial = result.split(ctx.sizes, dim=1)
        visual = unit_visual.mT
        of_visual.copy_(visual if image_index is None else visual[image_index])
        of_word.copy_(mean_word[..., None])
        of_spatial.copy_(coordinates)
        weight = output_weight.expand(batch, -1, -1)
        # PyTorch's FLOP counter knows the product in this form and not as baddbmm_.
        return torch.baddbmm(result, weight, attended.mT, out=result)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        attended, output_weight, image_index = ctx.saved_tensors
        of_visual, of_word, of_spatial = grad.split(ctx.sizes, dim=1)
        needed = ctx.needs_input_grad
        with torch.autocast(grad.device.type, enabled=False):
            if needed[2] and image_index is not None:
                of_visual = gradient_of_images(of_visual, image_index, ctx.images)
            return (
                gradient_of_attended(grad, output_weight) if needed[0] else None,
                gradient_of_weight(grad, attended) if needed[1] else None,
                of_visual.mT if needed[2] else None,
                of_word.sum(2) if needed[3] else None,
                of_spatial.sum(0) if needed[4] else None,
                None,
            )
