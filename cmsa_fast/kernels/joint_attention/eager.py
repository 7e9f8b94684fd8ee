"""The joint attention in plain PyTorch, forward and backward, on any device.

Query rows are taken in blocks: the softmax of a block is computed, used and dropped, and computed again in
backward, so no array over all queries and all keys exists, and only the inputs are kept between forward and
backward. A block holds whole rows, so each row's softmax is that of the literal form, without a running maximum.

Masked keys are removed before the products, so they cost nothing. 16-bit input is computed in float32, one batch
entry at a time.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..backends import compute_dtype
from ..library import without_derivative

# Elements of a [rows, Tk] array; forward holds two of them, and so does backward.
_BLOCK = 2**20


def joint_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """`cmsa_fast.kernels.joint_attention` in blocks of queries; arguments are not checked.

    Raises:
        RuntimeError: The gradient is differentiated again.
    """
    return _Joint.apply(query, key, value, key_mask, scale)


def blocks(rows: int, width: int, limit: int) -> Iterator[slice]:
    """`rows` in blocks of even size, as large as keeps an array [block, width] under `limit` elements."""
    size = min(rows, max(1, limit // width))
    size = -(-rows // -(-rows // size))
    return (slice(start, start + size) for start in range(0, rows, size))


class _Entry:
    """One batch entry: its unmasked keys [K, d] and their values [K, e], in the dtype to compute in."""

    def __init__(
        self,
        number: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_mask: Tensor | None,
        scale: float,
    ) -> None:
        self.dtype = compute_dtype(query.dtype)
        self.query = query[number]  # [Tq, d]
        self.scale = scale
        self.unmasked = slice(None) if key_mask is None else key_mask[number].nonzero().flatten()
        self.key = key[number][self.unmasked].to(self.dtype)
        self.value = value[number][self.unmasked].to(self.dtype)

    def blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield rows, their queries times the scale [r, d], and their softmax [r, K]."""
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
        return *without_derivative(_backward, grad, *ctx.saved_tensors, ctx.scale), None, None


def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None,
    scale: float,
) -> tuple[Tensor, ...]:
    """The gradients of query, key and value."""
    grads = tuple(part.new_zeros(part.shape) for part in (query, key, value))
    with torch.autocast(grad.device.type, enabled=False):
        for number in range(len(query)):
            entry = _Entry(number, query, key, value, key_mask, scale)
            grad_query = grads[0][number]
            grad_key, grad_value = torch.zeros_like(entry.key), torch.zeros_like(entry.value)
            for rows, scaled, softmax in entry.blocks():
                upstream = grad[number, rows].to(entry.dtype)
                grad_value.addmm_(softmax.T, upstream)
                grad_logits = upstream @ entry.value.T
                grad_logits -= torch.linalg.vecdot(softmax, grad_logits)[:, None]
                grad_logits *= softmax
                grad_query[rows] = (grad_logits @ entry.key).mul_(scale)
                grad_key.addmm_(grad_logits.T, scaled)
            grads[1][number][entry.unmasked] = grad_key.to(key.dtype)
            grads[2][number][entry.unmasked] = grad_value.to(value.dtype)
    return grads
