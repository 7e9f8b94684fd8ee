"""The peers: attention over all pairs of tokens by libraries, and the tails in plain PyTorch.

The peers of the separable form get their tokens [B, P*N, d] ready-made, in their favour; they must take the mean
over words themselves, since it is part of the result.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

_CHUNK = 2048  # queries at a time


def naive(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Two library products and a softmax."""
    return (query @ key.mT).softmax(-1) @ value


def _compiled(form: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The form under `torch.compile`, compiled at its first call."""
    compiled = functools.cache(lambda: torch.compile(form, dynamic=False))
    return lambda *parts, **options: compiled()(*parts, **options)


def chunked(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`naive` over blocks of queries, recomputed in the backward."""
    blocks = []
    for block in query.split(_CHUNK, dim=1):
        if torch.is_grad_enabled():
            blocks.append(checkpoint(naive, block, key, value, use_reentrant=False))
        else:
            blocks.append(naive(block, key, value))
    return torch.cat(blocks, dim=1)


def sdpa_efficient(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """PyTorch's fused attention, restricted to the one backend that supports a width of 512 with gradients."""
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION]):
        parts = (query[:, None], key[:, None], value[:, None])
        return F.scaled_dot_product_attention(*parts, scale=1.0)[:, 0]


@functools.cache
def _flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def flex(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return _flex()(query[:, None], key[:, None], value[:, None], scale=1.0)[:, 0]


ATTENTION: dict[str, Callable[..., Tensor]] = {
    "naive": naive,
    "naive compiled": _compiled(naive),
    "chunked": chunked,
    "sdpa efficient": sdpa_efficient,
    "flex": flex,
}


def _all_pairs(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Attention over tokens [B, P*N, d], then the mean over words."""

    def form(query: Tensor, key: Tensor, value: Tensor, mask: None, *, words: int, **_: Any) -> Tensor:
        attended = attend(query, key, value)
        return attended.unflatten(1, (-1, words)).mean(2)

    return form


def _joint(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def form(query: Tensor, key: Tensor, value: Tensor, mask: None, *, scale: float = 1.0) -> Tensor:
        return attend(query, key, value)

    return form


def tail(attended: Tensor, weight: Tensor, bias: Tensor, mask: None, *, relu: bool = True) -> Tensor:
    return F.linear(attended, weight, bias).relu().mean(2)


def projection(
    attended: Tensor,
    output_weight: Tensor,
    unit_visual: Tensor,
    mean_word: Tensor,
    coordinates: Tensor,
    mask: None,
    *,
    image_index: None = None,
) -> Tensor:
    """The residual as a concatenation [B, P, C]; the sum is transposed."""
    batch, places, _ = attended.shape
    words = mean_word[:, None].expand(-1, places, -1)
    residual = torch.cat([unit_visual, words, coordinates.T.expand(batch, -1, -1)], dim=2)
    return (F.linear(attended, output_weight) + residual).mT.contiguous()


# operation -> name -> form(*leaves, mask, **options)
PEERS: dict[str, dict[str, Callable[..., Tensor]]] = {
    "separable": {name: _all_pairs(attend) for name, attend in ATTENTION.items()},
    "joint": {name: _joint(attend) for name, attend in ATTENTION.items()},
    "tail": {"naive": tail, "naive compiled": _compiled(tail)},
    "projection": {"naive": projection, "naive compiled": _compiled(projection)},
}
