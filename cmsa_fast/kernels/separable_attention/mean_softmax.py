"""The mean over words of a softmax whose logits are sums of a place part and a word part.

    mean_softmax[p, k] = mean_n softmax_k((x_p + y_n) . key_k)

The logits are A[p, k] + C[n, k] with A = x key^T and C = y key^T. With E_A = exp(A - row max), E_C likewise,
Z = E_A E_C^T and R = 1 / (N Z), the mean is E_A * (R E_C): no array over p, n and k is needed, and no
approximation is made. E_A does not depend on the words: the expressions of an image share it.

Z underflows where A and C peak at different keys and both fall off steeply. Rows with Z below `_FLOOR` are
computed in the direct form, the softmax of (x_p + y_n) key^T, where cancelling parts are added before the product.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# In products with at most _NARROW rows, libraries add terms sequentially, with a rounding error for each. Such
# sums over places are split into sums of _TERMS terms.
_NARROW = 64
_TERMS = 32

_FLOOR = {torch.float32: 2.0**-60, torch.float64: 2.0**-500}


def exp_logits(query: Tensor, key: Tensor, out: Tensor | None = None) -> Tensor:
    """exp(query key^T - row max): E_A or E_C."""
    logits = torch.mm(query, key.T, out=out)
    return logits.sub_(logits.amax(-1, keepdim=True)).exp_()


class MeanSoftmax:
    """The mean softmax over keys [K, d] for words with queries [N, d].

    The methods take a block of places: their queries [r, d], and `exp_place` [r, K], their E_A.
    """

    def __init__(self, key: Tensor, words: Tensor) -> None:
        self.key = key
        self.words = words
        self.exp_word = exp_logits(words, key)

    def forward(self, query: Tensor, exp_place: Tensor, out: Tensor) -> Tensor:
        """The mean softmax, written to `out` [r, K]."""
        _, ratio, direct = self._weigh(exp_place)
        return self._add_direct(torch.mm(ratio, self.exp_word, out=out).mul_(exp_place), query, direct)

    def _weigh(self, exp_place: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Z and R [r, N], and where Z is below the floor: there Z is replaced by 1 and R by 0."""
        total = exp_place @ self.exp_word.T
        direct = None
        if not total.amin() >= _FLOOR[total.dtype]:  # true if one is NaN
            direct = total < _FLOOR[total.dtype]
            total.masked_fill_(direct, 1)
        ratio = (1 / len(self.words)) / total
        return total, ratio if direct is None else ratio.masked_fill_(direct, 0), direct

    def _add_direct(self, mean_softmax: Tensor, query: Tensor, direct: Tensor | None) -> Tensor:
        for _, rows, _, softmax in self._direct_rows(query, direct):
            mean_softmax[rows] += softmax / len(self.words)
        return mean_softmax

    def _direct_rows(self, query: Tensor, direct: Tensor | None) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Yield (word, rows, their queries, their softmax) for each word with rows below the floor."""
        if direct is None:
            return
        for word in direct.any(0).nonzero().flatten().tolist():
            rows = direct[:, word].nonzero().flatten()
            token_query = query[rows] + self.words[word]
            yield word, rows, token_query, (token_query @ self.key.T).softmax(-1)


class Gradients(MeanSoftmax):
    """The gradients of mean_softmax @ value, value [K, e], summed over blocks of places.

    They are added to the tensors given: by `backward`, but for those through the logits A, which the caller adds,
    and C, which `finish` adds.
    """

    def __init__(
        self, key: Tensor, value: Tensor, words: Tensor, grad_key: Tensor, grad_value: Tensor, grad_words: Tensor
    ) -> None:
        super().__init__(key, words)
        self.value = value
        self.grad_key = grad_key
        self.grad_value = grad_value
        self.grad_words = grad_words
        # Without the factor E_C: the gradient of C is the first of these less the second; the third is the
        # softmax summed over places.
        self.word_logits = torch.zeros_like(self.exp_word)
        self.corrections, self.share = self.sums = self.exp_word.new_zeros(2, *self.exp_word.shape)

    def backward(
        self,
        query: Tensor,
        exp_place: Tensor,
        grad: Tensor,
        grad_query: Tensor,
        buffers: tuple[Tensor, Tensor, Tensor],
    ) -> Tensor:
        """Add the gradients of a block.

        Args:
            query: [r, d].
            exp_place: [r, K].
            grad: [r, e], gradient of the product.
            grad_query: [r, d], to be added to; the gradient through A is missing.
            buffers: Three arrays [r, K] to overwrite.

        Returns:
            The gradient of A [r, K] without the factor E_A, in the first buffer.
        """
        total, ratio, direct = self._weigh(exp_place)
        mixed = torch.mm(ratio, self.exp_word, out=buffers[1])
        mean_softmax = self._add_direct(torch.mul(mixed, exp_place, out=buffers[2]), query, direct)
        _add_transposed_product(self.grad_value, mean_softmax, grad)
        grad_softmax = torch.mm(grad, self.value.T, out=buffers[0])
        # Mean-centring: the gradients are invariant to it; only rounding improves.
        grad_softmax -= mean_softmax.mul_(grad_softmax).sum(-1, keepdim=True)
        for word, rows, token_query, softmax in self._direct_rows(query, direct):
            row = grad_softmax[rows]
            row = softmax * (row - torch.linalg.vecdot(softmax, row)[:, None]) / len(self.words)
            grad_token = row @ self.key
            grad_query[rows] += grad_token
            self.grad_words[word] += grad_token.sum(0)
            self.grad_key.addmm_(row.T, token_query)

        scaled = torch.mul(grad_softmax, exp_place, out=buffers[2])
        # R / Z overflows near the floor, so the product with the sum comes before the division.
        correction = (scaled @ self.exp_word.T).mul_(ratio).div_(total)
        self.word_logits.addmm_(ratio.T, scaled)
        self.sums.flatten(0, 1).addmm_(torch.cat([correction, ratio], 1).T, exp_place)
        return grad_softmax.mul_(mixed).addmm_(correction, self.exp_word, alpha=-1)

    def finish(self) -> None:
        """Propagate the gradient of C = words key^T to words and key.

        Each row of it sums to zero up to rounding. That error would be multiplied by the word's query, which is
        largest where the softmax is saturated and the true gradient vanishes, so it is subtracted, distributed
        over the keys in proportion to the softmax.
        """
        gradient = self.word_logits.sub_(self.corrections).mul_(self.exp_word)
        share = self.share.mul_(self.exp_word)
        left_over = gradient.sum(-1, keepdim=True)
        left_over /= share.sum(-1, keepdim=True).clamp_min(torch.finfo(share.dtype).tiny)
        gradient.addcmul_(share, left_over, value=-1)
        self.grad_words.addmm_(gradient, self.key)
        _add_transposed_product(self.grad_key, gradient, self.words)


def _add_transposed_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total [a, b] += left [c, a]^T @ right [c, b]."""
    whole = 0
    if left.shape[1] <= _NARROW:
        whole = len(left) // _TERMS * _TERMS
        parts = [part[:whole].unflatten(0, (-1, _TERMS)) for part in (left, right)]
        total += torch.bmm(parts[0].mT, parts[1]).sum(0)
    total.addmm_(left[whole:].T, right[whole:])
