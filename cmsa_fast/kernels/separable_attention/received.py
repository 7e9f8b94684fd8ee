"""The attention that each word receives, in differentiable operations of plain PyTorch."""

import torch
from torch import Tensor

from ..backends import without_autocast
from .numerics import split_offset


def received_word_attention(
    place_query: Tensor, word_query: Tensor, word_key: Tensor, weight: Tensor, image_index: Tensor | None
) -> Tensor:
    """`cmsa_fast.kernels.received_word_attention` with `word_weights`; arguments are not checked.

    The place keys have no influence, because the softmax over places sums to one.
    """
    padding = weight[..., None] == 0
    with without_autocast(place_query.device):
        # Attention is invariant to both offsets; only rounding improves.
        places, offset = split_offset(place_query.to(weight.dtype))
        if image_index is not None:
            places, offset = places[image_index], offset[image_index]
        query, key = (part.to(weight.dtype).masked_fill(padding, 0) for part in (word_query, word_key))
        key = split_offset(key, weight)[0].mT
        logits = torch.bmm(places, key)[:, :, None] + torch.bmm(query + offset, key)[:, None]  # [B, P, N, N]
        softmax = logits.masked_fill(padding.mT[:, None], -torch.inf).softmax(-1)
        received = torch.bmm(weight[:, None], softmax.mean(1))[:, 0]
    return received.to(place_query.dtype)
