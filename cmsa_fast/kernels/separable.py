"""CMSA attention by its exact factorisation, in plain PyTorch, forward and backward, on any device.

A token's query is a sum of a place part and a word part, q_pn = x_p + y_n, and so are its key and value. The
softmax over all pairs (p', n') is then the product of a softmax over places and one over words, and the mean
over words of the attended values (what Eq. 4 of the paper needs) is

    W x_value + V y_value,
    W[p, p'] = mean_n softmax_p'((x_query_p + y_query_n) . x_key_p')
    V[p, n'] = mean_n softmax_n'((x_query_p + y_query_n) . y_key_n')

The two halves are one operation with other keys. Their logits split again, A[p, k] + C[n, k] with
A = x_query key^T and C = y_query key^T, so neither needs an array over p, n and k: with
E_A = exp(A - row max), E_C = exp(C - row max), Z = E_A E_C^T and R = weight_n / Z, the mean over words of the
softmax is E_A * (R E_C). No approximation is made anywhere.

Numerics. A common offset of the places' queries moves to the words, and one of keys and values is taken out:
nothing depends on them but rounding. Z underflows where A and C peak at different keys and both fall off
steeply; rows under `_FLOOR` take the softmax of (x_query_p + y_query_n) key^T directly, so that the
cancelling parts never meet as large numbers. 16-bit input is computed in float32, since E_A and E_C span more
than its range.

Memory. One picture at a time, and of its sentences as many as keep a [S, P, P] array under `_CHUNK` elements;
two such arrays in forward, five in backward, none kept between them.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

_FLOOR = {torch.float32: 2.0**-60, torch.float64: 2.0**-500}

# Elements of a [S, P, P] array: small pictures share calls, large ones take a sentence at a time.
_CHUNK = 2**22


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
    dtype = place_query.dtype
    weight = _word_weights(word_mask, word_query)
    words = _real_words(weight, word_query, word_key, word_value)
    with torch.autocast(place_query.device.type, enabled=False):
        inputs = [part.to(weight.dtype) for part in (place_query, place_key, place_value, *words)]
        return _Separable.apply(*inputs, weight, image_index).to(dtype)


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
    dtype = place_query.dtype
    weight = _word_weights(word_mask, word_query)
    received = torch.empty_like(weight)
    with torch.no_grad(), torch.autocast(place_query.device.type, enabled=False):
        place_query, word_query, word_key = (
            part.to(weight.dtype)
            for part in (place_query, *_real_words(weight, word_query, word_key))
        )
        for picture, sentences in _groups(len(word_query), image_index, place_query.shape[1]):
            query, offset = _split_offset(place_query[picture])
            half = _word_half(
                query, offset, word_query[sentences], word_key[sentences], weight[sentences]
            )
            received[sentences] = half.mean_softmax().mean(1)
    return received.to(dtype)


def _word_weights(word_mask: Tensor | None, words: Tensor) -> Tensor:
    """[B, N]: 1 / (number of true words) on true words, 0 on padding, in the dtype to compute in."""
    compute = torch.float64 if words.dtype == torch.float64 else torch.float32
    if word_mask is None:
        return words.new_full(words.shape[:2], 1 / words.shape[1], dtype=compute)
    return word_mask.to(compute) / word_mask.sum(1, keepdim=True)


def _real_words(weight: Tensor, *words: Tensor) -> list[Tensor]:
    """Zero at the padded places, whatever stood there; its gradient is zero too."""
    return [part.masked_fill(weight[..., None] == 0, 0) for part in words]


def _groups(
    sentences: int, image_index: Tensor | None, places: int
) -> Iterator[tuple[int, slice | list[int]]]:
    """Each picture with (some of) its sentences, as many at a time as `_CHUNK` allows."""
    if image_index is None:
        yield from ((index, slice(index, index + 1)) for index in range(sentences))
        return
    groups: dict[int, list[int]] = {}
    for sentence, picture in enumerate(image_index.tolist()):
        groups.setdefault(picture, []).append(sentence)
    at_once = max(1, _CHUNK // places**2)
    for picture, group in groups.items():
        for start in range(0, len(group), at_once):
            yield picture, group[start : start + at_once]


def _split_offset(features: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """[..., R, d] rows and the offset they have in common: (rows - offset, offset [..., 1, d]).

    The offset is the (weighted) mean of the rows where it outweighs their spread around it, else zero:
    subtracting a mean that a few outliers made would cost the other rows their accuracy.
    """
    if weight is None:
        weight = features.new_full(features.shape[:-1], 1 / features.shape[-2])
    mean = weight[..., None, :] @ features  # [..., 1, d]
    centred = features - mean
    spread = (weight * centred.square().sum(-1)).sum(-1)
    common = mean.square().sum((-2, -1)) > spread
    if common.all():
        return centred, mean
    mean = mean * common[..., None, None]
    return features - mean, mean


def _exp_of_logits(query: Tensor, key: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """exp(query key^T - row max), 0 at masked keys, without a second array of that size."""
    logits = query @ key.mT
    if key_mask is not None:
        logits.masked_fill_(~key_mask[:, None], -torch.inf)
    return logits.sub_(logits.amax(-1, keepdim=True)).exp_()


class _Half(NamedTuple):
    """S sentences about one picture: the softmax over K keys, averaged over each sentence's words.

    Keys are places, shared by the sentences (T = 1), or each sentence's words (T = S).
    """

    query: Tensor  # [P, d], of the places
    words: Tensor  # [S, N, d], the words' queries
    weight: Tensor  # [S, N]
    key: Tensor  # [T, K, d]
    exp_place: Tensor  # [T, P, K], E_A
    exp_word: Tensor  # [S, N, K], E_C
    total: Tensor  # [S, P, N], Z, 1 where the direct form is taken
    ratio: Tensor  # [S, P, N], R, 0 where the direct form is taken
    direct: Tensor | None  # bool [S, P, N], or None where no row needs it
    key_mask: Tensor | None  # bool [T, K]

    def direct_rows(self) -> Iterator[tuple[tuple[int, Tensor], int, Tensor, Tensor]]:
        """Each word with rows under the floor: ((sentence, rows), word, their queries, their softmax)."""
        if self.direct is None:
            return
        for sentence, word in self.direct.any(1).nonzero().tolist():
            rows = self.direct[sentence, :, word].nonzero().flatten()
            token_query = self.query[rows] + self.words[sentence, word]
            shared = min(sentence, len(self.key) - 1)
            logits = token_query @ self.key[shared].T
            if self.key_mask is not None:
                logits = logits.masked_fill(~self.key_mask[shared], -torch.inf)
            yield (sentence, rows), word, token_query, logits.softmax(-1)

    def mean_softmax(self) -> Tensor:
        """[S, P, K]: W or V."""
        return self._add_direct((self.ratio @ self.exp_word).mul_(self.exp_place))

    def _add_direct(self, mean_softmax: Tensor) -> Tensor:
        for (sentence, rows), word, _, softmax in self.direct_rows():
            mean_softmax[sentence, rows] += softmax * self.weight[sentence, word]
        return mean_softmax

    def backward(
        self,
        grad: Tensor,
        value: Tensor,
        grad_query: Tensor,
        grad_words: Tensor,
        grad_key: Tensor,
        grad_value: Tensor,
    ) -> None:
        """Add the gradients of mean_softmax() @ value in place.

        Args:
            grad: [S, P, e], of the result.
            value: [T, K, e].
            grad_query: [P, d].
            grad_words: [S, N, d].
            grad_key: [T, K, d].
            grad_value: [T, K, e].
        """
        mixed = self.ratio @ self.exp_word  # [S, P, K]
        mean_softmax = self._add_direct(mixed * self.exp_place)
        grad_softmax = grad @ value.mT
        # Its mean under the softmax has no influence but on the rounding.
        grad_softmax -= torch.linalg.vecdot(mean_softmax, grad_softmax)[..., None]
        grad_value += _sum_to(mean_softmax.mT @ grad, grad_value)
        del mean_softmax

        for (sentence, rows), word, token_query, softmax in self.direct_rows():
            row = grad_softmax[sentence, rows]
            row = softmax * (row - torch.linalg.vecdot(softmax, row)[:, None])
            row *= self.weight[sentence, word]
            shared = min(sentence, len(self.key) - 1)
            grad_token = row @ self.key[shared]
            grad_query[rows] += grad_token
            grad_words[sentence, word] += grad_token.sum(0)
            grad_key[shared].addmm_(row.T, token_query)

        scaled = grad_softmax.mul_(self.exp_place)
        # R / Z overflows near the floor, so the product with the sum comes before the division.
        correction = (scaled @ self.exp_word.mT).mul_(self.ratio).div_(self.total)  # [S, P, N]
        grad_word_logits = self._word_logits_gradient(scaled, correction)
        grad_logits = scaled.mul_(mixed)
        grad_logits.addcmul_(self.exp_place, correction @ self.exp_word, value=-1)
        grad_logits = _sum_to(grad_logits, self.key)

        grad_query += _sum_to(grad_logits @ self.key, grad_query[None])[0]
        grad_words += grad_word_logits @ self.key
        grad_key += grad_logits.mT @ self.query
        grad_key += _sum_to(grad_word_logits.mT @ self.words, grad_key)

    def _word_logits_gradient(self, scaled: Tensor, correction: Tensor) -> Tensor:
        """[S, N, K], the gradient of C.

        Each of its rows sums to zero. What rounding leaves of the sum would be multiplied by the word's query,
        which is largest where the softmax is saturated and the true gradient vanishes: it is taken out, in the
        share that each key has in the softmax.
        """
        gradient = (self.ratio.mT @ scaled).sub_(correction.mT @ self.exp_place)
        gradient *= self.exp_word
        share = (self.ratio.mT @ self.exp_place).mul_(self.exp_word)
        left_over = gradient.sum(-1, keepdim=True)
        left_over /= share.sum(-1, keepdim=True).clamp_min(torch.finfo(share.dtype).tiny)
        return gradient.addcmul_(share, left_over, value=-1)


def _sum_to(parts: Tensor, like: Tensor) -> Tensor:
    """[S, ...] -> [T, ...]: the sum over sentences where `like` is shared by them."""
    return parts.sum(0, keepdim=True) if len(parts) > len(like) else parts


def _half(
    query: Tensor,
    words: Tensor,
    weight: Tensor,
    key: Tensor,
    exp_place: Tensor,
    key_mask: Tensor | None = None,
) -> _Half:
    exp_word = _exp_of_logits(words, key, key_mask)
    total = exp_place @ exp_word.mT
    direct: Tensor | None = (total < _FLOOR[total.dtype]) & (weight > 0)[:, None]
    if direct is not None and direct.any():
        total = total.masked_fill(direct, 1)
        ratio = (weight[:, None] / total).masked_fill(direct, 0)
    else:
        ratio, direct = weight[:, None] / total, None
    return _Half(query, words, weight, key, exp_place, exp_word, total, ratio, direct, key_mask)


def _place_half(places: "_Places", words: Tensor, weight: Tensor) -> _Half:
    words = words + places.query_offset * (weight > 0)[..., None]
    return _half(places.query, words, weight, places.key[None], places.exp[None])


def _word_half(
    query: Tensor, query_offset: Tensor, words: Tensor, word_key: Tensor, weight: Tensor
) -> _Half:
    words = words + query_offset * (weight > 0)[..., None]
    key, mask = _split_offset(word_key, weight)[0], weight > 0
    return _half(query, words, weight, key, _exp_of_logits(query, key, mask), mask)


class _Places(NamedTuple):
    """One picture's queries and keys [P, d] and values [P, e] less their offsets, and E_A [P, P]."""

    query: Tensor
    key: Tensor
    value: Tensor
    query_offset: Tensor
    value_offset: Tensor
    exp: Tensor


