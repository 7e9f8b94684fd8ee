"""The separable attention on a GPU: the order of its kernels, forward and backward.

Products over places are two forward (`logits`, `values`) and four backward (`gradients`, three in `products`)
where the exponentials E are kept. They are kept if they fit one slab; otherwise arrays over pairs of places are
worked on in slabs of rows of the whole batch, each of a bounded number of elements (`state.Sizes.slabs`), and E is
computed again in backward. No kernel uses atomics, and the host reads no result.
"""

import functools

from torch import Tensor

from ..state import Call, Sizes, State, new_exponentials
from .direct import direct_backward, direct_forward
from .gradients import gradients_backward
from .logits import exponentials_of, ratios_of
from .prepare import copy_places, pad
from .products import places_backward, word_logits_backward, words_products
from .values import values_forward
from .words import centred_operands, words_backward, words_forward


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
    kept = State.empty(sizes, features[0])
    attended = features[0].new_empty(sizes.batch, sizes.places, sizes.value_width)
    if not sizes.in_place:
        for part, copy in zip(features[:3], kept[:3], strict=True):
            copy_places(part, copy, sizes)
    state = kept.reading(features, sizes)
    call = Call(sizes, state, image_index)
    softmax, logits, word_max, place_offset = words_forward(call, features, weight.contiguous())
    for first_row, rows in sizes.slabs():
        exponentials, tile_max = _exponentials(sizes, state, rows)
        sums = exponentials_of(call, first_row, exponentials, tile_max, (logits, word_max))
        ratios_of(call, sums, tile_max, first_row)
        values_forward(call, exponentials, tile_max, softmax, place_offset, first_row, attended)
    direct_forward(call, place_offset, attended)
    return attended, kept


def backward(
    grad: Tensor, attended: Tensor, image_index: Tensor | None, sizes: Sizes, state: State
) -> list[Tensor]:
    """
    Args:
        grad: [B, P, e], of the result, with any strides.
        attended: What forward returned.
        state: Likewise, with place query, key and value where forward read them in place.
        image_index: Forward's.
        sizes: Of the features.

    Returns:
        The gradients of the six features, contiguous, in their dtype.
    """
    call = Call(sizes, state, None if image_index is None else image_index.contiguous())
    grad = pad(grad, sizes)
    centred = centred_operands(call)
    delta, softmax, grad_place_logits, grad_word_logits = words_backward(call, grad, attended)
    slabs = sizes.slabs()
    # Sums over several slabs are kept in the accumulators' dtype.
    summed = grad if len(slabs) == 1 else state.weight
    grad_query = grad.new_empty(sizes.images, sizes.places, sizes.width)
    grad_key = summed.new_empty(sizes.images, sizes.places, sizes.width)
    grad_value = summed.new_empty(sizes.images, sizes.places, sizes.value_width)
    word_logits: Tensor | None = None
    for first_row, rows in slabs:
        exponentials, tile_max = _exponentials(sizes, state, rows)
        if len(slabs) > 1:
            exponentials_of(call, first_row, exponentials, tile_max)
        weights, grad_logits, sums = gradients_backward(call, grad, delta, exponentials, tile_max, first_row)
        direct_backward(call, grad, weights, grad_logits, sums, first_row)
        sums = sums.flatten(0, 1)
        if len(slabs) > 1:
            sums = sums.sum(0, keepdim=True)
        word_logits = sums if word_logits is None else word_logits.add_(sums)
        product = functools.partial(places_backward, call, first_row=first_row, added=first_row > 0)
        word_product: tuple[Tensor, Tensor] | None = (grad_place_logits, state.word_key)
        product(grad_logits, centred.state.key, word_product, grad_query, transposed=False, added=False)
        product(weights, grad, None, grad_value, transposed=True, per_expression=True)
        word_product = None
        if first_row + rows == sizes.padded_places:
            # The gradient of C is complete.
            gradient = word_logits_backward(call, word_logits)
            word_product = (gradient, centred.state.word_query)
        product(grad_logits, centred.state.query, word_product, grad_key, transposed=True)
    word_grads = words_products(centred, grad, gradient, softmax, grad_place_logits, grad_word_logits)
    return [grad_query, grad_key.to(grad.dtype), grad_value.to(grad.dtype), *word_grads]


def _exponentials(sizes: Sizes, state: State, rows: int) -> tuple[Tensor, Tensor]:
    """The state's exponentials and the maxima of their tiles, or buffers for a slab."""
    if sizes.fit_one_slab():
        return state.exponentials, state.tile_max
    return new_exponentials(sizes, state.query, rows)
