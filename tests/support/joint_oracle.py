"""The joint attention and its tail: their exact forms, and random cases of them."""

from __future__ import annotations

import numpy as np
import torch
from support.oracle import Array, Case, Operation, normal_numbers, padding

from cmsa_fast.kernels import reference


def draw_joint(
    queries: int = 37,
    keys: int = 53,
    width: int = 11,
    value_width: int | None = None,
    batch: int = 2,
    *,
    scale: float | None = None,
    spread: float = 1.0,
    grad_spread: float = 1.0,
    masked: bool = True,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Case:
    """A case of `joint_attention`: normal inputs times `spread`, exact in `dtype`, keys masked by `padding`."""
    normal = normal_numbers(dtype, seed)
    value_width = width if value_width is None else value_width
    shapes = ((batch, queries, width), (batch, keys, width), (batch, keys, value_width))
    return Case(
        ATTENTION,
        tuple(normal(*shape, times=spread) for shape in shapes),
        padding(batch, keys) if masked else None,
        normal(batch, queries, value_width, times=grad_spread),
        {} if scale is None else {"scale": scale},
    )


def draw_tail(
    places: int = 13,
    words: int = 6,
    width: int = 11,
    channels: int = 9,
    batch: int = 2,
    *,
    relu: bool = False,
    bias: bool = True,
    spread: float = 1.0,
    masked: bool = True,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Case:
    """A case of `joint_attention_tail`: normal inputs, the attended values times `spread`, exact in `dtype`."""
    normal = normal_numbers(dtype, seed)
    inputs = (
        normal(batch, places, words, width, times=spread),
        normal(channels, width),
        normal(channels) if bias else None,
    )
    mask = padding(batch, words) if masked else None
    return Case(TAIL, inputs, mask, normal(batch, places, channels), {"relu": relu})


def poisoned(case: Case, value: float) -> Case:
    """The case with `value` in everything that the mask excludes."""
    assert case.mask is not None
    if case.operation is TAIL:
        unread = ~case.mask[:, None, :, None]
        return case.with_inputs(attended=case["attended"].masked_fill(unread, value))
    unread = ~case.mask[..., None]
    return case.with_inputs(**{name: case[name].masked_fill(unread, value) for name in ("key", "value")})


def with_largest_logit(case: Case, size: float) -> Case:
    """Scale query and key alike until the largest logit is `size` in magnitude."""
    largest = float((case["query"].double() @ case["key"].double().mT).abs().max())
    factor = (size / largest) ** 0.5
    return case.with_inputs(query=case["query"] * factor, key=case["key"] * factor)


def with_key_offset(case: Case, size: float) -> Case:
    """Add one vector of normal numbers times `size` to all keys."""
    vector = torch.randn(case["key"].shape[2], generator=torch.Generator().manual_seed(5))
    return case.with_inputs(key=(case["key"].float() + size * vector).to(case["key"].dtype))


def with_constant_channel(case: Case, sign: float) -> Case:
    """Set a channel to 100 in queries and to +-100 in keys: all logits are near +-1e4, with differences near 1."""
    query, key = case["query"].clone(), case["key"].clone()
    query[..., 0], key[..., 0] = 100, sign * 100
    return case.with_inputs(query=query, key=key)


def _attention_in_numpy(inputs: list[Array], mask: Array | None, grad: Array, scale: float = 1.0) -> list[Array]:
    query, key, value = inputs
    result, gradients = np.zeros_like(grad), [np.zeros_like(part) for part in inputs]
    for entry in range(len(grad)):
        real = np.arange(key.shape[1]) if mask is None else np.flatnonzero(mask[entry])
        keys, values = key[entry, real], value[entry, real]
        logits = query[entry] @ keys.T * scale
        weights = np.exp(logits - logits.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        result[entry] = weights @ values
        grad_weights = grad[entry] @ values.T
        grad_logits = weights * (grad_weights - (weights * grad_weights).sum(1, keepdims=True))
        grad_logits *= scale
        gradients[0][entry] = grad_logits @ keys
        gradients[1][entry, real] = grad_logits.T @ query[entry]
        gradients[2][entry, real] = weights.T @ grad[entry]
    return [result, *gradients]


def _tail_in_numpy(inputs: list[Array | None], mask: Array | None, grad: Array, relu: bool = False) -> list[Array]:
    attended, weight, bias = inputs
    assert attended is not None
    assert weight is not None
    result = np.zeros_like(grad)
    grad_attended, grad_weight = np.zeros_like(attended), np.zeros_like(weight)
    grad_bias = np.zeros(len(weight), dtype=np.longdouble)
    for entry in range(len(grad)):
        words = attended.shape[2]
        real = range(words) if mask is None else np.flatnonzero(mask[entry]).tolist()
        for word in real:
            projected = attended[entry, :, word] @ weight.T + (0 if bias is None else bias)
            upstream = grad[entry] / len(real)
            if relu:
                upstream = upstream * (projected > 0)
                projected = np.maximum(projected, 0)
            result[entry] += projected / len(real)
            grad_attended[entry, :, word] = upstream @ weight
            grad_weight += upstream.T @ attended[entry, :, word]
            grad_bias += upstream.sum(0)
    return [result, grad_attended, grad_weight, *([] if bias is None else [grad_bias])]


ATTENTION = Operation(("query", "key", "value"), reference.token_attention, _attention_in_numpy)
TAIL = Operation(("attended", "weight", "bias"), reference.joint_attention_tail, _tail_in_numpy)
