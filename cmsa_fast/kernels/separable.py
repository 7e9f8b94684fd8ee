"""CMSA attention by its exact factorisation, in plain PyTorch, forward and backward, on any device.

A token's query is a sum of a place part and a word part, q_pn = x_p + y_n, and so are its key and value. The
softmax over all pairs (p', n') is then the product of a softmax over places and one over words, and the mean
over words of the attended values (what Eq. 4 of the paper needs) is

    W x_value + Y y_value,
    W[p, p'] = mean_n softmax_p'(A[p, :] + C[n, :]),   A = x_query x_key^T,   C = y_query x_key^T
    Y[p, n'] = mean_n softmax_n'((x_query_p + y_query_n) . y_key_n')

W needs no [P, P, N] array: with E_A = exp(A - row max), E_C = exp(C - row max), Z = E_A E_C^T and
R = weight_n / Z, it is W = E_A * (R E_C). No approximation is made anywhere.

Numerics. A common offset of the places' queries moves to the words, and one of keys and values is taken out:
nothing depends on them but rounding. Z underflows where A and C peak at different places and both fall off
steeply; rows under `_FLOOR` take the softmax of (x_query_p + y_query_n) x_key^T directly, so that the
cancelling parts never meet as large numbers. 16-bit input is computed in float32, since E_A and E_C
span more than its range.

Memory. One picture at a time; two [P, P] arrays in forward, five in backward, none kept between them.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

_FLOOR = {torch.float32: 2.0**-60, torch.float64: 2.0**-500}


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
    inputs = [
        place_query,
        place_key,
        place_value,
        *_real_words(weight, word_query, word_key, word_value),
    ]
    with torch.autocast(place_query.device.type, enabled=False):
        inputs = [part.to(weight.dtype) for part in inputs]
        return _Separable.apply(*inputs, weight, image_index)[0].to(dtype)


def received_word_attention(
    place_query: Tensor,
    word_query: Tensor,
    word_key: Tensor,
    word_mask: Tensor | None = None,
    *,
    image_index: Tensor | None = None,
) -> Tensor:
    """The attention each word receives, averaged over places and true words: the mean of Y's rows.

    The place keys drop out, because the softmax over places sums to one.

    Returns:
        [B, N], summing to 1 over true words, 0 on padding.
    """
    dtype = place_query.dtype
    weight = _word_weights(word_mask, word_query)
    word_query, word_key = (
        part.to(weight.dtype) for part in _real_words(weight, word_query, word_key)
    )
    with torch.autocast(place_query.device.type, enabled=False):
        received = [
            _word_weights_of_places(
                place_query[picture].to(weight.dtype),
                word_query[sentence],
                _without_offset(word_key[sentence], weight[sentence]),
                weight[sentence],
            )[1].mean(0)
            for picture, sentence in _sentence_order(len(word_query), image_index)
        ]
        return torch.stack(received).to(dtype)


def _word_weights(word_mask: Tensor | None, words: Tensor) -> Tensor:
    """[B, N]: 1 / (number of true words) on true words, 0 on padding, in the dtype to compute in."""
    compute = torch.float64 if words.dtype == torch.float64 else torch.float32
    if word_mask is None:
        return words.new_full(words.shape[:2], 1 / words.shape[1], dtype=compute)
    return word_mask.to(compute) / word_mask.sum(1, keepdim=True)


def _real_words(weight: Tensor, *words: Tensor) -> list[Tensor]:
    """Zero at the padded places, whatever stood there; its gradient is zero too."""
    return [part.masked_fill(weight[..., None] == 0, 0) for part in words]


def _groups(sentences: int, image_index: Tensor | None) -> list[tuple[int, list[int]]]:
    """Which sentences belong to each picture, as (picture, its sentences)."""
    if image_index is None:
        return [(index, [index]) for index in range(sentences)]
    groups: dict[int, list[int]] = {}
    for sentence, picture in enumerate(image_index.tolist()):
        groups.setdefault(picture, []).append(sentence)
    return list(groups.items())


def _sentence_order(sentences: int, image_index: Tensor | None) -> Iterator[tuple[int, int]]:
    pictures = range(sentences) if image_index is None else image_index.tolist()
    return zip(pictures, range(sentences), strict=True)


def _common_offset(features: Tensor, weight: Tensor | None = None) -> Tensor:
    """[d]: the (weighted) mean of the rows where it outweighs their spread around it, else zero.

    Subtracting a mean that a few outliers made would cost the other rows their accuracy.
    """
    weight = features.new_full((len(features),), 1 / len(features)) if weight is None else weight
    mean = weight @ features
    spread = weight @ (features - mean).square().sum(1)
    return mean * (mean.square().sum() > spread)


def _without_offset(words: Tensor, weight: Tensor) -> Tensor:
    """Words less the common offset of the true ones; padded rows stay out of every sum that follows."""
    return words - _common_offset(words, weight)


def _with_offset(words: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    """The words' queries [N, d] with the places' common offset added to the true ones."""
    return words + offset * (weight > 0)[:, None]


class _Places(NamedTuple):
    """One picture's queries and keys [P, d] and values [P, e], and the offsets taken out of them."""

    query: Tensor
    key: Tensor
    value: Tensor
    query_offset: Tensor
    value_offset: Tensor

    @classmethod
    def centred(cls, query: Tensor, key: Tensor, value: Tensor) -> "_Places":
        query_offset, value_offset = _common_offset(query), _common_offset(value)
        return cls(
            query - query_offset,
            key - _common_offset(key),
            value - value_offset,
            query_offset,
            value_offset,
        )


