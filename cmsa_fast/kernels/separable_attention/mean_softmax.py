"""The mean over words of a softmax whose logits are sums of a place part and a word part.

    mean_softmax[p, k] = sum_n weight_n softmax_k((x_p + y_n) . key_k)

The logits are A[p, k] + C[n, k] with A = x key^T and C = y key^T. With E_A = softmax(A), E_C = exp(C - row max),
Z = E_A E_C^T and R = weight_n / Z, the mean is E_A * (R E_C): no array over p, n and k is needed, and no
approximation is made.

Z underflows where A and C peak at different keys and both fall off steeply. Rows with Z below `_FLOOR` are
computed in the direct form, the softmax of (x_p + y_n) key^T, where cancelling parts are added before the product.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# In products with at most _NARROW rows, libraries add terms sequentially, with a rounding error for each. Such
# sums over places are split into sums of _TERMS terms.
_NARROW = 64
_TERMS = 32

_FLOOR = {torch.float32: 2.0**-60, torch.float64: 2.0**-500}


class Keys(NamedTuple):
    """K keys of S expressions for one image: its places, shared (T = 1), or each expression's words (T = S)."""

    key: Tensor  # [T, K, d]
    words: Tensor  # [S, N, d], the words' queries
    weight: Tensor  # [S, N], 0 on padding
    exp_word: Tensor  # [S, N, K], E_C
    key_mask: Tensor | None  # bool [T, K], the keys to attend to


def prepare(key: Tensor, words: Tensor, weight: Tensor, key_mask: Tensor | None = None) -> Keys:
    logits = times(words, key.mT)
    if key_mask is not None:
        logits.masked_fill_(~key_mask[:, None], -torch.inf)
    exp_word = logits.sub_(logits.amax(-1, keepdim=True)).exp_()
    return Keys(key, words, weight, exp_word, key_mask)


class Gradients(NamedTuple):
    """Sums over blocks of rows; `finish` adds the gradient of the words' logits to those of words and keys."""

    words: Tensor  # [S, N, d]
    key: Tensor  # [T, K, d]
    value: Tensor  # [T, K, e]
    word_logits: Tensor  # [S, N, K], of C, without the factor E_C
    share: Tensor  # [S, N, K], the softmax summed over places, without the factor E_C

    @classmethod
    def zeros(cls, keys: Keys, value: Tensor) -> "Gradients":
        return cls(
            torch.zeros_like(keys.words),
            torch.zeros_like(keys.key),
            torch.zeros_like(value),
            torch.zeros_like(keys.exp_word),
            torch.zeros_like(keys.exp_word),
        )

    def finish(self, keys: Keys) -> None:
        """Propagate the gradient of C = words key^T to words and key.

        Each row of it sums to zero up to rounding. That error would be multiplied by the word's query, which is
        largest where the softmax is saturated and the true gradient vanishes, so it is subtracted, distributed
        over the keys in proportion to the softmax.
        """
        gradient = self.word_logits.mul_(keys.exp_word)
        share = self.share.mul_(keys.exp_word)
        left_over = gradient.sum(-1, keepdim=True)
        left_over /= share.sum(-1, keepdim=True).clamp_min(torch.finfo(share.dtype).tiny)
        gradient.addcmul_(share, left_over, value=-1)
        self.words.add_(times(gradient, keys.key))
        _add_transposed_product(self.key, gradient, keys.words)


