"""Mean-centring and the weights of words, shared by the backends.

Attention is invariant to an offset that all rows share; only rounding improves without it.
"""

import torch
from torch import Tensor

from ..backends import compute_dtype


def word_weights(word_mask: Tensor | None, words: Tensor) -> Tensor:
    """[B, N]: 1 / (number of real words) on real words, 0 on padding, in the dtype to compute in."""
    dtype = compute_dtype(words.dtype)
    if word_mask is None:
        return words.new_full(words.shape[:2], 1 / words.shape[1], dtype=dtype)
    return word_mask.log().softmax(1, dtype=dtype)  # of 0 and -inf, in two kernels


def common_offset(features: Tensor, weight: Tensor | None = None) -> Tensor:
    """The (weighted) mean of the rows where it outweighs their spread around it, else zero.

    Subtracting a mean that a few outliers dominate would cost the other rows their accuracy.

    Args:
        features: [..., R, d].
        weight: [..., R], summing to 1. None: Uniform.

    Returns:
        [..., 1, d].
    """
    if weight is None:
        weight = features.new_full(features.shape[:-1], 1 / features.shape[-2])
    mean = weight[..., None, :] @ features  # [..., 1, d]
    square = (weight * torch.linalg.vector_norm(features, dim=-1).square()).sum(-1)
    # The mean square is the sum of the mean's square and the spread's. A mean that is not finite is not common.
    common = 2 * mean.square().sum((-2, -1)) > square
    return mean.where(common[..., None, None], 0)


def split_offset(features: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """[..., R, d] -> the rows less their common offset [..., R, d], and the offset [..., 1, d]."""
    offset = common_offset(features, weight)
    return features - offset, offset
