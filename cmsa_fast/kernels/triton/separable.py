"""The separable attention by Triton kernels: what is prepared, launched and finished, forward and backward."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..offsets import split_offset
from .separable_keys import KeyGradients, launch_keys
from .separable_mean import launch_mean
from .separable_query import launch_query
from .separable_rows import launch_rows
from .separable_statistics import Keys, Statistics, launch_statistics
from .separable_values import launch_values
from .word_factor import word_factor
from .word_logits import to_keys, to_words


class _Operands(NamedTuple):
    place_query: Tensor  # [G, P, d]
    place_key: Tensor
    place_value: Tensor  # [G, P, e]
    word_query: Tensor  # [B, N, d], contiguous, zero on padding, as the next two
    word_key: Tensor
    word_value: Tensor  # [B, N, e]
    offset: Tensor  # [B, e], to be added to the result


def _operands(features: list[Tensor], weight: Tensor, image_index: Tensor | None) -> _Operands:
    """The features with padding zeroed, and in float32 and float64 less what rows have in common.

    16-bit features are taken as they are: their products are exact in float32, and a copy less its offset would
    be rounded again.
    """
    query, key, value = features[:3]
    padding = weight[..., None] == 0
    words = [part.masked_fill(padding, 0).contiguous() for part in features[3:]]
    if weight.dtype != query.dtype:
        offset = weight.new_zeros(len(words[0]), words[2].shape[2])
        return _Operands(query, key, value, words[0], words[1], words[2], offset)
    query, query_offset = split_offset(query)
    value, value_offset = split_offset(value)
    if image_index is not None:
        query_offset, value_offset = query_offset[image_index], value_offset[image_index]
    word_value, word_offset = split_offset(words[2], weight)
    return _Operands(
        query,
        split_offset(key)[0],
        value,
        (words[0] + query_offset).masked_fill(padding, 0),
        split_offset(words[1], weight)[0].masked_fill(padding, 0),
        word_value.masked_fill(padding, 0),
        (value_offset + word_offset)[:, 0],
    )


def forward(
    features: list[Tensor], weight: Tensor, image_index: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """
    Args:
        features: place query, key, value and word query, key, value, of any strides.
        weight: [B, N], 1 / (number of true words) on true words, 0 on padding.
        image_index: int64 [B], or None.

    Returns:
        [B, P, e] in the features' dtype, and what backward needs of the softmaxes.
    """
    operands = _operands(features, weight, image_index)
    real = weight > 0
    place_factor = word_factor(operands.word_query, operands.place_key, image_index)
    words_factor = word_factor(operands.word_query, operands.word_key, key_mask=real)
    places = Keys(operands.place_key, operands.place_value, place_factor, None, image_index)
    words = Keys(operands.word_key, operands.word_value, words_factor, real, None)
    shared = (operands.place_query, places, operands.word_query, words, weight)
    of_places, of_words = launch_statistics(*shared)
    attended = launch_mean(*shared, operands.offset, of_places, of_words)
    return attended, [place_factor, words_factor, *of_places, *of_words]


def backward(
    grad: Tensor,
    features: list[Tensor],
    weight: Tensor,
    image_index: Tensor | None,
    attended: Tensor,
    state: list[Tensor],
) -> list[Tensor]:
    """
    Args:
        grad: [B, P, e], of the result, of any strides.
        features, weight, image_index: as in forward.
        attended, state: what forward returned.

    Returns:
        The gradients of the six features, in their dtype.
    """
    operands = _operands(features, weight, image_index)
    place_factor, words_factor = state[:2]
    of_places, of_words = Statistics(*state[2:7]), Statistics(*state[7:])
    places = Keys(operands.place_key, operands.place_value, place_factor, None, image_index)
    words = Keys(operands.word_key, operands.word_value, words_factor, weight > 0, None)
    groups = None if image_index is None else _groups(image_index, len(operands.place_query))

    shared = (operands.place_query, places, operands.word_query, words, weight)
    place_rows, word_rows = launch_rows(
        grad, attended, operands.offset, *shared, of_places, of_words
    )
    grad_query = launch_query(grad, *shared, groups, (of_places, place_rows), (of_words, word_rows))
    of_keys = (grad, operands.place_query)
    sentences = (operands.word_query, weight)
    place_grads = launch_keys(*of_keys, places, *sentences, groups, None, of_places, place_rows)
    word_grads = launch_keys(*of_keys, words, *sentences, None, image_index, of_words, word_rows)
    place_logits = _finish(place_grads, place_factor)
    word_logits = _finish(word_grads, words_factor)
    dtype = grad_query.dtype
    grad_word_query = to_words(place_logits, operands.place_key, image_index)
    grad_word_query += to_words(word_logits, operands.word_key, None)
    return [
        grad_query,
        to_keys(place_grads.key, place_logits, operands.word_query, groups),
        launch_values(*of_keys, places, *sentences, groups, None, of_places).to(dtype),
        grad_word_query.to(dtype),
        to_keys(word_grads.key, word_logits, operands.word_query, None),
        launch_values(*of_keys, words, *sentences, None, image_index, of_words).to(dtype),
    ]


def _groups(image_index: Tensor, pictures: int) -> tuple[Tensor, Tensor]:
    """The sentences sorted by picture [B], and where each picture's begin [pictures + 1]."""
    ordered, order = image_index.sort(stable=True)
    every = torch.arange(pictures + 1, device=image_index.device)
    return order, torch.searchsorted(ordered, every)


def _finish(gradients: KeyGradients, exp_word: Tensor) -> Tensor:
    """The gradient of C, [B, N, K], each row of which sums to zero but for rounding; that is taken out."""
    gradient = gradients.word_logits.sum(0) * exp_word + gradients.direct_logits.sum(0)
    share = gradients.share.sum(0) * exp_word + gradients.direct_share.sum(0)
    left_over = gradient.sum(-1, keepdim=True)
    left_over /= share.sum(-1, keepdim=True).clamp_min(torch.finfo(share.dtype).tiny)
    return gradient - share * left_over
