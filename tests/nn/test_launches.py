"""Kernels that one forward of `CMSA` launches on a GPU, counted on fake CUDA tensors."""

from __future__ import annotations

import importlib
from collections import Counter
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cmsa_fast.kernels.separable_attention.numerics import word_weights
from cmsa_fast.nn import CMSA, cmsa

pytest.importorskip("triton", reason="the kernels need Triton, which is not installed")

# Operations that launch no kernel, besides views.
NO_LAUNCH = {"prim::device", "aten::new_empty", "aten::_unsafe_view", "aten::empty"}


class Launches(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.kernels = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if not func.is_view and func._schema.name not in NO_LAUNCH:
            self.operations[func._schema.name] += 1
        return func(*args, **(kwargs or {}))

    def launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        self.kernels += 0 not in grid


def kernels(name: str) -> ModuleType:
    return importlib.import_module(f"cmsa_fast.kernels.separable_attention.triton.{name}")


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="fake CUDA tensors would ask the driver for the architecture"
)
@pytest.mark.parametrize(("masked", "of_nn", "of_all"), [(False, 14, 25), (True, 21, 34)])
def test_a_level_takes_few_launches(
    masked: bool, of_nn: int, of_all: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operators' implementations are called in place of the operators, which would hide their launches."""
    counted = Launches()
    for name in ("prepare", "words", "logits", "values", "direct", "projection"):
        monkeypatch.setattr(kernels(name), "launch", counted.launch)
    of_attention = Counter[str]()

    def attention(*features: Tensor, image_index: Tensor | None, backend: str) -> Tensor:
        before = counted.operations.copy()
        *features_alone, word_mask = features
        weight = word_weights(word_mask, features[3])
        attended = kernels("schedule").forward(features_alone, weight, image_index)[0]
        of_attention.update(counted.operations - before)
        return attended

    def tail(*parts: Tensor, image_index: Tensor | None, backend: str) -> Tensor:
        return kernels("projection").launch_level_tail(*parts, image_index)

    monkeypatch.setattr(cmsa, "unchecked_cross_modal_attention", attention)
    monkeypatch.setattr(cmsa, "unchecked_level_tail", tail)
    with FakeTensorMode(), torch.device("cuda"):
        module = CMSA(64, 32, 16)
        visual, words = torch.empty(8, 64, 40, 40), torch.empty(8, 20, 32)
        mask = torch.ones(8, 20, dtype=torch.bool) if masked else None
        with counted:
            module(visual, words, mask)
    assert counted.kernels > 5
    assert (counted.operations - of_attention).total() <= of_nn, counted.operations
    assert counted.operations.total() + counted.kernels <= of_all, counted.operations