class Block:
    """The mean softmax over `keys` for a block of places with queries [r, d]."""

    def __init__(self, keys: Keys, query: Tensor) -> None:
        self.keys = keys
        self.query = query
        logits = times(query[None], keys.key.mT)  # [T, r, K]
        if keys.key_mask is not None:
            logits.masked_fill_(~keys.key_mask[:, None], -torch.inf)
        self.exp_place = logits.softmax(-1)  # E_A
        del logits
        total = _dot_words(self.exp_place, keys.exp_word)  # [S, r, N], Z
        direct = (total < _FLOOR[total.dtype]) & (keys.weight > 0)[:, None]
        if direct.any():
            self.direct: Tensor | None = direct
            self.total = total.masked_fill(direct, 1)
            self.ratio = (keys.weight[:, None] / self.total).masked_fill(direct, 0)
        else:
            self.direct = None
            self.total = total
            self.ratio = keys.weight[:, None] / total  # R

    def mean_softmax(self) -> Tensor:
        """[S, r, K]."""
        mixed = torch.bmm(self.ratio, self.keys.exp_word)
        return self._add_direct(mixed.mul_(self.exp_place))

    def backward(self, grad: Tensor, value: Tensor, grad_query: Tensor, grads: Gradients) -> None:
        """Add the gradients of mean_softmax() @ value in place.

        Args:
            grad: [S, r, e], gradient of the result.
            value: [T, K, e].
            grad_query: [r, d], to be added to.
            grads: The other gradients, to be finished after the last block.
        """
        keys, exp_place = self.keys, self.exp_place
        mixed = torch.bmm(self.ratio, keys.exp_word)  # [S, r, K]
        mean_softmax = self._add_direct(mixed * exp_place)
        grad_softmax = times(grad, value.mT)
        # Mean-centring: the gradients are invariant to it; only rounding improves.
        grad_softmax -= torch.linalg.vecdot(mean_softmax, grad_softmax)[..., None]
        _add_transposed_product(grads.value, mean_softmax, grad)
        self._direct_backward(grad_softmax, grad_query, grads)

        scaled = torch.mul(grad_softmax, exp_place, out=mean_softmax)
        # R / Z overflows near the floor, so the product with the sum comes before the division.
        correction = _dot_words(scaled, keys.exp_word).mul_(self.ratio).div_(self.total)  # [S, r, N]
        grads.word_logits.baddbmm_(self.ratio.mT, scaled)
        word_sums = times(torch.cat([correction, self.ratio], -1).mT, exp_place)  # [S, 2N, K]
        grads.word_logits.sub_(word_sums[:, : correction.shape[-1]])
        grads.share.add_(word_sums[:, correction.shape[-1] :])
        del scaled, mean_softmax, word_sums

        grad_logits = grad_softmax.mul_(mixed).baddbmm_(correction, keys.exp_word, alpha=-1)
        if len(exp_place) < len(grad_logits):
            grad_logits = grad_logits.sum(0, keepdim=True)
        grad_logits *= exp_place
        for number, part in enumerate(grad_logits):
            grad_query.addmm_(part, keys.key[number])
            grads.key[number].addmm_(part.T, self.query)

    def _add_direct(self, mean_softmax: Tensor) -> Tensor:
        for (expression, rows), word, _, softmax in self._direct_rows():
            mean_softmax[expression, rows] += softmax * self.keys.weight[expression, word]
        return mean_softmax

    def _direct_rows(self) -> Iterator[tuple[tuple[int, Tensor], int, Tensor, Tensor]]:
        """Yield ((expression, rows), word, queries, softmax) for each word with rows below the floor."""
        if self.direct is None:
            return
        keys = self.keys
        for expression, word in self.direct.any(1).nonzero().tolist():
            rows = self.direct[expression, :, word].nonzero().flatten()
            token_query = self.query[rows] + keys.words[expression, word]
            shared = min(expression, len(keys.key) - 1)
            logits = token_query @ keys.key[shared].T
            if keys.key_mask is not None:
                logits = logits.masked_fill(~keys.key_mask[shared], -torch.inf)
            yield (expression, rows), word, token_query, logits.softmax(-1)

    def _direct_backward(self, grad_softmax: Tensor, grad_query: Tensor, grads: Gradients) -> None:
        for (expression, rows), word, token_query, softmax in self._direct_rows():
            row = grad_softmax[expression, rows]
            row = softmax * (row - torch.linalg.vecdot(softmax, row)[:, None])
            row *= self.keys.weight[expression, word]
            shared = min(expression, len(self.keys.key) - 1)
            grad_token = row @ self.keys.key[shared]
            grad_query[rows] += grad_token
            grads.words[expression, word] += grad_token.sum(0)
            grads.key[shared].addmm_(row.T, token_query)


def times(left: Tensor, right: Tensor) -> Tensor:
    """[S or 1, a, b] @ [T, b, c] -> [S, a, c], as one product if the right side is shared.

    `torch.matmul` chooses between one product and many by whether its inputs require gradients, which changes the
    last bit of the result.
    """
    if len(right) == 1:
        return (left.flatten(0, 1) @ right[0]).unflatten(0, left.shape[:2])
    return torch.bmm(left.expand(len(right), -1, -1), right)


def _dot_words(rows: Tensor, words: Tensor) -> Tensor:
    """[T or S, r, K] @ [S, N, K]^T -> [S, r, N], as one product if the rows are shared."""
    if len(rows) == len(words):
        return torch.bmm(rows, words.mT)
    return (rows[0] @ words.flatten(0, 1).T).unflatten(1, words.shape[:2]).transpose(0, 1)


def _add_transposed_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total [T, a, b] += left [S, c, a]^T @ right [S, c, b], summed over expressions if T = 1."""
    if len(total) == 1 and left.shape[2] > _NARROW:
        total[0].addmm_(left.flatten(0, 1).T, right.flatten(0, 1))
        return
    whole = left.shape[1] // _TERMS * _TERMS
    if whole:
        parts = (part[:, :whole].unflatten(1, (-1, _TERMS)) for part in (left, right))
        total += _sum_to(total, torch.einsum("snca,sncb->snab", *parts).sum(1))
    if whole < left.shape[1]:
        total += _sum_to(total, torch.bmm(left[:, whole:].mT, right[:, whole:]))


def _sum_to(total: Tensor, parts: Tensor) -> Tensor:
    """[S, a, b] -> the shape of total, [S or 1, a, b]."""
    return parts if len(parts) == len(total) else parts.sum(0, keepdim=True)
