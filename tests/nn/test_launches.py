"""Kernels that `CMSA` launches on a GPU around its attention, counted on fake CUDA tensors."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cmsa_fast.nn import CMSA, cmsa

# Operations that launch no kernel, besides views.
NO_LAUNCH = {"prim::device", "aten::new_empty", "aten::_unsafe_view", "aten::empty"}


class Launches(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if not func.is_view and func._schema.name not in NO_LAUNCH:
            self.names[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def attention(place_query: Tensor, place_key: Tensor, place_value: Tensor, *_: Any, **__: Any) -> Tensor:
    return place_value.new_empty(place_value.shape)


def tail(attended: Tensor, output_weight: Tensor, *_: Any, **__: Any) -> Tensor:
    return attended.new_empty(len(attended), len(output_weight), attended.shape[1])


@pytest.mark.parametrize(("masked", "launches"), [(False, 14), (True, 18)])
def test_tokens_and_projections_take_few_launches(
    masked: bool, launches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cmsa, "unchecked_cross_modal_attention", attention)
    monkeypatch.setattr(cmsa, "unchecked_level_tail", tail)
    monkeypatch.setattr(cmsa, "check_inputs", lambda *_: None)
    with FakeTensorMode(), torch.device("cuda"), Launches() as counted:
        module = CMSA(64, 32, 16)
        visual, words = torch.empty(2, 64, 5, 7), torch.empty(2, 4, 32)
        mask = torch.ones(2, 4, dtype=torch.bool) if masked else None
        counted.names.clear()
        module(visual, words, mask)
    assert counted.names.total() <= launches, counted.names
