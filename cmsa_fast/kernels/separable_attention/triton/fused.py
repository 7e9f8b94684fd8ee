"""The fused plan: without arrays over pairs of places, at three products forward and ten backward."""

import torch
from torch import Tensor

from .keys import launch_keys
from .mean import launch_mean
from .operands import Operands
from .query import launch_query
from .row_statistics import Keys, Statistics, launch_statistics
from .rows import launch_rows
from .values import launch_values
from .word_logits import to_keys, to_words


def forward(
    operands: Operands, places: Keys, words: Keys, weight: Tensor
) -> tuple[Tensor, Statistics, Statistics]:
    """
    Args:
        operands: From `operands.prepare`.
        places, words: The two sets of keys.
        weight: [B, N], 1 / (number of real words) on real words, 0 on padding.

    Returns:
        [B, P, e] in the features' dtype, and the statistics of the softmax over places and over words.
    """
    shared = (operands.place_query, places, operands.word_query, words, weight)
    of_places, of_words = launch_statistics(*shared)
    return launch_mean(*shared, operands.offset, of_places, of_words), of_places, of_words


def backward(
    grad: Tensor,
    attended: Tensor,
    operands: Operands,
    places: Keys,
    words: Keys,
    weight: Tensor,
    of_places: Statistics,
    of_words: Statistics,
) -> list[Tensor]:
    """
    Args:
        grad: [B, P, e], of the result, with any strides.
        attended: [B, P, e], the result, contiguous.
        operands, places, words, weight: As in forward.
        of_places, of_words: Forward's statistics.

    Returns:
        The gradients of the six features, in their dtype.
    """
    image_index, dtype = places.image_index, operands.place_query.dtype
    groups = None if image_index is None else _groups(image_index, len(operands.place_query))
    shared = (operands.place_query, places, operands.word_query, words, weight)
    place_rows, word_rows = launch_rows(grad, attended, operands.offset, *shared, of_places, of_words)
    grad_query = launch_query(grad, *shared, groups, (of_places, place_rows), (of_words, word_rows))
    by_place = (places, operands.word_query, weight, groups, None, of_places)
    by_word = (words, operands.word_query, weight, None, image_index, of_words)
    key, place_logits = launch_keys(grad, operands.place_query, *by_place, place_rows)
    word_key, word_logits = launch_keys(grad, operands.place_query, *by_word, word_rows)
    place_logits_grad = place_logits.finish(places.exp_word)
    word_logits_grad = word_logits.finish(words.exp_word)
    grad_word_query = to_words(place_logits_grad, operands.place_key, image_index)
    grad_word_query += to_words(word_logits_grad, operands.word_key, None)
    return [
        grad_query,
        to_keys(key, place_logits_grad, operands.word_query, groups),
        launch_values(grad, operands.place_query, *by_place).to(dtype),
        grad_word_query.to(dtype),
        to_keys(word_key, word_logits_grad, operands.word_query, None),
        launch_values(grad, operands.place_query, *by_word).to(dtype),
    ]


def _groups(image_index: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """The expressions sorted by image [B], and the first of each image [images + 1]."""
    ordered, order = image_index.sort(stable=True)
    every = torch.arange(images + 1, device=image_index.device)
    return order, torch.searchsorted(ordered, every)
