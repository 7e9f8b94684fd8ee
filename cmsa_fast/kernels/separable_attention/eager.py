"""The separable attention by its exact factorisation, in plain PyTorch, forward and backward, on any device.

A token's query is a sum of a place part and a word part, q_pn = x_p + y_n, and so are its key and value. The
softmax over all pairs (p', n') is then the product of a softmax over places and one over words, and the mean
over words of the attended values (Eq. 4 of the paper needs no more) is

    W x_value + V y_value,
    W[p, p'] = mean_n softmax_p'((x_query_p + y_query_n) . x_key_p')
    V[p, n'] = mean_n softmax_n'((x_query_p + y_query_n) . y_key_n')

Both halves are the same operation with different keys, `mean_softmax`. Padded words are left out.

Numerics. A common offset of the places' queries is moved to the words' queries; common offsets of keys are
subtracted, and those of values are subtracted and added to the result. This changes rounding only. 16-bit input
is computed in float32.

Memory. One image at a time, with all of its expressions, and so many places at a time that an array over places
and keys has at most `_BLOCK` elements (or one row): two such arrays in forward; four in backward, or five if an
image has several expressions. They and a centred copy of the image's features are one allocation, used for all
images and freed at the end of the call: of many smaller ones the C library would return the pages to the system
each time. Each expression adds [N, P], in backward four of them.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..library import EVERY_DEVICE, SEPARABLE_INPUTS, register, register_gradient
from .mean_softmax import Gradients, MeanSoftmax, exp_logits
from .numerics import common_offset, split_offset

_BLOCK = 2**20


def _groups(count: int, image_index: Tensor | None) -> Iterable[tuple[int, list[int]]]:
    """Each image with its expressions."""
    if image_index is None:
        return ((index, [index]) for index in range(count))
    groups: dict[int, list[int]] = {}
    for expression, image in enumerate(image_index.tolist()):
        groups.setdefault(image, []).append(expression)
    return groups.items()


def _block_rows(places: int, keys: int) -> int:
    """Places in a block; all blocks but the last have as many, as `_BLOCK` allows."""
    rows = min(places, max(1, _BLOCK // keys))
    return -(-places // -(-places // rows))


class _Rows(NamedTuple):
    """Queries and keys [R, d] and values [R, e] of an image's places or of an expression's real words."""

    query: Tensor
    key: Tensor
    value: Tensor


class _Workspace:
    """Memory for the features of an image and for arrays over a block of places and keys."""

    def __init__(self, arrays: int, place_features: tuple[Tensor, ...], words: int, weight: Tensor) -> None:
        self.places = place_features[0].shape[1]
        block = max(_block_rows(self.places, keys) * keys for keys in (self.places, words))
        sizes = [part.shape[1:].numel() for part in place_features] + [block] * arrays
        self._memory = weight.new_empty(sum(sizes)).split(sizes)

    def blocks(self, keys: int) -> Iterator[tuple[slice, list[Tensor]]]:
        """Blocks of places, each with the arrays [r, keys]."""
        rows = _block_rows(self.places, keys)
        for start in range(0, self.places, rows):
            count = min(rows, self.places - start)
            yield (
                slice(start, start + count),
                [memory[: count * keys].view(count, keys) for memory in self._memory[3:]],
            )

    def prepare(self, features: tuple[Tensor, ...], image: int) -> tuple[_Rows, Tensor, Tensor]:
        """The places of an image less their offsets, and the offsets of queries [1, d] and values [1, e]."""
        rows, offsets = [], []
        for memory, feature in zip(self._memory, features, strict=False):
            part, room = feature[image], memory.view(feature.shape[1:])
            if part.dtype != room.dtype or not part.is_contiguous():
                part = room.copy_(part)
            offset = common_offset(part)
            rows.append(torch.sub(part, offset, out=room) if offset.any() else part)
            offsets.append(offset)
        return _Rows(*rows), offsets[0], offsets[2]


class _Words:
    """The real words of all expressions, keys and values less their offsets."""

    def __init__(self, features: tuple[Tensor, ...], weight: Tensor) -> None:
        self.real = weight > 0
        query, key, value = (part.to(weight.dtype).masked_fill(~self.real[..., None], 0) for part in features)
        value, self.value_offset = split_offset(value, weight)
        self._features = query, split_offset(key, weight)[0], value

    def select(self, expression: int, query_offset: Tensor) -> _Rows:
        query, key, value = (part[expression, self.real[expression]] for part in self._features)
        return _Rows(query + query_offset, key, value)


def place_exponentials(place_query: Tensor, place_key: Tensor) -> Tensor:
    """E_A of each image, [B_images, P, P], with the operations of `forward`."""
    rows = _block_rows(place_query.shape[1], place_key.shape[1])
    images = []
    for features in zip(place_query, place_key, strict=True):
        query, key = (part - common_offset(part) for part in map(Tensor.contiguous, features))
        images.append(torch.cat([exp_logits(block, key) for block in query.split(rows)]))
    return torch.stack(images)


def forward(
    place_query: Tensor,
    place_key: Tensor,
    place_value: Tensor,
    word_query: Tensor,
    word_key: Tensor,
    word_value: Tensor,
    weight: Tensor,
    image_index: Tensor | None,
    exponentials: Tensor | None = None,
) -> Tensor:
    """The operator `factored_forward`; `exponentials` are those of `place_exponentials`, or computed if None."""
    place_features = (place_query, place_key, place_value)
    all_words = _Words((word_query, word_key, word_value), weight)
    attended = weight.new_zeros(len(word_query), *place_value.shape[1:])
    workspace = _Workspace(2, place_features, word_query.shape[1], weight)
    for image, group in _groups(len(word_query), image_index):
        place, query_offset, value_offset = workspace.prepare(place_features, image)
        words = [all_words.select(expression, query_offset) for expression in group]
        results = [attended[expression] for expression in group]
        for word, result in zip(words, results, strict=True):
            _attend(place.query, word, [word], [result], workspace)
        kept = None if exponentials is None else exponentials[image]
        _attend(place.query, place, words, results, workspace, kept)
        for expression, result in zip(group, results, strict=True):
            offset = value_offset + all_words.value_offset[expression]
            if offset.any():
                result += offset
    return attended.to(place_query.dtype)


def _attend(
    query: Tensor,
    keys: _Rows,
    words: list[_Rows],
    results: list[Tensor],
    workspace: _Workspace,
    kept: Tensor | None = None,
) -> None:
    """Add the attention to `keys` to each expression's result; `kept` is E_A [P, K] if it is known."""
    mean_softmaxes = [MeanSoftmax(keys.key, word.query) for word in words]
    for rows, (buffer, out) in workspace.blocks(len(keys.key)):
        exp_place = exp_logits(query[rows], keys.key, buffer) if kept is None else kept[rows]
        for mean_softmax, result in zip(mean_softmaxes, results, strict=True):
            result[rows].addmm_(mean_softmax.forward(query[rows], exp_place, out), keys.value)


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
    all_words = _Words(word_features, weight)
    place_grads, word_grads = (
        [weight.new_zeros(part.shape) for part in features] for features in (place_features, word_features)
    )
    workspace = _Workspace(4 if image_index is None else 5, place_features, word_query.shape[1], weight)
    for image, group in _groups(len(word_query), image_index):
        place, query_offset, _ = workspace.prepare(place_features, image)
        grad_place = _Rows(*(part[image] for part in place_grads))
        upstream = [grad[expression].to(weight.dtype) for expression in group]
        words = [all_words.select(expression, query_offset) for expression in group]
        grad_words = [_Rows(*(torch.zeros_like(part) for part in word)) for word in words]
        attending = list(zip(words, grad_words, strict=True))
        for keys, outer in zip(attending, upstream, strict=True):
            _add_gradients(place.query, *keys, [keys], [outer], grad_place.query, workspace)
        _add_gradients(place.query, place, grad_place, attending, upstream, grad_place.query, workspace)
        for expression, parts in zip(group, grad_words, strict=True):
            for total, part in zip(word_grads, parts, strict=True):
                total[expression, all_words.real[expression]] = part
    return tuple(part.to(grad.dtype) for part in (*place_grads, *word_grads))


