"""The tail of the joint attention in plain PyTorch: projection, activation and mean over words.

The projected tokens [B, P*N, C], which would be the largest array of the joint form, are never held. With ReLU
the tokens are projected in blocks of places, and again in backward; 16-bit input is computed in float32, one block
at a time. Without activation the mean over words comes first, since the projection is linear, for every backend.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from ..backends import compute_dtype
from .eager import blocks, select

# Elements of a block's tokens [places, N, d] and of their projection [places, N, C].
_BLOCK = 2**20


def forward(attended: Tensor, weight: Tensor, bias: Tensor | None, word_mask: Tensor | None) -> Tensor:
    """The mean over real words n of relu(attended[b, p, n] weight^T + bias), [B, P, C]."""
    result = weight.new_empty(*attended.shape[:2], len(weight))
    for block in _blocks(attended, weight, bias, word_mask):
        projected = block.projected
        if block.padded is not None:
            projected.masked_fill_(block.padded, 0)
        result[block.places] = projected.sum(1) / block.count
    return result


def backward(
    grad: Tensor, attended: Tensor, weight: Tensor, bias: Tensor | None, word_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of attended, weight and bias (also of an absent one)."""
    grad_attended = attended.new_zeros(attended.shape)
    wide = weight.to(compute_dtype(weight.dtype))
    grad_weight, grad_bias = torch.zeros_like(wide), wide.new_zeros(len(wide))
    for block in _blocks(attended, weight, bias, word_mask):
        excluded = block.projected == 0
        if block.padded is not None:
            excluded |= block.padded
        upstream = (grad[block.places].to(wide.dtype) / block.count)[:, None].expand(excluded.shape)
        upstream = upstream.masked_fill(excluded, 0)
        grad_attended[block.places][:, block.words] = (upstream @ wide).to(attended.dtype)
        upstream = upstream.flatten(0, 1)
        grad_weight.addmm_(upstream.T, block.tokens.flatten(0, 1))
        grad_bias += upstream.sum(0)
    return grad_attended, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)


class _Block:
    """The real words of some places of an expression.

    Attributes:
        places: The expression and its places, an index of [B, P].
        words: An index of [N]: the real words, or all where the host must not wait for their number.
        padded: bool [n, 1], then True for padded words, whose tokens are zero; else None.
        count: The number of real words.
        tokens: [p, n, d], in the dtype to compute in.
        projected: [p, n, C], after ReLU.
    """

    def __init__(
        self, places: tuple[int, slice], attended: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None
    ) -> None:
        self.places = places
        self.words, padded = select(mask)
        self.padded = None if padded is None else padded[:, None]
        self.tokens = attended[places][:, self.words].to(weight.dtype)
        self.count: Tensor | int = self.tokens.shape[1]
        if self.padded is not None:
            self.tokens = self.tokens.masked_fill(self.padded, 0)
            self.count = (~self.padded).sum()
        self.projected = functional.linear(self.tokens, weight, bias).relu_()


def _blocks(attended: Tensor, weight: Tensor, bias: Tensor | None, word_mask: Tensor | None) -> Iterator[_Block]:
    wide = compute_dtype(weight.dtype)
    weight, bias = weight.to(wide), None if bias is None else bias.to(wide)
    for number in range(len(attended)):
        mask = None if word_mask is None else word_mask[number]
        for rows in blocks(attended.shape[1], attended.shape[2] * max(weight.shape), _BLOCK):
            yield _Block((number, rows), attended, mask, weight, bias)


def linear_forward(
    attended: Tensor, weight: Tensor, bias: Tensor | None, word_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The tail without activation [B, P, C], and the mean over words [B, P, d] in the dtype of sums."""
    mean = _mean_over_words(attended, word_mask)
    dtype = _product_dtype(weight)
    bias = None if bias is None else bias.to(dtype)
    return functional.linear(mean.to(dtype), weight.to(dtype), bias).to(weight.dtype), mean


def linear_backward(
    grad: Tensor, mean: Tensor, weight: Tensor, word_mask: Tensor | None, words: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of attended, weight and bias (also of an absent one)."""
    dtype = _product_dtype(weight)
    grad_mean = (grad.to(dtype) @ weight.to(dtype)).to(mean.dtype)[:, :, None]
    grad_weight = grad.flatten(0, 1).T.to(dtype) @ mean.flatten(0, 1).to(dtype)
    grad_bias = grad.sum((0, 1), dtype=mean.dtype).to(weight.dtype)
    if word_mask is None:
        grad_attended = (grad_mean / words).to(weight.dtype).expand(-1, -1, words, -1).contiguous()
    else:
        shared = (grad_mean / word_mask.sum(1)[:, None, None, None]).to(weight.dtype)
        grad_attended = torch.where(word_mask[:, None, :, None], shared, 0)
    return grad_attended, grad_weight.to(weight.dtype), grad_bias


def _product_dtype(weight: Tensor) -> torch.dtype:
    """On a GPU products of 16-bit operands are summed in float32."""
    return weight.dtype if weight.is_cuda else compute_dtype(weight.dtype)


def _mean_over_words(attended: Tensor, word_mask: Tensor | None) -> Tensor:
    """[B, P, N, d] -> [B, P, d] in the dtype of sums, without a copy of `attended`."""
    wide = compute_dtype(attended.dtype)
    if word_mask is None:
        return attended.sum(2, dtype=wide) / attended.shape[2]
    total = torch.zeros_like(attended[:, :, 0], dtype=wide, memory_format=torch.contiguous_format)
    for word in range(attended.shape[2]):
        total += torch.where(word_mask[:, word, None, None], attended[:, :, word], 0)
    return total / word_mask.sum(1)[:, None, None]
