"""The public functions of the joint attention: their errors, word by word, and their choice of backend."""

from __future__ import annotations

import re
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.joint_oracle import draw_joint, draw_tail, run_joint
from torch import Tensor

from cmsa_fast import kernels
from cmsa_fast.kernels import BACKENDS, backends, joint_attention, joint_attention_tail


def attention_arguments(**changed: Any) -> dict[str, Any]:
    """Two entries of 5 queries and 3 keys, width 4, value width 6."""
    right = {
        "query": torch.zeros(2, 5, 4),
        "key": torch.zeros(2, 3, 4),
        "value": torch.zeros(2, 3, 6),
    }
    return right | changed


def tail_arguments(**changed: Any) -> dict[str, Any]:
    """Two entries of 5 places and 3 words, width 4, 6 channels."""
    right = {
        "attended": torch.zeros(2, 5, 3, 4),
        "weight": torch.zeros(6, 4),
        "bias": torch.zeros(6),
    }
    return right | changed


def mask(*rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.bool)


ATTENTION = [
    ({"query": [[[0.0]]]}, TypeError, "query must be a tensor; got list."),
    ({"value": np.zeros((2, 3, 6))}, TypeError, "value must be a tensor; got ndarray."),
    (
        {"key": torch.zeros(2, 3, 4, dtype=torch.int64)},
        TypeError,
        "key must have one of the dtypes float64, float32, bfloat16, float16; got torch.int64.",
    ),
    (
        {"key": torch.zeros(2, 3, 4, dtype=torch.float64)},
        TypeError,
        "key must have the dtype of query, torch.float32; got torch.float64.",
    ),
    (
        {"value": torch.zeros(2, 3, 6, device="meta")},
        ValueError,
        "value must be on the device of query, cpu; got meta.",
    ),
    (
        {"query": torch.zeros(5, 4)},
        ValueError,
        "query must have shape [batch, tokens, channels] with at least one of each; got [5, 4].",
    ),
    (
        {"key": torch.zeros(2, 0, 4)},
        ValueError,
        "key must have shape [batch, tokens, channels] with at least one of each; got [2, 0, 4].",
    ),
    (
        {"value": torch.zeros(2, 3, 0)},
        ValueError,
        "value must have shape [batch, tokens, channels] with at least one of each; got [2, 3, 0].",
    ),
    (
        {"query": torch.zeros(1, 5, 4)},
        ValueError,
        "key must have the batch of query, 1; got 2.",
    ),
    (
        {"key": torch.zeros(2, 3, 7)},
        ValueError,
        "key must have the width of query, 4; got 7.",
    ),
    (
        {"value": torch.zeros(2, 2, 6)},
        ValueError,
        "value must begin with the shape of key, [2, 3]; got [2, 2, 6].",
    ),
    ({"key_mask": [[True] * 3] * 2}, TypeError, "key_mask must be a bool tensor; got list."),
    (
        {"key_mask": torch.ones(2, 3)},
        TypeError,
        "key_mask must be a bool tensor; got torch.float32.",
    ),
    (
        {"key_mask": torch.ones(2, 5, dtype=torch.bool)},
        ValueError,
        "key_mask must have shape [batch, keys] = [2, 3]; got [2, 5].",
    ),
    (
        {"key_mask": torch.ones(2, 3, dtype=torch.bool, device="meta")},
        ValueError,
        "key_mask must be on the device of key, cpu; got meta.",
    ),
    (
        {"key_mask": mask([1, 0, 1], [0, 0, 0])},
        ValueError,
        "key_mask must have a true key in every batch entry; entries [1] of 2 have none.",
    ),
    ({"scale": "1"}, TypeError, "scale must be a number; got str."),
    ({"scale": True}, TypeError, "scale must be a number; got bool."),
    ({"scale": torch.ones(())}, TypeError, "scale must be a number; got Tensor."),
    ({"scale": float("nan")}, ValueError, "scale must be finite; got nan."),
    ({"scale": float("-inf")}, ValueError, "scale must be finite; got -inf."),
    (
        {"backend": "cuda"},
        ValueError,
        "backend must be one of auto, reference, torch, triton; got 'cuda'.",
    ),
]