def _places(query: Tensor, key: Tensor, value: Tensor) -> _Places:
    query, query_offset = _split_offset(query)
    key, _ = _split_offset(key)
    value, value_offset = _split_offset(value)
    return _Places(query, key, value, query_offset, value_offset, _exp_of_logits(query, key))


class _Separable(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        place_query: Tensor,
        place_key: Tensor,
        place_value: Tensor,
        word_query: Tensor,
        word_key: Tensor,
        word_value: Tensor,
        weight: Tensor,
        image_index: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(
            place_query,
            place_key,
            place_value,
            word_query,
            word_key,
            word_value,
            weight,
            image_index,
        )
        count, places = len(word_query), place_query.shape[1]
        attended = place_query.new_empty(count, places, place_value.shape[2])
        for picture, group in _groups(count, image_index, places):
            place = _places(place_query[picture], place_key[picture], place_value[picture])
            half = _place_half(place, word_query[group], weight[group])
            result = half.mean_softmax() @ place.value
            half = _word_half(
                place.query, place.query_offset, word_query[group], word_key[group], weight[group]
            )
            result += half.mean_softmax() @ word_value[group]
            attended[group] = result.add_(place.value_offset)
        return attended

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grad.device.type, enabled=False):
            return *_SeparableGradient.apply(grad, *ctx.saved_tensors), None, None


