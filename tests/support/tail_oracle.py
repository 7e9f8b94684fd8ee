"""The level tail: its exact form, and random cases of it."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from support.oracle import Array, Case, Operation, normal_numbers
from torch import Tensor
from torch.nn import functional

from cmsa_fast.kernels import level_tail

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
NAMES = ("attended", "output_weight", "unit_visual", "mean_word", "coordinates")

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the kernel needs Triton")
TRITON = pytest.param("triton", marks=needs_triton)


def supports(backend: str, dtype: torch.dtype) -> bool:
    """Triton's interpreter multiplies bfloat16 wrongly; on a GPU the kernel does not take float64."""
    return backend != "triton" or dtype != (torch.float64 if ON_GPU else torch.bfloat16)


def tail(*inputs: Any, image_index: Tensor | None = None, backend: str = "torch") -> Tensor:
    """`level_tail` on the GPU if there is one; the last of the inputs is the mask of a case, always None."""
    features = [part.to(DEVICE) for part in inputs[:-1]]
    index = None if image_index is None else image_index.to(DEVICE)
    return level_tail(*features, image_index=index, backend=backend).cpu()


def draw(
    places: int = 19,
    width: int = 17,
    visual: int = 21,
    words: int = 5,
    coordinates: int = 8,
    batch: int = 3,
    *,
    images: int | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Case:
    """Normal inputs, exact in `dtype`, with unit visual features; with `images` the expressions share images."""
    normal = normal_numbers(dtype, seed)
    channels = visual + words + coordinates
    unit = functional.normalize(normal(images or batch, visual, places).mT, dim=2)
    index = None
    if images is not None:
        index = torch.randint(images, (batch,), generator=torch.Generator().manual_seed(seed))
    inputs = (
        normal(batch, places, width),
        normal(channels, width),
        unit,
        normal(batch, words),
        normal(coordinates, places),
    )
    return Case(TAIL, inputs, None, normal(batch, channels, places), {"image_index": index})


def _literal(
    attended: Tensor,
    weight: Tensor,
    visual: Tensor,
    word: Tensor,
    coordinates: Tensor,
    mask: None = None,
    *,
    image_index: Tensor | None = None,
) -> Tensor:
    batch, places, _ = attended.shape
    visual = visual if image_index is None else visual[image_index]
    everywhere = word[:, None].expand(-1, places, -1), coordinates.T.expand(batch, -1, -1)
    return (functional.linear(attended, weight) + torch.cat([visual, *everywhere], 2)).mT


def _in_numpy(inputs: list[Array], mask: None, grad: Array, image_index: Tensor | None = None) -> list[Array]:
    attended, weight, visual, word, coordinates = inputs
    result, gradients = np.zeros_like(grad), [np.zeros_like(part) for part in inputs]
    first, second = visual.shape[2], visual.shape[2] + word.shape[1]
    for expression in range(len(grad)):
        image = expression if image_index is None else int(image_index[expression])
        upstream = grad[expression]
        result[expression] = weight @ attended[expression].T
        result[expression, :first] += visual[image].T
        result[expression, first:second] += word[expression][:, None]
        result[expression, second:] += coordinates
        gradients[0][expression] = upstream.T @ weight
        gradients[1] += upstream @ attended[expression]
        gradients[2][image] += upstream[:first].T
        gradients[3][expression] = upstream[first:second].sum(1)
        gradients[4] += upstream[second:]
    return [result, *gradients]


TAIL = Operation(NAMES, _literal, _in_numpy)
