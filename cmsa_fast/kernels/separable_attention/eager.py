"""CMSA attention by its exact factorisation, in plain PyTorch, forward and backward, on any device.

A token's query is a sum of a place part and a word part, q_pn = x_p + y_n, and so are its key and value. The
softmax over all pairs (p', n') is then the product of a softmax over places and one over words, and the mean
over words of the attended values (what Eq. 4 of the paper needs) is

    W x_value + V y_value,
    W[p, p'] = mean_n softmax_p'((x_query_p + y_query_n) . x_key_p')
    V[p, n'] = mean_n softmax_n'((x_query_p + y_query_n) . y_key_n')

The two halves are one operation with other keys, `mean_softmax`.

Numerics. A common offset of the places' queries moves to the words, and those of keys and values are taken out
(and, of values, added to the result): nothing depends on them but rounding. 16-bit input is computed in float32,
since the factors span more than its range.

Memory. One image at a time with as many of its expressions, and as many rows of W, as keep a [S, rows, P] array
under `_BLOCK` elements; three such arrays in forward, four in backward, none kept between them.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..library import (
    EVERY_DEVICE,
    SEPARABLE_INPUTS,
    refuse_second_derivative,
    register,
    register_gradient,
)
from .mean_softmax import Block, Gradients, Keys, prepare, times
from .numerics import common_offset

# Elements of a [S, rows, P] array, and the fewest rows for whose sake expressions are done apart: a product with
# fewer is slow.
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
    """`cmsa_fast.kernels.cross_modal_attention` by the factorisation; arguments are not checked here.

    Raises:
        RuntimeError: on differentiating the gradient; it has no derivative of its own.
    """
    weight = word_weights(word_mask, word_query)
    inputs = (place_query, place_key, place_value, word_query, word_key, word_value)
    if torch.compiler.is_compiling():
        return torch.ops.cmsa_fast.factored_forward(*inputs, weight, image_index)
    return _Separable.apply(*inputs, weight, image_index)


def received_word_attention(
    place_query: Tensor,
    word_query: Tensor,
    word_key: Tensor,
    word_mask: Tensor | None = None,
    *,
    image_index: Tensor | None = None,
) -> Tensor:
    """The attention each word receives, averaged over places and true words: the mean of V's rows.

    The place keys drop out, because the softmax over places sums to one. Not differentiable.

    Returns:
        [B, N], summing to 1 over true words, 0 on padding.
    """
    weight = word_weights(word_mask, word_query)
    received = torch.empty_like(weight)
    with torch.no_grad(), torch.autocast(place_query.device.type, enabled=False):
        for image, expressions in _groups(len(word_query), image_index, place_query.shape[1]):
            query, offset = _split_offset(place_query[image].to(weight.dtype))
            words = _Words.of((word_query, word_key, word_key), weight, expressions)
            received[expressions] = Block(words.keys(offset), query).mean_softmax().mean(1)
    return received.to(place_query.dtype)


def word_weights(word_mask: Tensor | None, words: Tensor) -> Tensor:
    """[B, N]: 1 / (number of true words) on true words, 0 on padding, in the dtype to compute in."""
    compute = torch.float64 if words.dtype == torch.float64 else torch.float32
    if word_mask is None:
        return words.new_full(words.shape[:2], 1 / words.shape[1], dtype=compute)
    return word_mask.to(compute) / word_mask.sum(1, keepdim=True)


def _groups(
    expressions: int, image_index: Tensor | None, places: int
) -> Iterator[tuple[int, slice | list[int]]]:
    """Each image with (some of) its expressions, as many at a time as `_BLOCK` allows."""
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
    """Rows of W, in blocks of even size as large as `_BLOCK` allows."""
    rows = min(places, max(1, _BLOCK // (expressions * places)))
    rows = -(-places // -(-places // rows))
    return (slice(start, start + rows) for start in range(0, places, rows))


def _split_offset(features: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """[..., R, d] rows and the offset they have in common: (rows - offset, offset [..., 1, d])."""
    offset = common_offset(features, weight)
    return (features - offset if offset.any() else features), offset


class _Places(NamedTuple):
    """One image's queries and keys [P, d] and values [P, e] less their offsets."""

    query: Tensor
    key: Tensor
    value: Tensor
    query_offset: Tensor
    value_offset: Tensor

    @classmethod
    def of(cls, features: tuple[Tensor, ...], dtype: torch.dtype, image: int) -> "_Places":
        query, key, value = (part[image].to(dtype) for part in features)
        query, query_offset = _split_offset(query)
        value, value_offset = _split_offset(value)
        return cls(query, _split_offset(key)[0], value, query_offset, value_offset)


