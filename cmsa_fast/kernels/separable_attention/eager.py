"""The separable attention by its exact factorisation, in plain PyTorch, forward and backward, on any device.

A token's query is a sum of a place part and a word part, q_pn = x_p + y_n, and so are its key and value. The
softmax over all pairs (p', n') is then the product of a softmax over places and one over words, and the mean
over words of the attended values (Eq. 4 of the paper needs no more) is

    W x_value + V y_value,
    W[p, p'] = mean_n softmax_p'((x_query_p + y_query_n) . x_key_p')
    V[p, n'] = mean_n softmax_n'((x_query_p + y_query_n) . y_key_n')

Both halves are the same operation with different keys, `mean_softmax`.

Numerics. A common offset of the places' queries is moved to the words' queries; common offsets of keys are
subtracted, and those of values are subtracted and added to the result. This changes rounding only. 16-bit input
is computed in float32.

Memory. One image at a time with as many of its expressions, and as many rows of W, as keep a [S, rows, P] array
under `_BLOCK` elements; three such arrays in forward, four in backward, none kept between them.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..library import EVERY_DEVICE, SEPARABLE_INPUTS, register, register_gradient
from .mean_softmax import Block, Gradients, Keys, prepare, times
from .numerics import split_offset, word_weights

# Elements of a [S, rows, P] array, and the fewest rows per product: fewer would be slow, so then fewer
# expressions are taken at a time.
_BLOCK = 2**20
_ROWS = 64


def separable_attention(
    place_query: Tensor,
    place_key: Tensor,
    place_value: Tensor,
    word_query: Tensor,
    word_key: Tensor,
    word_value: Tensor,
    word_mask: Tensor | None = None,
    *,
    image_index: Tensor | None = None,
) -> Tensor:
    """`cmsa_fast.kernels.cross_modal_attention` by the factorisation; arguments are not checked.

    Raises:
        RuntimeError: The gradient is differentiated again.
    """
    weight = word_weights(word_mask, word_query)
    inputs = (place_query, place_key, place_value, word_query, word_key, word_value)
    return torch.ops.cmsa_fast.factored_forward(*inputs, weight, image_index)


def _groups(expressions: int, image_index: Tensor | None, places: int) -> Iterator[tuple[int, slice | list[int]]]:
    """Yield each image with its expressions, as many at a time as `_BLOCK` allows."""
    if image_index is None:
        yield from ((index, slice(index, index + 1)) for index in range(expressions))
        return
    groups: dict[int, list[int]] = {}
    for expression, image in enumerate(image_index.tolist()):
        groups.setdefault(image, []).append(expression)
    at_once = max(1, _BLOCK // (places * min(places, _ROWS)))
    for image, group in groups.items():
        for start in range(0, len(group), at_once):
            yield image, group[start : start + at_once]


def _blocks(expressions: int, places: int) -> Iterator[slice]:
    """Rows of W in blocks of even size, as large as `_BLOCK` allows."""
    rows = min(places, max(1, _BLOCK // (expressions * places)))
    rows = -(-places // -(-places // rows))
    return (slice(start, start + rows) for start in range(0, places, rows))


class _Places(NamedTuple):
    """Queries and keys [P, d] and values [P, e] of one image, less their offsets."""

    query: Tensor
    key: Tensor
    value: Tensor
    query_offset: Tensor
    value_offset: Tensor

    @classmethod
    def prepare(cls, features: tuple[Tensor, ...], dtype: torch.dtype, image: int) -> "_Places":
        query, key, value = (part[image].to(dtype) for part in features)
        query, query_offset = split_offset(query)
        value, value_offset = split_offset(value)
        return cls(query, split_offset(key)[0], value, query_offset, value_offset)


class _Words(NamedTuple):
    """Queries [S, N, d] of some expressions, and their keys [S, N, d] and values [S, N, e] less their offsets."""

    query: Tensor
    key: Tensor
    value: Tensor
    value_offset: Tensor
    weight: Tensor

    @classmethod
    def prepare(cls, features: tuple[Tensor, ...], weight: Tensor, expressions: slice | list[int]) -> "_Words":
        weight = weight[expressions]
        padding = weight[..., None] == 0
        query, key, value = (part[expressions].to(weight.dtype).masked_fill(padding, 0) for part in features)
        value, value_offset = split_offset(value, weight)
        return cls(query, split_offset(key, weight)[0], value, value_offset, weight)

    def keys(self, query_offset: Tensor, place_key: Tensor | None = None) -> Keys:
        """The softmax over the image's places, or over the expressions' own words if `place_key` is None."""
        real = self.weight > 0
        query = self.query + query_offset * real[..., None]
        if place_key is None:
            return prepare(self.key, query, self.weight, real)
        return prepare(place_key[None], query, self.weight)


def _forward(
    place_query: Tensor,
    place_key: Tensor,
    place_value: Tensor,
    word_query: Tensor,
    word_key: Tensor,
    word_value: Tensor,
    weight: Tensor,
    image_index: Tensor | None,
) -> Tensor:
    place_features = (place_query, place_key, place_value)
    word_features = (word_query, word_key, word_value)
    count, places = len(word_query), place_query.shape[1]
    attended = place_query.new_empty(count, places, place_value.shape[2])
    with torch.autocast(place_query.device.type, enabled=False):
        for image, group in _groups(count, image_index, places):
            place = _Places.prepare(place_features, weight.dtype, image)
            words = _Words.prepare(word_features, weight, group)
            keys = words.keys(place.query_offset, place.key)
            result = Block(words.keys(place.query_offset), place.query).mean_softmax()
            result = torch.bmm(result, words.value).add_(place.value_offset + words.value_offset)
            for rows in _blocks(len(words.query), places):
                mean_softmax = Block(keys, place.query[rows]).mean_softmax()
                result[:, rows] += times(mean_softmax, place.value[None])
            attended[group] = result.to(attended.dtype)
    return attended


def _backward(
    grad: Tensor,
    place_query: Tensor,
    place_key: Tensor,
    place_value: Tensor,
    word_query: Tensor,
    word_key: Tensor,
    word_value: Tensor,
    weight: Tensor,
    image_index: Tensor | None,
) -> tuple[Tensor, ...]:
    """The six gradients."""
    place_features = (place_query, place_key, place_value)
    word_features = (word_query, word_key, word_value)
    place_grads, word_grads = (
        [torch.zeros(part.shape, dtype=weight.dtype, device=part.device) for part in features]
        for features in (place_features, word_features)
    )
    places = place_query.shape[1]
    with torch.autocast(grad.device.type, enabled=False):
        for image, group in _groups(len(word_query), image_index, places):
            place = _Places.prepare(place_features, weight.dtype, image)
            words = _Words.prepare(word_features, weight, group)
            upstream = grad[group].to(weight.dtype)
            grad_query, grad_key, grad_value = (part[image] for part in place_grads)

            own = words.keys(place.query_offset)
            own_grads = Gradients.zeros(own, words.value)
            Block(own, place.query).backward(upstream, words.value, grad_query, own_grads)
            own_grads.finish(own)

            keys = words.keys(place.query_offset, place.key)
            grads = Gradients.zeros(keys, place.value[None])
            for rows in _blocks(len(words.query), places):
                Block(keys, place.query[rows]).backward(
                    upstream[:, rows], place.value[None], grad_query[rows], grads
                )
            grads.finish(keys)

            grad_key += grads.key[0]
            grad_value += grads.value[0]
            word_grads[0][group] = own_grads.words + grads.words
            word_grads[1][group] = own_grads.key
            word_grads[2][group] = own_grads.value
    return tuple(part.to(grad.dtype) for part in (*place_grads, *word_grads))


def _fake_forward(*arguments: Any) -> Tensor:
    place_value, word_query = arguments[2:4]
    return place_value.new_empty(word_query.shape[0], *place_value.shape[1:])


def _fake_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return tuple(part.new_empty(part.shape) for part in arguments[:6])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *torch.ops.cmsa_fast.factored_backward(grad, *ctx.saved_tensors), None, None


# Operators, so that graphs and fake tensors see no branch or loop that depends on data.
register("factored_forward", f"({SEPARABLE_INPUTS}) -> Tensor", _forward, _fake_forward, EVERY_DEVICE)
register(
    "factored_backward",
    f"(Tensor grad, {SEPARABLE_INPUTS}) -> ({', '.join(['Tensor'] * 6)})",
    _backward,
    _fake_backward,
    EVERY_DEVICE,
)
register_gradient("factored_forward", _differentiate, _save, "factored_backward")
