"""The attention that each word and each place receives, in plain PyTorch."""

import itertools

import torch
from torch import Tensor

from ..backends import without_autocast
from .mean_softmax import MeanSoftmax, exp_logits
from .numerics import split_offset

_BLOCK = 2**20  # elements of an array over places and keys


def received_word_attention(
    place_query: Tensor, word_query: Tensor, word_key: Tensor, weight: Tensor, image_index: Tensor | None
) -> Tensor:
    """`cmsa_fast.kernels.received_word_attention` with `word_weights`; arguments are not checked.

    The result is differentiable. The place keys have no influence, because the softmax over places sums to one.
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


@torch.no_grad()
def received_place_attention(
    place_query: Tensor,
    place_key: Tensor,
    word_query: Tensor,
    weight: Tensor,
    image_index: Tensor | None,
    exponentials: Tensor | None,
) -> Tensor:
    """`cmsa_fast.kernels.received_place_attention` with `word_weights`; arguments are not checked.

    The mean over places of the mean softmax over words (`MeanSoftmax`), a block of places at a time. Without
    `exponentials`, which are those of `eager.place_exponentials`, they are computed.
    """
    places = place_query.shape[1]
    rows = max(1, _BLOCK // places)
    received = weight.new_zeros(len(word_query), places)
    with without_autocast(place_query.device):
        for expression, total in enumerate(received):
            image = expression if image_index is None else int(image_index[expression])
            query, offset = split_offset(place_query[image].to(weight.dtype))
            key = split_offset(place_key[image].to(weight.dtype))[0]
            words = word_query[expression, weight[expression] > 0].to(weight.dtype) + offset
            mean_softmax = MeanSoftmax(key, words)
            kept = itertools.repeat(None) if exponentials is None else exponentials[image].split(rows)
            for block, known in zip(query.split(rows), kept, strict=False):
                exp_place = exp_logits(block, key) if known is None else known
                total += mean_softmax.forward(block, exp_place, torch.empty_like(exp_place)).sum(0)
    return (received / places).to(place_query.dtype)
