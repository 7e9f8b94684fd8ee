"""Tensors without values, on the meta device or fake: functions and modules compute shapes, masks included."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.small_models import build
from torch import Tensor
from torch._subclasses import FakeTensorMode

from cmsa_fast.kernels import (
    cross_modal_attention,
    joint_attention,
    joint_attention_tail,
    level_tail,
    received_word_attention,
)
from cmsa_fast.models import for_inference

MODES = {"meta": "meta", "fake": "cpu", "fake cuda": "cuda"}
CALLS: dict[str, tuple[Callable[..., Any], list[int]]] = {
    "separable": (lambda m, index, backend: cross_modal_attention(
        *[torch.rand(2, 5, 6)] * 3, *[torch.rand(3, 4, 6)] * 3, m, image_index=index, backend=backend), [3, 5, 6]),
    "level tail": (lambda m, index, backend: level_tail(
        torch.rand(3, 5, 6), torch.rand(11, 6), torch.rand(2, 5, 2), torch.rand(3, 1), torch.rand(8, 5),
        image_index=index, backend=backend), [3, 11, 5]),
    "joint": (lambda m, index, backend: joint_attention(
        torch.rand(3, 7, 6), *[torch.rand(3, 4, 6)] * 2, m, backend=backend), [3, 7, 6]),
    "joint tail": (lambda m, index, backend: joint_attention_tail(
        torch.rand(3, 5, 4, 6), torch.rand(7, 6), None, m, relu=True, backend=backend), [3, 5, 7]),
    "received": (lambda m, index, backend: received_word_attention(
        torch.rand(2, 5, 6), *[torch.rand(3, 4, 6)] * 2, m, image_index=index), [3, 4]),
    "cmsa": (lambda m, index, backend: build("cmsa", backend=backend)(
        torch.rand(2, 3, 33, 40), m.long(), m, index), [3, 1, 33, 40]),
    "cmsa-released": (lambda m, index, backend: build("cmsa-released", backend=backend)(
        torch.rand(2, 3, 33, 40), m.long(), m, index), [3, 1, 33, 40]),
}  # fmt: skip


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("call", CALLS)
def test_shapes_are_computed(call: str, mode: str, backend: str) -> None:
    function, shape = CALLS[call]
    with FakeTensorMode() if "fake" in mode else contextlib.nullcontext(), torch.device(MODES[mode]):
        result = function(*_mask_and_index(), backend)
        assert list(result.shape) == shape
        assert result.device.type == MODES[mode]


@pytest.mark.parametrize("call", ["separable", "level tail", "joint", "joint tail"])
def test_triton_names_the_device(call: str) -> None:
    pytest.importorskip("triton")
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=r'^backend="triton" runs on NVIDIA GPUs .*got meta\.'),
    ):
        CALLS[call][0](*_mask_and_index(), "triton")


@torch.no_grad()
def test_folded_model_computes_shapes() -> None:
    with torch.device("meta"):
        mask, index = _mask_and_index()
        result = for_inference(build("cmsa"))(torch.rand(2, 3, 33, 40), mask.long(), mask, index)
    assert list(result.shape) == [3, 1, 33, 40]


def _mask_and_index() -> tuple[Tensor, Tensor]:
    return torch.ones(3, 4, dtype=torch.bool), torch.zeros(3, dtype=torch.int64)
