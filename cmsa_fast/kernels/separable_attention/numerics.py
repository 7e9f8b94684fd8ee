"""Offsets that rows have in common, on which attention does not depend but through rounding."""

import torch
from torch import Tensor


def common_offset(features: Tensor, weight: Tensor | None = None) -> Tensor:
    """The (weighted) mean of the rows where it outweighs their spread around it, else zero.

    Subtracting a mean that a few outliers made would cost the other rows their accuracy.

    Args:
        features: [..., R, d].
        weight: [..., R], summing to 1. None: the same for all.

    Returns:
        [..., 1, d].
    """
    if weight is None:
        weight = features.new_full(features.shape[:-1], 1 / features.shape[-2])
    mean = weight[..., None, :] @ features  # [..., 1, d]
    square = (weight * torch.linalg.vector_norm(features, dim=-1).square()).sum(-1)
    # The mean square is that of the mean and that of the spread together.
    common = 2 * mean.square().sum((-2, -1)) > square
    return mean * common[..., None, None]


def split_offset(features: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """[..., R, d] -> (rows less what they have in common, that offset [..., 1, d])."""
    offset = common_offset(features, weight)
    return features - offset, offset