class _SeparableGradient(torch.autograd.Function):
    """The six gradients; a function of its own, so that to differentiate them again is refused in words."""

    @staticmethod
    def forward(
        ctx: Any,
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
        inputs = (place_query, place_key, place_value, word_query, word_key, word_value)
        grads = tuple(
            torch.zeros(part.shape, dtype=part.dtype, device=part.device) for part in inputs
        )
        of_query, of_key, of_value, of_word_query, of_word_key, of_word_value = grads
        for picture, group in _groups(len(word_query), image_index, place_query.shape[1]):
            place = _places(place_query[picture], place_key[picture], place_value[picture])
            words, word_weight, upstream = word_query[group], weight[group], grad[group]
            of_words = torch.zeros_like(words)
            _place_half(place, words, word_weight).backward(
                upstream,
                place.value[None],
                of_query[picture],
                of_words,
                of_key[picture][None],
                of_value[picture][None],
            )
            half = _word_half(place.query, place.query_offset, words, word_key[group], word_weight)
            of_group_key = torch.zeros_like(words)
            of_group_value = torch.zeros_like(word_value[group])
            value = _split_offset(word_value[group], word_weight)[0]
            half.backward(
                upstream, value, of_query[picture], of_words, of_group_key, of_group_value
            )
            of_word_query[group] = of_words
            of_word_key[group] = of_group_key
            of_word_value[group] = of_group_value
        return grads

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:
        raise RuntimeError(
            "cross_modal_attention's torch backend has no second derivative: its gradient cannot be "
            'differentiated again (create_graph=True). Use backend="reference" for double backward.'
        )
