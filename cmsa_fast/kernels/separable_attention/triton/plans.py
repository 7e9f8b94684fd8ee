"""Entry point of the separable attention's Triton kernels: chooses between two plans, forward and backward.

Neither plan has been measured on a GPU. The tiled plan computes fewer products; it is chosen for wide features and
for float32 without TF32 (where the library's matmul is faster), if each expression has its own image and an
image's pairs of places fit into a slab.
"""

import contextlib
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor

from ...triton.launch import arithmetic
from . import fused, tiled
from .operands import Operands, prepare
from .row_statistics import Keys, Statistics
from .word_factor import word_factor

PLANS: dict[str, ModuleType] = {"fused": fused, "tiled": tiled}

# The width from which the tiled plan's fewer products outweigh its reading and writing of pairs.
_WIDE = 256

_forced: list[str] = []


@contextlib.contextmanager
def only(plan: str) -> Iterator[None]:
    """Use one of PLANS for all sizes, for tests and measurements.

    Where the tiled plan does not apply (shared images, the backward of float16) the fused one runs.

    Raises:
        ValueError: The plan is unknown.
    """
    if plan not in PLANS:
        raise ValueError(f"plan must be one of {', '.join(PLANS)}; got {plan!r}.")
    _forced.append(plan)
    try:
        yield
    finally:
        _forced.pop()


def forward(features: list[Tensor], weight: Tensor, image_index: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """
    Args:
        features: place query, key, value and word query, key, value, with any strides.
        weight: [B, N], 1 / (number of real words) on real words, 0 on padding.
        image_index: int64 [B], or None.

    Returns:
        [B, P, e] in the features' dtype, and the state of the softmaxes for backward.
    """
    weight, image_index = _contiguous(weight, image_index)
    operands = prepare(features, weight, image_index)
    place_factor = word_factor(operands.word_query, operands.place_key, image_index)
    words_factor = word_factor(operands.word_query, operands.word_key, key_mask=weight > 0)
    keys = _keys(operands, weight, image_index, place_factor, words_factor)
    plan = _plan(operands, image_index)
    attended, of_places, of_words = plan.forward(operands, *keys, weight)
    return attended, [place_factor, words_factor, *of_places, *of_words]


def backward(
    grad: Tensor,
    features: list[Tensor],
    weight: Tensor,
    image_index: Tensor | None,
    attended: Tensor,
    state: list[Tensor],
) -> list[Tensor]:
    """
    Args:
        grad: [B, P, e], of the result, with any strides.
        features, weight, image_index: As in forward.
        attended, state: What forward returned.

    Returns:
        The gradients of the six features, in their dtype.
    """
    weight, image_index = _contiguous(weight, image_index)
    operands = prepare(features, weight, image_index)
    keys = _keys(operands, weight, image_index, *state[:2])
    of_places, of_words = Statistics(*state[2:7]), Statistics(*state[7:])
    # Gradients of logits leave the range of float16, in which the tiled plan would keep them.
    plan = fused if grad.dtype == torch.float16 else _plan(operands, image_index)
    return plan.backward(grad, attended, operands, *keys, weight, of_places, of_words)


def _contiguous(weight: Tensor, image_index: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Make contiguous what the kernels read without strides: weights of a transposed mask, an expanded index."""
    return weight.contiguous(), None if image_index is None else image_index.contiguous()


def _keys(
    operands: Operands,
    weight: Tensor,
    image_index: Tensor | None,
    place_factor: Tensor,
    words_factor: Tensor,
) -> tuple[Keys, Keys]:
    return (
        Keys(operands.place_key, operands.place_value, place_factor, None, image_index),
        Keys(operands.word_key, operands.word_value, words_factor, weight > 0, None),
    )


def _plan(operands: Operands, image_index: Tensor | None) -> ModuleType:
    batch, places, width = operands.place_query.shape
    if image_index is not None or not batch:
        return fused
    if _forced:
        return PLANS[_forced[-1]]
    is_wide = max(width, operands.place_value.shape[2]) >= _WIDE
    is_exact = arithmetic(operands.place_query.dtype) == "ieee"
    return tiled if tiled.fits(places) and (is_wide or is_exact) else fused
