"""The tiled plan: arrays over the pairs of places of a few images at a time, with the library's matmul.

It takes two products forward and five backward. The kernels read and write those arrays, which stay in a large
GPU's L2 cache. Each expression must have its own image.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .operands import Operands
from .row_statistics import Keys, Statistics
from .tiled_gradients import launch_gradients
from .tiled_weights import launch_weights
from .tiled_word_logits import launch_word_logits
from .word_logits import to_keys, to_words

# Entries of one array over pairs of places: 32 MiB in float32.
_SLAB = 2**23


def fits(places: int) -> bool:
    """Whether the pairs of one image's places fit into a slab."""
    return places**2 <= _SLAB


def forward(
    operands: Operands, places: Keys, words: Keys, weight: Tensor
) -> tuple[Tensor, Statistics, Statistics]:
    """As `fused.forward`; places.image_index must be None."""
    batch, count = operands.place_query.shape[:2]
    attended = operands.place_query.new_empty(batch, count, places.value.shape[2])
    statistics = []
    for chunk in _chunks(batch, count):
        query, word_query = operands.place_query[chunk], operands.word_query[chunk]
        of_chunk = []
        result = operands.offset[chunk, None].to(query.dtype)
        for keys in (_part(words, chunk), _part(places, chunk)):
            logits = _products(query, keys.key.mT, weight.dtype)
            softmax, found = launch_weights(logits, query, keys, word_query, weight[chunk])
            result = torch.baddbmm(result, softmax, keys.value)
            of_chunk.append(found)
        attended[chunk] = result
        statistics.append(of_chunk)
    of_words, of_places = (
        Statistics(*(torch.cat(parts) for parts in zip(*found, strict=True)))
        for found in zip(*statistics, strict=True)
    )
    return attended, of_places, of_words


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
    """As `fused.backward`; places.image_index must be None."""
    batch, count = operands.place_query.shape[:2]
    chunks = [
        _backward(
            grad[chunk],
            operands.place_query[chunk],
            operands.word_query[chunk],
            weight[chunk],
            (_part(places, chunk), _part(words, chunk)),
            [Statistics(*(part[chunk] for part in found)) for found in (of_places, of_words)],
        )
        for chunk in _chunks(batch, count)
    ]
    return [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*chunks, strict=True)]


def _backward(
    grad: Tensor,
    query: Tensor,
    word_query: Tensor,
    weight: Tensor,
    sets: tuple[Keys, Keys],
    statistics: list[Statistics],
) -> list[Tensor]:
    grad_query = query.new_zeros(query.shape)
    grad_word_query = weight.new_zeros(word_query.shape)
    of_sets = []
    for keys, found in zip(sets, statistics, strict=True):
        logits = _products(query, keys.key.mT, weight.dtype)
        of_weights = _products(grad, keys.value.mT, weight.dtype)
        softmax, of_logits, rows = launch_gradients(logits, of_weights, query, keys, word_query, weight, found)
        word_logits = launch_word_logits(logits, of_weights, query, keys, word_query, found, rows).finish(
            keys.exp_word
        )
        grad_word_query += to_words(word_logits, keys.key, None)
        grad_query.baddbmm_(of_logits, keys.key)
        of_keys = _products(of_logits.mT, query, weight.dtype)[None]
        of_sets.append((to_keys(of_keys, word_logits, word_query, None), softmax.mT @ grad))
    (grad_key, grad_value), (grad_word_key, grad_word_value) = of_sets
    return [
        grad_query,
        grad_key,
        grad_value,
        grad_word_query.to(query.dtype),
        grad_word_key,
        grad_word_value,
    ]


def _chunks(batch: int, places: int) -> Iterator[slice]:
    """Images in chunks whose pairs of places fit into a slab."""
    at_once = max(1, _SLAB // places**2)
    return (slice(start, start + at_once) for start in range(0, max(batch, 1), at_once))


def _part(keys: Keys, chunk: slice) -> Keys:
    mask = None if keys.mask is None else keys.mask[chunk]
    return Keys(keys.key[chunk], keys.value[chunk], keys.exp_word[chunk], mask, None)


def _products(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, m, d] @ [B, d, n] with the sums kept in `dtype`."""
    if left.dtype == dtype:
        return torch.bmm(left, right)
    if left.is_cuda or left.is_meta:
        return torch.bmm(left, right, out_dtype=dtype)
    return torch.bmm(left.to(dtype), right.to(dtype))
