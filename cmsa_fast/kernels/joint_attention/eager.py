"""Softmax attention of every token over every key, in plain PyTorch, forward and backward, on any device.

It is for tokens that are not a sum of a place part and a word part, where nothing can be factorised. Query rows
are taken in blocks: the softmax of a block is made, used and dropped, and made again in backward, so that no
array over all queries and all keys exists, and only the inputs are kept between forward and backward. A block
holds whole rows, so each row's softmax is that of the literal form, and no running maximum is needed.

Masked keys are left out before the products, so they cost nothing either. 16-bit input is computed in float32,
one batch entry at a time.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Elements of a [rows, Tk] array; there are two in forward, and in backward.
_BLOCK = 2**20


def joint_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """`cmsa_fast.kernels.joint_attention` in blocks of queries; arguments are not checked here.

    Raises:
        RuntimeError: on differentiating the gradient; it has no derivative of its own.
    """
    return _Joint.apply(query, key, value, key_mask, scale)


def blocks(rows: int, width: int, limit: int) -> Iterator[slice]:
    """`rows` in blocks of even size, as large as keeps an array [block, width] under `limit` elements."""
    size = min(rows, max(1, limit // width))
    size = -(-rows // -(-rows // size))
    return (slice(start, start + size) for start in range(0, rows, size))


def compute_dtype(features: Tensor) -> torch.dtype:
    return torch.float64 if features.dtype == torch.float64 else torch.float32


class _Entry:
    """One batch entry: its true keys [K, d] and their values [K, e], in the dtype to compute in."""

    def __init__(
        self,
        number: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_mask: Tensor | None,
        scale: float,
    ) -> None:
        self.dtype = compute_dtype(query)
        self.query = query[number]  # [Tq, d]
        self.scale = scale
        self.true = slice(None) if key_mask is None else key_mask[number].nonzero().flatten()
        self.key = key[number][self.true].to(self.dtype)
        self.value = value[number][self.true].to(self.dtype)

    def blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Rows, their queries times the scale [r, d], and their softmax [r, K]."""
        for rows in blocks(len(self.query), len(self.key), _BLOCK):
            scaled = self.query[rows].to(self.dtype) * self.scale
            yield rows, scaled, (scaled @ self.key.T).softmax(-1)


class _Joint(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, scale: float
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, key_mask)
        ctx.scale = scale
        attended = query.new_empty(*query.shape[:2], value.shape[2])
        with torch.autocast(query.device.type, enabled=False):
            for number in range(len(query)):
                entry = _Entry(number, query, key, value, key_mask, scale)
                for rows, _, softmax in entry.blocks():
                    attended[number, rows] = softmax @ entry.value
        return attended

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_JointGradient.apply(grad, *ctx.saved_tensors, ctx.scale), None, None


class _JointGradient(torch.autograd.Function):
    """The three gradients; a function of its own, so that to differentiate them again is refused in words."""

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_mask: Tensor | None,
        scale: float,
    ) -> tuple[Tensor, ...]:
        grads = tuple(part.new_zeros(part.shape) for part in (query, key, value))
        with torch.autocast(grad.device.type, enabled=False):
            for number in range(len(query)):
                entry = _Entry(number, query, key, value, key_mask, scale)
                of_query, of_key, of_value = (part[number] for part in grads)
                grad_key, grad_value = torch.zeros_like(entry.key), torch.zeros_like(entry.value)
                for rows, scaled, softmax in entry.blocks():
                    upstream = grad[number, rows].to(entry.dtype)
                    grad_value.addmm_(softmax.T, upstream)
                    of_softmax = upstream @ entry.value.T
                    of_softmax -= torch.linalg.vecdot(softmax, of_softmax)[:, None]
                    of_logits = of_softmax.mul_(softmax)
                    of_query[rows] = (of_logits @ entry.key).mul_(scale)
                    grad_key.addmm_(of_logits.T, scaled)
                of_key[entry.true] = grad_key.to(of_key.dtype)
                of_value[entry.true] = grad_value.to(of_value.dtype)
        return grads

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:
        raise RuntimeError(
            "joint_attention's torch backend has no second derivative: its gradient cannot be "
            'differentiated again (create_graph=True). Use backend="reference" for double backward.'
        )
