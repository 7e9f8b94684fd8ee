"""The separable attention: its exact form, random cases of it, and its backends as functions of a case."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from support.oracle import Array, Case, Operation, normal_numbers, padding
from torch import Tensor

from cmsa_fast.kernels import cross_modal_attention, reference

NAMES = ("place_query", "place_key", "place_value", "word_query", "word_key", "word_value")
LOGIT_NAMES = ("place_query", "place_key", "word_query", "word_key")


def eager(*arguments: Any, image_index: Tensor | None = None) -> Tensor:
    return cross_modal_attention(*arguments, image_index=image_index, backend="torch")


def fused(*arguments: Any, image_index: Tensor | None = None) -> Tensor:
    return cross_modal_attention(*arguments, image_index=image_index, backend="triton")


def draw(
    places: int = 23,
    words: int = 6,
    width: int = 11,
    value_width: int | None = None,
    batch: int = 2,
    *,
    images: int | None = None,
    scale: float = 1.0,
    grad_scale: float = 1.0,
    padded: bool = True,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Case:
    """Normal features times `scale`, padded words (see `padding`); with `images` the expressions share images."""
    normal = normal_numbers(dtype, seed)
    value_width = width if value_width is None else value_width
    widths = (width, width, value_width)
    inputs = (
        *(normal(images or batch, places, size, times=scale) for size in widths),
        *(normal(batch, words, size, times=scale) for size in widths),
    )
    image_index = None
    if images is not None:
        generator = torch.Generator().manual_seed(seed)
        image_index = torch.randint(images, (batch,), generator=generator)
    grad = normal(batch, places, value_width, times=grad_scale)
    mask = padding(batch, words) if padded else None
    return Case(SEPARABLE, inputs, mask, grad, {"image_index": image_index})


def shifted(case: Case, **offsets: float) -> Case:
    """Add an offset, equal for all rows and different in each channel, to the named inputs."""
    changed: dict[str, Tensor | None] = {}
    for name, size in offsets.items():
        channels = case[name].shape[-1]
        direction = torch.linspace(1, 2, channels) * (-1.0) ** torch.arange(channels)
        changed[name] = (case[name].float() + size * direction).to(case[name].dtype)
    return case.with_inputs(**changed)


def with_largest_logit(case: Case, size: float) -> Case:
    """Scale queries and keys alike until the largest logit of two tokens is `size` in magnitude."""
    query, key = (
        (case[f"place_{part}"].double()[:, :, None] + case[f"word_{part}"].double()[:, None])
        for part in ("query", "key")
    )
    largest = float((query.flatten(1, 2) @ key.flatten(1, 2).mT).abs().max())
    scale = (size / largest) ** 0.5
    return case.with_inputs(**{name: case[name] * scale for name in LOGIT_NAMES})


def _in_numpy(
    inputs: list[Array], mask: Array | None, grad: Array, image_index: Tensor | None = None
) -> list[Array]:
    places, words = inputs[0].shape[1], inputs[3].shape[1]
    result, gradients = np.zeros_like(grad), [np.zeros_like(part) for part in inputs]
    for expression in range(len(grad)):
        image = expression if image_index is None else int(image_index[expression])
        real = np.arange(words) if mask is None else np.flatnonzero(mask[expression])
        query, key, value = (
            (place[image][:, None] + word[expression][None, real]).reshape(places * len(real), -1)
            for place, word in zip(inputs[:3], inputs[3:], strict=True)
        )
        logits = query @ key.T
        weights = np.exp(logits - logits.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        result[expression] = (weights @ value).reshape(places, len(real), -1).mean(1)

        grad_attended = np.repeat(grad[expression] / len(real), len(real), axis=0)
        grad_weights = grad_attended @ value.T
        grad_logits = weights * (grad_weights - (weights * grad_weights).sum(1, keepdims=True))
        grad_tokens = (grad_logits @ key, grad_logits.T @ query, weights.T @ grad_attended)
        for number, part in enumerate(grad_tokens):
            pairs = part.reshape(places, len(real), -1)
            gradients[number][image] += pairs.sum(1)
            gradients[number + 3][expression, real] += pairs.sum(0)
    return [result, *gradients]


SEPARABLE = Operation(NAMES, reference.cross_modal_attention, _in_numpy)