def _add_gradients(
    query: Tensor,
    keys: _Rows,
    grad_keys: _Rows,
    words: list[tuple[_Rows, _Rows]],
    upstream: list[Tensor],
    grad_query: Tensor,
    workspace: _Workspace,
) -> None:
    """Add the gradients of `_attend` for the gradients of the results, `upstream`; `words` come with theirs."""
    gradients = [
        Gradients(keys.key, keys.value, word.query, grad_keys.key, grad_keys.value, grad_word.query)
        for word, grad_word in words
    ]
    for rows, (exp_place, mixed, scaled, grad_logits, *more) in workspace.blocks(len(keys.key)):
        exp_logits(query[rows], keys.key, exp_place)
        for number, (half, grad) in enumerate(zip(gradients, upstream, strict=True)):
            buffers = (more[0] if number else grad_logits, mixed, scaled)
            part = half.backward(query[rows], exp_place, grad[rows], grad_query[rows], buffers)
            if number:
                grad_logits += part
        grad_logits *= exp_place
        grad_query[rows].addmm_(grad_logits, keys.key)
        grad_keys.key.addmm_(grad_logits.T, query[rows])
    for half in gradients:
        half.finish()


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
register("factored_forward", f"({SEPARABLE_INPUTS}) -> Tensor", forward, _fake_forward, EVERY_DEVICE)
register(
    "factored_backward",
    f"(Tensor grad, {SEPARABLE_INPUTS}) -> ({', '.join(['Tensor'] * 6)})",
    _backward,
    _fake_backward,
    EVERY_DEVICE,
)
register_gradient("factored_forward", _differentiate, _save, "factored_backward")
