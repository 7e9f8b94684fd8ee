"""The peers: attention over all pairs of tokens by libraries, and the tail written plainly.

Those of the separable form get their tokens [B, P*N, d] ready-made, in their favour; the mean over words is theirs
to take, since without it the result is not the same.
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


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(naive, dynamic=False)


def naive_compiled(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return _compiled()(query, key, value)


def chunked(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`naive` over blocks of queries, made again in backward."""
    blocks = []
    for block in query.split(_CHUNK, dim=1):
        if torch.is_grad_enabled():
            blocks.append(checkpoint(naive, block, key, value, use_reentrant=False))
        else:
            blocks.append(naive(block, key, value))
    return torch.cat(blocks, dim=1)


def sdpa_efficient(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """PyTorch's fused attention, pinned to the one backend that takes a width of 512 forward and backward."""
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
    "naive compiled": naive_compiled,
    "chunked": chunked,
    "sdpa efficient": sdpa_efficient,
    "flex": flex,
}


def _all_pairs(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Attention of tokens [B, P*N, d], then the mean over words."""

    def form(
        query: Tensor, key: Tensor, value: Tensor, mask: None, *, words: int, **_: Any
    ) -> Tensor:
        attended = attend(query, key, value)
        return attended.unflatten(1, (-1, words)).mean(2)

    return form


def _joint(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def form(
        query: Tensor, key: Tensor, value: Tensor, mask: None, *, scale: float = 1.0
    ) -> Tensor:
        return attend(query, key, value)

    return form


def tail(
    attended: Tensor, weight: Tensor, bias: Tensor, mask: None, *, relu: bool = True
) -> Tensor:
    return F.linear(attended, weight, bias).relu().mean(2)


@functools.cache
def _compiled_tail() -> Callable[..., Tensor]:
    return torch.compile(tail, dynamic=False)


def tail_compiled(
    attended: Tensor, weight: Tensor, bias: Tensor, mask: None, *, relu: bool = True
) -> Tensor:
    return _compiled_tail()(attended, weight, bias, mask, relu=relu)


def level(
    attended: Tensor,
    output_weight: Tensor,
    unit_visual: Tensor,
    mean_word: Tensor,
    coordinates: Tensor,
    mask: None,
    *,
    image_index: None = None,
) -> Tensor:
    """The residual concatenated, [B, P, C], and the sum transposed."""
    batch, places, _ = attended.shape
    words = mean_word[:, None].expand(-1, places, -1)
    residual = torch.cat([unit_visual, words, coordinates.T.expand(batch, -1, -1)], dim=2)
    return (F.linear(attended, output_weight) + residual).mT.contiguous()


@functools.cache
def _compiled_level() -> Callable[..., Tensor]:
    return torch.compile(level, dynamic=False)


def level_compiled(*parts: Tensor, **options: None) -> Tensor:
    return _compiled_level()(*parts, **options)


# operation -> name -> form(*leaves, mask, **options)
PEERS: dict[str, dict[str, Callable[..., Tensor]]] = {
    "separable": {name: _all_pairs(attend) for name, attend in ATTENTION.items()},
    "joint": {name: _joint(attend) for name, attend in ATTENTION.items()},
    "tail": {"naive": tail, "naive compiled": tail_compiled},
    "level": {"naive": level, "naive compiled": level_compiled},
}
