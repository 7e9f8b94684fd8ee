"""The separable attention on a GPU: the order of its kernels, forward and backward.

Products over places take two passes forward (`logits`, `values`) and five backward (two in `gradients`, three in
`products`). Arrays over pairs of places are worked on in slabs of rows of the whole batch, so their memory is
bounded: `_SLAB` elements each, or 128 rows of the batch if those are more. No kernel uses atomics, and the host
reads no result.
"""

import functools

import torch
from torch import Tensor

from ..state import Sizes, State
from .direct import direct_backward, direct_forward
from .gradients import gradients_backward
from .logits import logits_forward
from .prepare import pad, prepare
from .products import places_backward, word_logits_backward, words_products
from .values import values_forward
from .words import words_backward, words_forward

# Elements of one array over pairs of places; backward has two, three with image_index.
_SLAB = 2**25
# Rows of a slab are a multiple of this, the largest tile.
_ROWS = 128


def forward(features: list[Tensor], weight: Tensor, image_index: Tensor | None) -> tuple[Tensor, State]:
    """
    Args:
        features: Place query, key, value and word query, key, value, with any strides.
        weight: [B, N], 1 / (number of real words) on real words, 0 on padding.
        image_index: int64 [B], or None.

    Returns:
        [B, P, e] in the features' dtype, and the state for backward.
    """
    sizes = Sizes.of(features)
    image_index = None if image_index is None else image_index.contiguous()
    state = State.empty(sizes, features[0])
    attended = features[0].new_empty(sizes.batch, sizes.places, sizes.value_width)
    prepare(features, weight.contiguous(), image_index, sizes, state)
    softmax = words_forward(image_index, sizes, state)
    for first_row, rows in _slabs(sizes):
        exponentials, tile_max = logits_forward(image_index, sizes, state, first_row, rows)
        values_forward(exponentials, tile_max, softmax, image_index, sizes, state, first_row, attended)
        del exponentials
    direct_forward(attended, image_index, sizes, state)
    return attended, state


def backward(
    grad: Tensor, attended: Tensor, image_index: Tensor | None, sizes: Sizes, state: State
) -> list[Tensor]:
    """
    Args:
        grad: [B, P, e], of the result, with any strides.
        attended, state: What forward returned.
        image_index: Forward's.
        sizes: Of the features.

    Returns:
        The gradients of the six features, contiguous, in their dtype.
    """
    image_index = None if image_index is None else image_index.contiguous()
    grad = pad(grad, sizes)
    delta, softmax, of_place_logits, of_word_logits = words_backward(grad, attended, sizes, state)
    slabs = _slabs(sizes)
    # Sums over several slabs are kept in the accumulators' dtype.
    summed = grad if len(slabs) == 1 else state.weight
    grad_query = grad.new_empty(sizes.images, sizes.places, sizes.width)
    grad_key = summed.new_empty(sizes.images, sizes.places, sizes.width)
    grad_value = summed.new_empty(sizes.images, sizes.places, sizes.value_width)
    word_logits = []
    for first_row, rows in slabs:
        weights, grad_logits, sums = gradients_backward(grad, delta, image_index, sizes, state, first_row, rows)
        direct_backward(grad, weights, grad_logits, sums, image_index, sizes, state, first_row)
        word_logits.append(sums.flatten(0, 1))
        product = functools.partial(
            places_backward, image_index=image_index, sizes=sizes, first_row=first_row, added=first_row > 0
        )
        product(
            grad_logits, state.key, (of_place_logits, state.word_key), grad_query, transposed=False, added=False
        )
        product(weights, grad, None, grad_value, transposed=True, per_expression=True)
        of_words: tuple[Tensor, Tensor] | None = None
        if first_row + rows == sizes.padded_places:
            # The gradient of C is complete.
            parts = word_logits[0] if len(slabs) == 1 else torch.cat(word_logits)
            gradient = word_logits_backward(parts, state)
            of_words = (gradient, state.word_query)
        product(grad_logits, state.query, of_words, grad_key, transposed=True)
    word_grads = words_products(
        grad, gradient, softmax, of_place_logits, of_word_logits, image_index, sizes, state
    )
    return [grad_query, grad_key.to(grad.dtype), grad_value.to(grad.dtype), *word_grads]


def _slabs(sizes: Sizes) -> list[tuple[int, int]]:
    """The first row of each slab, and its number of rows."""
    most = max(1, _SLAB // (max(sizes.batch, sizes.images, 1) * sizes.padded_places * _ROWS)) * _ROWS
    return [(first, min(most, sizes.padded_places - first)) for first in range(0, sizes.padded_places, most)]