class _Words(NamedTuple):
    """Some expressions' queries and keys [S, N, d] and values [S, N, e], the last two less their offsets."""

    query: Tensor
    key: Tensor
    value: Tensor
    value_offset: Tensor
    weight: Tensor

    @classmethod
    def of(
        cls, features: tuple[Tensor, ...], weight: Tensor, expressions: slice | list[int]
    ) -> "_Words":
        weight = weight[expressions]
        padding = weight[..., None] == 0
        query, key, value = (
            part[expressions].to(weight.dtype).masked_fill(padding, 0) for part in features
        )
        value, value_offset = _split_offset(value, weight)
        return cls(query, _split_offset(key, weight)[0], value, value_offset, weight)

    def keys(self, query_offset: Tensor, place_key: Tensor | None = None) -> Keys:
        """The softmax over the image's places, or without `place_key` over the words themselves."""
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
    of_places = (place_query, place_key, place_value)
    of_words = (word_query, word_key, word_value)
    count, places = len(word_query), place_query.shape[1]
    attended = place_query.new_empty(count, places, place_value.shape[2])
    with torch.autocast(place_query.device.type, enabled=False):
        for image, group in _groups(count, image_index, places):
            place = _Places.of(of_places, weight.dtype, image)
            words = _Words.of(of_words, weight, group)
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
    of_places = (place_query, place_key, place_value)
    of_words = (word_query, word_key, word_value)
    place_grads, word_grads = (
        [torch.zeros(part.shape, dtype=weight.dtype, device=part.device) for part in features]
        for features in (of_places, of_words)
    )
    places = place_query.shape[1]
    with torch.autocast(grad.device.type, enabled=False):
        for image, group in _groups(len(word_query), image_index, places):
            place = _Places.of(of_places, weight.dtype, image)
            words = _Words.of(of_words, weight, group)
            upstream = grad[group].to(weight.dtype)
            of_query, of_key, of_value = (part[image] for part in place_grads)

            own = words.keys(place.query_offset)
            own_grads = Gradients.zeros(own, words.value)
            Block(own, place.query).backward(upstream, words.value, of_query, own_grads)
            own_grads.finish(own)

            keys = words.keys(place.query_offset, place.key)
            grads = Gradients.zeros(keys, place.value[None])
            for rows in _blocks(len(words.query), places):
                Block(keys, place.query[rows]).backward(
                    upstream[:, rows], place.value[None], of_query[rows], grads
                )
            grads.finish(keys)

            of_key += grads.key[0]
            of_value += grads.value[0]
            word_grads[0][group] = own_grads.words + grads.words
            word_grads[1][group] = own_grads.key
            word_grads[2][group] = own_grads.value
    return tuple(part.to(grad.dtype) for part in (*place_grads, *word_grads))


class _Separable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        ctx.save_for_backward(*inputs)
        return _forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_SeparableGradient.apply(grad, *ctx.saved_tensors), None, None


class _SeparableGradient(torch.autograd.Function):
    """The six gradients; a function of its own, so that to differentiate them again is refused in words."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        return _backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        refuse_second_derivative(ctx)


def _fake_forward(*arguments: Any) -> Tensor:
    place_value, word_query = arguments[2:4]
    return place_value.new_empty(len(word_query), *place_value.shape[1:])


def _fake_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return tuple(part.new_empty(part.shape) for part in arguments[:6])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *torch.ops.cmsa_fast.factored_backward(grad, *ctx.saved_tensors), None, None


# While a graph is traced the two are operators, so that it has no branch or loop that depends on data.
register(
    "factored_forward", f"({SEPARABLE_INPUTS}) -> Tensor", _forward, _fake_forward, EVERY_DEVICE
)
register(
    "factored_backward",
    f"(Tensor grad, {SEPARABLE_INPUTS}) -> ({', '.join(['Tensor'] * 6)})",
    _backward,
    _fake_backward,
    EVERY_DEVICE,
)
register_gradient("factored_forward", _differentiate, _save, "factored_backward")
