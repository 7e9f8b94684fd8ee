"""Max-pooling of (place, word) tokens 2x2x2 over rows, columns and true words, as TensorFlow's "same" does.

A window at an odd end holds what is left (ceil). Words are windowed as if padding had been removed: `pack_words`
brings the true words of each expression to its front, and padding never wins a maximum.

Pairs are compared by `torch.maximum` on strided views: unlike max_pool3d's, its gradient needs no atomics on
CUDA, and the channels stay last.
"""

import torch
from torch import Tensor


def pack_words(words: Tensor, word_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Bring the true words of each expression to its front, in their order, and put zeros behind them.

    Args:
        words: [B, N, C].
        word_mask: bool [B, N], True where a word is real. None: all are, and the words stay as they are.

    Returns:
        Words [B, N, C] and their mask, bool [B, N] or None.
    """
    if word_mask is None:
        return words, None
    order = (~word_mask).to(torch.uint8).argsort(dim=1, stable=True)  # [B, N]
    words = words.masked_fill(~word_mask[..., None], 0)
    packed = words.gather(1, order[..., None].expand(-1, -1, words.shape[2]))
    return packed, word_mask.gather(1, order)


def pool_places(features: Tensor, height: int, width: int) -> Tensor:
    """[B, H*W, ...] -> [B, ceil(H/2)*ceil(W/2), ...], the maximum of each 2x2 window."""
    grid = features.unflatten(1, (height, width))
    return _pairwise_maximum(_pairwise_maximum(grid, 2), 1).flatten(1, 2)


def pool_words(features: Tensor, word_mask: Tensor | None) -> Tensor:
    """Maximum of each two neighbouring words, among the true ones.

    Args:
        features: [B, ..., N, C] of packed words.
        word_mask: bool [B, N] from `pack_words`.

    Returns:
        [B, ..., ceil(N/2), C]; -inf where a window has no true word.
    """
    if word_mask is not None:
        padded = ~word_mask.view(len(word_mask), *[1] * (features.ndim - 3), -1, 1)
        features = features.masked_fill(padded, -torch.inf)
    return _pairwise_maximum(features, features.ndim - 2)


def pooled_word_mask(word_mask: Tensor | None) -> Tensor | None:
    """bool [B, ceil(N/2)]: which windows of packed words hold a true word."""
    return None if word_mask is None else word_mask[:, ::2]


def _pairwise_maximum(features: Tensor, dim: int) -> Tensor:
    pairs, left_over = divmod(features.shape[dim], 2)
    grouped = features.narrow(dim, 0, 2 * pairs).unflatten(dim, (pairs, 2))
    largest = torch.maximum(grouped.select(dim + 1, 0), grouped.select(dim + 1, 1))
    if not left_over:
        return largest
    return torch.cat([largest, features.narrow(dim, 2 * pairs, 1)], dim)
