"""The tail of a CMSA level: its literal forms, and inputs to measure it on."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from support.joint_oracle import JointCase, Operation
from torch import Tensor
from torch.nn import functional

from cmsa_fast.kernels import level_tail

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
NAMES = ("attended", "output_weight", "unit_visual", "mean_word", "coordinates")

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the kernel needs Triton"
)
TRITON = pytest.param("triton", marks=needs_triton)


def runs(backend: str, dtype: torch.dtype) -> bool:
    """The interpreter multiplies bfloat16 wrongly; the GPU's kernel refuses float64."""
    return backend != "triton" or dtype != (torch.float64 if ON_GPU else torch.bfloat16)


def tail(
    *inputs: Tensor | None, image_index: Tensor | None = None, backend: str = "torch"
) -> Tensor:
    """The last of the inputs is the mask of `joint_oracle`, which a tail has not."""
    features = [part.to(DEVICE) for part in inputs[:-1] if part is not None]
    index = None if image_index is None else image_index.to(DEVICE)
    return level_tail(*features, image_index=index, backend=backend).cpu()  # type: ignore[misc]


def literal(
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


def written_out(
    inputs: list[Any], mask: None, grad: Any, image_index: Tensor | None = None
) -> list[Any]:
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


TAIL = Operation(NAMES, literal, written_out)


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
) -> JointCase:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    channels = visual + words + coordinates
    unit = functional.normalize(normal(images or batch, visual, places).mT, dim=2)
    index = None
    if images is not None:
        index = torch.randint(images, (batch,), generator=generator)
    features = (
        normal(batch, places, width),
        normal(channels, width),
        unit,
        normal(batch, words),
        normal(coordinates, places),
    )
    return JointCase(TAIL, features, None, normal(batch, channels, places), {"image_index": index})
