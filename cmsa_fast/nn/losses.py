"""Losses on mask logits."""

import torch
from torch import Tensor
from torch.nn import functional as F


def segmentation_loss(logits: Tensor, masks: Tensor, ignore: Tensor | None = None) -> Tensor:
    """Eq. 7: binary cross-entropy, averaged over pixels and batch, with the minus sign that the paper omits.

    Args:
        logits: [B, 1, H, W].
        masks: bool [B, H, W], True inside the object.
        ignore: bool [B, H, W], True where a pixel does not count. None: all pixels count.

    Returns:
        A scalar; 0 if no pixel counts.

    Raises:
        TypeError: masks or ignore are not bool.
        ValueError: Shapes do not fit.
    """
    _check(logits, masks, ignore)
    truth = masks.to(logits.dtype)
    if ignore is None:
        return F.binary_cross_entropy_with_logits(logits[:, 0], truth)
    each = F.binary_cross_entropy_with_logits(logits[:, 0], truth, reduction="none")
    return each.masked_fill(ignore, 0).sum() / (~ignore).sum().clamp_min(1)


def dice_loss(logits: Tensor, masks: Tensor, ignore: Tensor | None = None) -> Tensor:
    """1 - Dice coefficient of the probabilities (Milletari et al., 3DV 2016), averaged over the batch.

    Cross-entropy weights all pixels equally, so small objects contribute little; Dice weights all objects equally.
    Two empty masks give 0.

    Args:
        logits: [B, 1, H, W].
        masks: bool [B, H, W].
        ignore: bool [B, H, W], True where a pixel does not count. None: all pixels count.

    Returns:
        A scalar in [0, 1].

    Raises:
        TypeError: masks or ignore are not bool.
        ValueError: Shapes do not fit.
    """
    _check(logits, masks, ignore)
    probability = logits[:, 0].sigmoid()
    if ignore is not None:
        probability, masks = probability.masked_fill(ignore, 0), masks & ~ignore
    probability = probability.flatten(1)
    truth = masks.flatten(1).to(probability.dtype)
    overlap = (probability * truth).sum(1)
    total = probability.sum(1) + truth.sum(1)
    return (1 - (2 * overlap + 1) / (total + 1)).mean()


def _check(logits: Tensor, masks: Tensor, ignore: Tensor | None) -> None:
    if masks.dtype != torch.bool:
        raise TypeError(f"masks must be bool; got {masks.dtype}.")
    if ignore is not None and ignore.dtype != torch.bool:
        raise TypeError(f"ignore must be bool; got {ignore.dtype}.")
    if ignore is not None and ignore.shape != masks.shape:
        raise ValueError(f"ignore must have the shape of masks, {list(masks.shape)}; got {list(ignore.shape)}.")
    if logits.ndim != 4 or logits.shape[1] != 1 or logits[:, 0].shape != masks.shape:
        raise ValueError(
            "logits must have shape [batch, 1, height, width] and masks [batch, height, width]; "
            f"got {list(logits.shape)} and {list(masks.shape)}."
        )
