"""The tail of the joint attention in plain PyTorch: projection, activation and mean over words.

The projected tokens [B, P*N, C], which would be the largest array of the joint form, are never held. Without
activation the mean over words comes first, since the projection is linear. With ReLU the tokens are projected in
blocks of places, and again in backward. 16-bit input is computed in float32, one block at a time.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..backends import compute_dtype
from ..library import without_derivative
from .eager import blocks

# Elements of a block's tokens [places, N, d] and of their projection [places, N, C].
_BLOCK = 2**20


def joint_attention_tail(
    attended: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    word_mask: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """`cmsa_fast.kernels.joint_attention_tail` in blocks of places; arguments are not checked.

    Raises:
        RuntimeError: The gradient is differentiated again.
    """
    if relu:
        return _Tail.apply(attended, weight, bias, word_mask, True)
    mean = _MeanOverWords.apply(attended, word_mask)
    return _Tail.apply(mean[:, :, None], weight, bias, None, False)


class _MeanOverWords(torch.autograd.Function):
    """[B, P, N, d] -> [B, P, d] in the dtype to compute in."""

    @staticmethod
    def forward(ctx: Any, attended: Tensor, word_mask: Tensor | None) -> Tensor:
        ctx.save_for_backward(word_mask)
        ctx.words, ctx.dtype = attended.shape[2], attended.dtype
        batch, places, words, width = attended.shape
        mean = attended.new_empty(batch, places, width, dtype=compute_dtype(attended.dtype))
        for number, real in enumerate(_real_words(batch, word_mask)):
            for rows in blocks(places, words * width, _BLOCK):
                mean[number, rows] = attended[number, rows][:, real].to(mean.dtype).mean(1)
        return mean

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (word_mask,) = ctx.saved_tensors
        if word_mask is None:
            shared = (grad / ctx.words).to(ctx.dtype)
            return shared[:, :, None].expand(-1, -1, ctx.words, -1), None
        shared = (grad / word_mask.sum(1)[:, None, None]).to(ctx.dtype)
        return torch.where(word_mask[:, None, :, None], shared[:, :, None], 0), None


class _Tail(torch.autograd.Function):
    """[B, P, N, d] -> [B, P, C] in the dtype of the weight."""

    @staticmethod
    def forward(
        ctx: Any,
        attended: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        word_mask: Tensor | None,
        relu: bool,
    ) -> Tensor:
        ctx.save_for_backward(attended, weight, bias, word_mask)
        ctx.relu = relu
        result = weight.new_empty(*attended.shape[:2], len(weight))
        with torch.autocast(attended.device.type, enabled=False):
            projection = _Projection(weight, bias, relu)
            for number, real in enumerate(_real_words(len(attended), word_mask)):
                for rows in projection.blocks(attended):
                    tokens = projection.cast(attended[number, rows], real)
                    projected = projection(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
                    result[number, rows] = projected.mean(1)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *without_derivative(_backward, grad, *ctx.saved_tensors, ctx.relu), None, None


def _backward(
    grad: Tensor,
    attended: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    word_mask: Tensor | None,
    relu: bool,
) -> tuple[Tensor | None, ...]:
    """The gradients of attended, weight and bias."""
    grad_attended = attended.new_zeros(attended.shape)
    with torch.autocast(grad.device.type, enabled=False):
        projection = _Projection(weight, bias, relu)
        grad_weight = torch.zeros_like(projection.weight)
        grad_bias = grad_weight.new_zeros(len(weight))
        for number, real in enumerate(_real_words(len(attended), word_mask)):
            for rows in projection.blocks(attended):
                tokens = projection.cast(attended[number, rows], real)
                shape = tokens.shape[:2]
                tokens = tokens.flatten(0, 1)
                upstream = grad[number, rows].to(tokens.dtype) / shape[1]
                upstream = upstream[:, None].expand(*shape, -1).flatten(0, 1)
                if relu:
                    upstream = upstream.masked_fill(projection(tokens) == 0, 0)
                grad_tokens = (upstream @ projection.weight).unflatten(0, shape)
                grad_attended[number, rows][:, real] = grad_tokens.to(attended.dtype)
                grad_weight.addmm_(upstream.T, tokens)
                grad_bias += upstream.sum(0)
    return (
        grad_attended,
        grad_weight.to(weight.dtype),
        None if bias is None else grad_bias.to(bias.dtype),
    )


class _Projection:
    """x weight^T + bias, optionally with ReLU, in the dtype to compute in."""

    def __init__(self, weight: Tensor, bias: Tensor | None, relu: bool) -> None:
        self.weight = weight.to(compute_dtype(weight.dtype))  # [C, d]
        self.bias = None if bias is None else bias.to(self.weight.dtype)
        self.relu = relu

    def blocks(self, attended: Tensor) -> Iterator[slice]:
        places, words = attended.shape[1:3]
        return blocks(places, words * max(self.weight.shape), _BLOCK)

    def cast(self, attended: Tensor, real: Tensor | slice) -> Tensor:
        return attended[:, real].to(self.weight.dtype)

    def __call__(self, tokens: Tensor) -> Tensor:
        projected = tokens @ self.weight.T
        if self.bias is not None:
            projected += self.bias
        return projected.relu_() if self.relu else projected


def _real_words(batch: int, word_mask: Tensor | None) -> Iterator[Tensor | slice]:
    if word_mask is None:
        return (slice(None) for _ in range(batch))
    return (mask.nonzero().flatten() for mask in word_mask)
