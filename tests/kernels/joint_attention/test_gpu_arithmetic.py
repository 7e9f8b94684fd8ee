"""The joint attention's Triton kernels in bfloat16, float16 and TF32, with a GPU's arithmetic emulated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.joint_oracle import draw_joint, draw_tail, with_largest_logit
from support.oracle import Function, assert_within_budget
from torch import Tensor

pytest.importorskip("triton", reason="the kernels need Triton, which is not installed")

from support.gpu_arithmetic import TF32_EPS, gpu_arithmetic, tf32_products  # noqa: E402

from cmsa_fast.kernels import joint_attention, joint_attention_tail  # noqa: E402
from cmsa_fast.kernels.triton.launch import interpreted  # noqa: E402

pytestmark = pytest.mark.skipif(not interpreted(), reason="the kernels run on a GPU")

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32}
each_arithmetic = pytest.mark.parametrize("arithmetic", list(DTYPES))
# Seen on emulated arithmetic: some gradients exceed the budget 1.2 to 2.5 times.
OVER_BUDGET = pytest.mark.xfail(reason="operands are truncated to TF32")
mostly_each_arithmetic = pytest.mark.parametrize(
    "arithmetic", ["bf16", "fp16", pytest.param("tf32", marks=OVER_BUDGET)]
)


@pytest.fixture(autouse=True)
def _on_a_gpu(arithmetic: str) -> Iterator[None]:
    with gpu_arithmetic(), tf32_products() if arithmetic == "tf32" else contextlib.nullcontext():
        yield


def attention(*arguments: Any, scale: float = 1.0) -> Tensor:
    return joint_attention(*arguments, scale=scale, backend="triton")


def tail(*arguments: Any, relu: bool) -> Tensor:
    return joint_attention_tail(*arguments, relu=relu, backend="triton")


def check(function: Function, arithmetic: str, cases: list[Any]) -> None:
    assert_within_budget(function, cases, TF32_EPS if arithmetic == "tf32" else None)


@each_arithmetic
@pytest.mark.parametrize(
    "sizes",  # queries, keys, width, value width, batch
    [(1, 20, 7, 7, 2), (37, 41, 11, 13, 1), (19, 18, 5, 37, 1)],
    ids=str,
)
def test_attention_sizes(sizes: tuple[int, ...], arithmetic: str) -> None:
    cases = [draw_joint(*sizes, scale=0.4, dtype=DTYPES[arithmetic], seed=seed) for seed in range(3)]
    check(attention, arithmetic, cases)


@mostly_each_arithmetic
@pytest.mark.parametrize("size", [30.0, 300.0])
def test_attention_with_large_logits(size: float, arithmetic: str) -> None:
    cases = [draw_joint(17, 21, 13, 7, dtype=DTYPES[arithmetic], seed=seed) for seed in range(5)]
    check(attention, arithmetic, [with_largest_logit(case, size) for case in cases])


@mostly_each_arithmetic
@pytest.mark.parametrize("name", ["key", "value"])
def test_common_offset(name: str, arithmetic: str) -> None:
    cases = []
    for seed in range(5):
        case = draw_joint(17, 21, 13, 7, scale=0.3, dtype=DTYPES[arithmetic], seed=seed)
        cases.append(case.with_inputs(**{name: case[name] + 30}))
    check(attention, arithmetic, cases)


@each_arithmetic
@pytest.mark.parametrize("relu", [True, False])
def test_tail_sizes(relu: bool, arithmetic: str) -> None:
    cases = [draw_tail(18, 3, 7, 19, 2, relu=relu, dtype=DTYPES[arithmetic], seed=seed) for seed in range(3)]
    check(tail, arithmetic, cases)
