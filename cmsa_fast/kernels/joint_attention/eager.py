"""The joint attention in plain PyTorch, forward and backward, on any device.

Query rows are taken in blocks: the softmax of a block is computed, used and dropped, and computed again in
backward, so no array over all queries and all keys exists, and only the inputs are kept between forward and
backward. A block holds whole rows, so each row's softmax is that of the literal form, without a running maximum.

On the CPU masked keys are removed before the products, so they cost nothing. 16-bit input is computed in float32,
one batch entry at a time.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..backends import compute_dtype

# Elements of a [rows, Tk] array; forward holds two of them, and so does backward.
_BLOCK = 2**20

# Devices on which the host may wait for the number of a mask's true entries.
_INDEXED_DEVICES = ("cpu",)


def blocks(rows: int, width: int, limit: int) -> Iterator[slice]:
    """`rows` in blocks of even size, as large as keeps an array [block, width] under `limit` elements."""
    size = min(rows, max(1, limit // width))
    size = -(-rows // -(-rows // size))
    return (slice(start, start + size) for start in range(0, rows, size))


def select(mask: Tensor | None) -> tuple[Tensor | slice, Tensor | None]:
    """The index of a mask's true entries; where the host must not wait for it, all, and the inverted mask."""
    if mask is None:
        return slice(None), None
    if mask.device.type in _INDEXED_DEVICES:
        return mask.nonzero().flatten(), None
    return slice(None), ~mask


class _Entry:
    """One batch entry: its unmasked keys [K, d] and their values [K, e], in the dtype to compute in.

    Where the mask is no index, masked keys are zero, and `masked` [K] is True for them.
    """

    def __init__(
        self, number: int, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, scale: float
    ) -> None:
        self.dtype = compute_dtype(query.dtype)
        self.query = query[number]  # [Tq, d]
        self.scale = scale
        self.unmasked, self.masked = select(None if key_mask is None else key_mask[number])
        self.key = key[number][self.unmasked].to(self.dtype)
        self.value = value[number][self.unmasked].to(self.dtype)
        count: Tensor | int = len(self.key)
        if self.masked is not None:
            self.key, self.value = (part.masked_fill(self.masked[:, None], 0) for part in (self.key, self.value))
            count = (~self.masked).sum()
        # An offset that all keys share adds one number to all logits of a query, which softmax does not see; only
        # rounding improves without it. Where a few outliers dominate the mean, or it is not finite, it would not.
        mean = self.key.sum(0) / count
        common = 2 * mean.square() > self.key.square().sum(0) / count
        self.key = self.key - mean.where(common, 0)

    def blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield rows, their queries times the scale [r, d], and their softmax [r, K]."""
        for rows in blocks(len(self.query), len(self.key), _BLOCK):
            scaled = self.query[rows].to(self.dtype) * self.scale
            logits = scaled @ self.key.T
            if self.masked is not None:
                logits.masked_fill_(self.masked, -torch.inf)
            yield rows, scaled, logits.softmax(-1)


def forward(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, scale: float) -> Tensor:
    """The attended values."""
    attended = query.new_empty(*query.shape[:2], value.shape[2])
    for number in range(len(query)):
        entry = _Entry(number, query, key, value, key_mask, scale)
        for rows, _, softmax in entry.blocks():
            attended[number, rows] = softmax @ entry.value
    return attended


def backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value."""
    grads = tuple(part.new_zeros(part.shape) for part in (query, key, value))
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
        for result, part in zip(grads[1:], (grad_key, grad_value), strict=True):
            if entry.masked is not None:
                part.masked_fill_(entry.masked[:, None], 0)
            result[number][entry.unmasked] = part.to(result.dtype)
    return grads[0], grads[1], grads[2]