TAIL = [
    ({"attended": [[[[0.0]]]]}, TypeError, "attended must be a tensor; got list."),
    ({"weight": None}, TypeError, "weight must be a tensor; got NoneType."),
    ({"bias": 0.0}, TypeError, "bias must be a tensor; got float."),
    (
        {"attended": torch.zeros(2, 5, 3, 4, dtype=torch.int32)},
        TypeError,
        "attended must have one of the dtypes float64, float32, bfloat16, float16; got torch.int32.",
    ),
    (
        {"weight": torch.zeros(6, 4, dtype=torch.bfloat16)},
        TypeError,
        "weight must have the dtype of attended, torch.float32; got torch.bfloat16.",
    ),
    (
        {"bias": torch.zeros(6, device="meta")},
        ValueError,
        "bias must be on the device of attended, cpu; got meta.",
    ),
    (
        {"attended": torch.zeros(2, 15, 4)},
        ValueError,
        "attended must have shape [batch, places, words, channels] with at least one of each; "
        "got [2, 15, 4].",
    ),
    (
        {"attended": torch.zeros(2, 5, 0, 4)},
        ValueError,
        "attended must have shape [batch, places, words, channels] with at least one of each; "
        "got [2, 5, 0, 4].",
    ),
    (
        {"weight": torch.zeros(4, 6)},
        ValueError,
        "weight must have shape [channels, 4] with at least one channel; got [4, 6].",
    ),
    (
        {"weight": torch.zeros(0, 4)},
        ValueError,
        "weight must have shape [channels, 4] with at least one channel; got [0, 4].",
    ),
    (
        {"weight": torch.zeros(4)},
        ValueError,
        "weight must have shape [channels, 4] with at least one channel; got [4].",
    ),
    (
        {"bias": torch.zeros(4)},
        ValueError,
        "bias must have shape [channels] = [6]; got [4].",
    ),
    (
        {"word_mask": torch.ones(2, 3)},
        TypeError,
        "word_mask must be a bool tensor; got torch.float32.",
    ),
    (
        {"word_mask": torch.ones(2, 5, dtype=torch.bool)},
        ValueError,
        "word_mask must have shape [batch, words] = [2, 3]; got [2, 5].",
    ),
    (
        {"word_mask": torch.ones(2, 3, dtype=torch.bool, device="meta")},
        ValueError,
        "word_mask must be on the device of attended, cpu; got meta.",
    ),
    (
        {"word_mask": mask([0, 0, 0], [0, 1, 0])},
        ValueError,
        "word_mask must have a true word in every expression; expressions [0] of 2 have none.",
    ),
    ({"relu": "yes"}, TypeError, "relu must be a bool; got str."),
    (
        {"backend": None},
        ValueError,
        "backend must be one of auto, reference, torch, triton; got None.",
    ),
]


@pytest.mark.parametrize(("changed", "kind", "expression"), ATTENTION)
def test_attention(changed: dict[str, Any], kind: type[Exception], expression: str) -> None:
    with pytest.raises(kind, match=f"^{re.escape(expression)}$"):
        joint_attention(**attention_arguments(**changed))


@pytest.mark.parametrize(("changed", "kind", "expression"), TAIL)
def test_tail(changed: dict[str, Any], kind: type[Exception], expression: str) -> None:
    with pytest.raises(kind, match=f"^{re.escape(expression)}$"):
        joint_attention_tail(**tail_arguments(**changed))


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
def test_right_arguments_pass(backend: str) -> None:
    attended = joint_attention(
        **attention_arguments(key_mask=mask([1, 0, 1], [0, 0, 1])), scale=2, backend=backend
    )
    assert attended.shape == (2, 5, 6)
    for changed in ({}, {"bias": None, "word_mask": mask([1, 0, 1], [0, 0, 1]), "relu": True}):
        result = joint_attention_tail(**tail_arguments(**changed), backend=backend)
        assert result.shape == (2, 5, 6)


def test_auto_is_the_torch_backend_on_the_cpu() -> None:
    for public, case in ((joint_attention, draw_joint()), (joint_attention_tail, draw_tail())):

        def named(*arguments: Any, public: Any = public, **options: Any) -> Tensor:
            return public(*arguments, **options, backend="torch")

        for one, other in zip(run_joint(public, case), run_joint(named, case), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("is_cuda", [True, False])
@pytest.mark.parametrize(
    ("dtype", "has_kernels"),
    [
        (torch.float64, False),
        (torch.float32, True),
        (torch.bfloat16, True),
        (torch.float16, True),
    ],
    ids=str,
)
def test_what_auto_stands_for(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    has_kernels: bool,
    is_cuda: bool,
    installed: bool,
) -> None:
    found = SimpleNamespace() if installed else None
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    device = torch.device("cuda" if is_cuda else "cpu")
    tensor = SimpleNamespace(is_cuda=is_cuda, dtype=dtype, device=device)
    backends._obstacle.cache_clear()
    backend = backends.automatic_backend(tensor)  # type: ignore[arg-type]
    backends._obstacle.cache_clear()
    assert backend == ("triton" if has_kernels and is_cuda and installed else "torch")
    assert backend in BACKENDS


def test_the_triton_backend_is_given_the_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """By name and in order, on the CPU too: what is asked for by name is not replaced."""
    given: list[tuple[Any, ...]] = []

    def record(*arguments: Any) -> Tensor:
        given.append(arguments)
        return arguments[0]

    ops = ModuleType("cmsa_fast.kernels.joint_attention.ops")
    ops.joint_attention = ops.joint_attention_tail = record  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, ops.__name__, ops)
    monkeypatch.setattr(kernels, "joint_ops", ops, raising=False)

    attention = attention_arguments(key_mask=mask([1, 0, 1], [0, 0, 1]))
    joint_attention(**attention, scale=2, backend="triton")
    tail = tail_arguments(word_mask=mask([1, 0, 1], [0, 0, 1]))
    joint_attention_tail(**tail, relu=True, backend="triton")
    for found, expected in zip(
        given, ((*attention.values(), 2.0), (*tail.values(), True)), strict=True
    ):
        assert len(found) == len(expected)
        assert all(one is other or one == other for one, other in zip(found, expected, strict=True))
