"""What follows the joint attention, in plain PyTorch: projection, activation and mean over words.

The projected tokens [B, P*N, C] are the largest array of the joint form and are never held. Without activation
the mean over words comes first, since the projection is linear. With ReLU the tokens are projected in blocks of
places, which are made again in backward. 16-bit input is computed in float32, one block at a time.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .eager import blocks, compute_dtype

# Elements of a block's tokens [places, N, d] and of their projection [places, N, C].
_BLOCK = 2**20


def joint_attention_tail(
    attended: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    word_mask: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """`cmsa_fast.kernels.joint_attention_tail` in blocks of places; arguments are not checked here.

    Raises:
        RuntimeError: on differentiating the gradient; it has no derivative of its own.
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
        mean = attended.new_empty(batch, places, width, dtype=compute_dtype(attended))
        for number, true in enumerate(_true_words(batch, word_mask)):
            for rows in blocks(places, words * width, _BLOCK):
                mean[number, rows] = attended[number, rows][:, true].to(mean.dtype).mean(1)
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
            for number, true in enumerate(_true_words(len(attended), word_mask)):
                for rows in projection.blocks(attended):
                    tokens = projection.tokens(attended[number, rows], true)
                    projected = projection.of(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
                    result[number, rows] = projected.mean(1)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_TailGradient.apply(grad, *ctx.saved_tensors, ctx.relu), None, None


class _TailGradient(torch.autograd.Function):
    """The gradients; a function of its own, so that to differentiate them again is refused in words."""

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        attended: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        word_mask: Tensor | None,
        relu: bool,
    ) -> tuple[Tensor | None, ...]:
        of_attended = attended.new_zeros(attended.shape)
        with torch.autocast(grad.device.type, enabled=False):
            projection = _Projection(weight, bias, relu)
            of_weight = torch.zeros_like(projection.weight)
            of_bias = of_weight.new_zeros(len(weight))
            for number, true in enumerate(_true_words(len(attended), word_mask)):
                for rows in projection.blocks(attended):
                    tokens = projection.tokens(attended[number, rows], true)
                    shape = tokens.shape[:2]
                    tokens = tokens.flatten(0, 1)
                    upstream = grad[number, rows].to(tokens.dtype) / shape[1]
                    upstream = upstream[:, None].expand(*shape, -1).flatten(0, 1)
                    if relu:
                        upstream = upstream.masked_fill(projection.of(tokens) == 0, 0)
                    of_tokens = (upstream @ projection.weight).unflatten(0, shape)
                    of_attended[number, rows][:, true] = of_tokens.to(of_attended.dtype)
                    of_weight.addmm_(upstream.T, tokens)
                    of_bias += upstream.sum(0)
        return (
            of_attended,
            of_weight.to(weight.dtype),
            None if bias is None else of_bias.to(bias.dtype),
        )

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:
        raise RuntimeError(
            "joint_attention_tail's torch backend has no second derivative: its gradient cannot be "
            'differentiated again (create_graph=True). Use backend="reference" for double backward.'
        )


class _Projection:
    """x weight^T + bias, and ReLU where asked for, in the dtype to compute in."""

    def __init__(self, weight: Tensor, bias: Tensor | None, relu: bool) -> None:
        self.weight = weight.to(compute_dtype(weight))  # [C, d]
        self.bias = None if bias is None else bias.to(self.weight.dtype)
        self.relu = relu

    def blocks(self, attended: Tensor) -> Iterator[slice]:
        places, words = attended.shape[1:3]
        return blocks(places, words * max(self.weight.shape), _BLOCK)

    def tokens(self, attended: Tensor, true: Tensor | slice) -> Tensor:
        return attended[:, true].to(self.weight.dtype)

    def of(self, tokens: Tensor) -> Tensor:
        projected = tokens @ self.weight.T
        if self.bias is not None:
            projected += self.bias
        return projected.relu_() if self.relu else projected


def _true_words(batch: int, word_mask: Tensor | None) -> Iterator[Tensor | slice]:
    if word_mask is None:
        return (slice(None) for _ in range(batch))
    return (mask.nonzero().flatten() for mask in word_mask)