def _exp_of_places(query: Tensor, key: Tensor) -> Tensor:
    """E_A or E_C: exp(query key^T - row max), without a second array of that size."""
    logits = query @ key.T
    return logits.sub_(logits.amax(1, keepdim=True)).exp_()


def _normalisers(
    exp_place: Tensor, exp_word: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Z and R, both [P, N], and the (place, word) pairs to be taken directly (None where there is none)."""
    total = exp_place @ exp_word.T
    direct = (total < _FLOOR[total.dtype]) & (weight > 0)
    if not direct.any():
        return total, weight / total, None
    total = total.masked_fill(direct, 1)
    return total, (weight / total).masked_fill(direct, 0), direct


def _direct_rows(
    places: _Places, word_query: Tensor, direct: Tensor
) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """For each word with rows under the floor: (word, rows, their queries, their softmax over places)."""
    for word in direct.any(0).nonzero().flatten().tolist():
        rows = direct[:, word].nonzero().flatten()
        token_query = places.query[rows] + word_query[word]
        yield word, rows, token_query, (token_query @ places.key.T).softmax(1)


def _word_weights_of_places(
    query: Tensor, word_query: Tensor, word_key: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """The softmax over words [P, N, N'] and its mean over true words n, Y [P, N']."""
    logits = (query @ word_key.T)[:, None] + word_query @ word_key.T
    softmax = logits.masked_fill(weight == 0, -torch.inf).softmax(-1)
    return softmax, weight @ softmax


class _Separable(torch.autograd.Function):
    """The attended values [B, P, e], and the centred place half of them, kept for the backward."""

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
    ) -> tuple[Tensor, Tensor]:
        shape = (len(word_query), place_query.shape[1], place_value.shape[2])
        attended, place_half = place_query.new_empty(shape), place_query.new_empty(shape)
        for picture, sentences in _groups(len(word_query), image_index):
            places = _Places.centred(place_query[picture], place_key[picture], place_value[picture])
            exp_place = _exp_of_places(places.query, places.key)
            for sentence in sentences:
                words = _with_offset(word_query[sentence], places.query_offset, weight[sentence])
                exp_word = _exp_of_places(words, places.key)
                _, ratio, direct = _normalisers(exp_place, exp_word, weight[sentence])
                place_weights = (ratio @ exp_word).mul_(exp_place)  # W
                if direct is not None:
                    for word, rows, _, softmax in _direct_rows(places, words, direct):
                        place_weights[rows] += softmax * weight[sentence, word]
                torch.mm(place_weights, places.value, out=place_half[sentence])
                centred_word_key = _without_offset(word_key[sentence], weight[sentence])
                _, word_weights = _word_weights_of_places(
                    places.query, words, centred_word_key, weight[sentence]
                )
                torch.addmm(
                    place_half[sentence] + places.value_offset,
                    word_weights,
                    word_value[sentence],
                    out=attended[sentence],
                )
        ctx.save_for_backward(
            place_query,
            place_key,
            place_value,
            word_query,
            word_key,
            word_value,
            weight,
            image_index,
            place_half,
        )
        ctx.mark_non_differentiable(place_half)
        return attended, place_half

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grad.device.type, enabled=False):
            return *_SeparableGradient.apply(grad, *ctx.saved_tensors), None, None


class _SeparableGradient(torch.autograd.Function):
    """The six gradients; a function of its own so that differentiating them again is refused with a sentence."""

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
        place_half: Tensor,
    ) -> tuple[Tensor, ...]:
        grads = tuple(
            torch.zeros_like(part, memory_format=torch.contiguous_format)
            for part in (place_query, place_key, place_value, word_query, word_key, word_value)
        )
        grad_place_query, grad_place_key, grad_place_value = grads[:3]
        for picture, sentences in _groups(len(word_query), image_index):
            places = _Places.centred(place_query[picture], place_key[picture], place_value[picture])
            exp_place = _exp_of_places(places.query, places.key)
            grad_similarity: Tensor | None = None
            for sentence in sentences:
                words = _with_offset(word_query[sentence], places.query_offset, weight[sentence])
                word_grads = [part[sentence] for part in grads[3:]]
                grad_logits = _place_half_gradient(
                    grad[sentence],
                    places,
                    words,
                    weight[sentence],
                    exp_place,
                    place_half[sentence],
                    (grad_place_query[picture], grad_place_key[picture], grad_place_value[picture]),
                    word_grads[0],
                )
                _word_half_gradient(
                    grad[sentence],
                    places.query,
                    words,
                    word_key[sentence],
                    word_value[sentence],
                    weight[sentence],
                    grad_place_query[picture],
                    word_grads,
                )
                grad_similarity = (
                    grad_logits if grad_similarity is None else grad_similarity.add_(grad_logits)
                )
            assert grad_similarity is not None  # every group has a sentence
            grad_place_query[picture].addmm_(grad_similarity, places.key)
            grad_place_key[picture].addmm_(grad_similarity.T, places.query)
        return grads

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:
        raise RuntimeError(
            "cross_modal_attention's torch backend has no second derivative: its gradient cannot be "
            'differentiated again (create_graph=True). Use backend="reference" for double backward.'
        )


def _place_half_gradient(
    grad: Tensor,
    places: _Places,
    word_query: Tensor,
    weight: Tensor,
    exp_place: Tensor,
    place_half: Tensor,
    grad_places: tuple[Tensor, Tensor, Tensor],
    grad_word_query: Tensor,
) -> Tensor:
    """One sentence's place half: adds to the gradients of places and word query, returns that of A, [P, P].

    The gradient of W is centred by its mean under W, which changes nothing but the rounding.
    """
    grad_query, grad_key, grad_value = grad_places
    exp_word = _exp_of_places(word_query, places.key)
    total, ratio, direct = _normalisers(exp_place, exp_word, weight)

    row_mean = (grad * place_half).sum(1, keepdim=True)
    grad_weights = (grad @ places.value.T).sub_(row_mean)
    place_weights = ratio @ exp_word  # W / E_A, then W in place
    scaled = grad_weights.mul(exp_place) if direct is not None else grad_weights.mul_(exp_place)
    # R / Z overflows near the floor, so the product with the sum comes before the division.
    correction = (scaled @ exp_word.T).mul_(ratio).div_(total)  # G
    grad_word_logits = (ratio.T @ scaled).sub_(correction.T @ exp_place).mul_(exp_word)
    # Each row of the gradient of C sums to zero. What rounding leaves of the sum would be multiplied by the
    # word's query, which is largest where the softmax is saturated and the true gradient vanishes.
    share = (ratio.T @ exp_place).mul_(exp_word)
    tiny = torch.finfo(share.dtype).tiny
    left_over = grad_word_logits.sum(1, keepdim=True) / share.sum(1, keepdim=True).clamp_min(tiny)
    grad_word_logits.addcmul_(share, left_over, value=-1)
    grad_logits = scaled.mul_(place_weights)
    grad_logits.addcmul_(exp_place, correction @ exp_word, value=-1)
    place_weights.mul_(exp_place)

    grad_key.addmm_(grad_word_logits.T, word_query)
    grad_word_query.addmm_(grad_word_logits, places.key)
    if direct is not None:
        for word, rows, token_query, softmax in _direct_rows(places, word_query, direct):
            place_weights[rows] += softmax * weight[word]
            row_grad = grad_weights[rows]
            row_grad -= (row_grad * softmax).sum(1, keepdim=True)
            row_grad *= softmax * weight[word]
            grad_token = row_grad @ places.key
            grad_query[rows] += grad_token
            grad_word_query[word] += grad_token.sum(0)
            grad_key.addmm_(row_grad.T, token_query)
    grad_value.addmm_(place_weights.T, grad)
    return grad_logits


def _word_half_gradient(
    grad: Tensor,
    query: Tensor,
    word_query: Tensor,
    word_key: Tensor,
    word_value: Tensor,
    weight: Tensor,
    grad_query: Tensor,
    grad_words: list[Tensor],
) -> None:
    """One sentence's word half: plain softmax attention of P*N queries over N words, added in place."""
    grad_word_query, grad_word_key, grad_word_value = grad_words
    key = _without_offset(word_key, weight)
    softmax, mean_softmax = _word_weights_of_places(query, word_query, key, weight)
    grad_word_value.addmm_(mean_softmax.T, grad)

    grad_mean = (grad @ _without_offset(word_value, weight).T)[:, None]  # [P, 1, N']
    grad_logits = softmax * (grad_mean - (softmax * grad_mean).sum(-1, keepdim=True))
    grad_logits *= weight[:, None]
    over_places = grad_logits.sum(0)  # [N, N']
    over_words = grad_logits.sum(1)  # [P, N']
    grad_query.addmm_(over_words, key)
    grad_word_query.addmm_(over_places, key)
    grad_word_key.addmm_(over_words.T, query).addmm_(over_places.T, word_query)
