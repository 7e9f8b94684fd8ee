"""Keys without their common offset, shared by the backends.

The offset adds one number to all logits of a query, which softmax does not see, so the result and all gradients
are those of the given keys; only rounding improves.
"""

import torch
from torch import Tensor

from ..backends import compute_dtype
from ..separable_attention.numerics import common_offset


def centred(key: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """[..., K, d] -> the keys less the offset of those that are true in `key_mask` [..., K]; others are arbitrary.

    Of 16-bit keys only those channels are centred in which the difference is exact, as it is where the offset is
    much larger than what it is taken from: products of 16-bit numbers are exact, and rounded keys would lose that.
    """
    wide = key.to(compute_dtype(key.dtype))
    if key_mask is None:
        offset = common_offset(wide)
    else:
        weight = key_mask.to(wide.dtype)
        weight = weight / weight.sum(-1, keepdim=True).clamp(min=1)
        offset = common_offset(wide.masked_fill(~key_mask[..., None], 0), weight)
    if key.dtype == wide.dtype:
        return key - offset
    offset = offset.to(key.dtype)
    difference = key - offset
    exact = difference.to(wide.dtype) + offset == wide
    if key_mask is not None:
        exact |= ~key_mask[..., None]
    return torch.where(exact.all(-2, keepdim=True), difference, key)
