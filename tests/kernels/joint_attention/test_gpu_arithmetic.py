"""The joint attention's Triton kernels in bfloat16, float16 and TF32, with a GPU's arithmetic emulated."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.joint_oracle import draw_joint, draw_tail, poisoned, with_key_offset, with_largest_logit
from support.oracle import Case, assert_identical, assert_within_budget, errors, exact, run
from torch import Tensor

pytest.importorskip("triton", reason="the kernels need Triton, which is not installed")

from support.gpu_arithmetic import TF32_EPS, gpu_arithmetic, tf32_products  # noqa: E402

from cmsa_fast.kernels import joint_attention, joint_attention_tail  # noqa: E402
from cmsa_fast.kernels.triton.launch import interpreted  # noqa: E402

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32}
pytestmark = [
    pytest.mark.skipif(not interpreted(), reason="the kernels run on a GPU"),
    pytest.mark.parametrize("arithmetic", list(DTYPES)),
]


@pytest.fixture(autouse=True)
def _on_a_gpu(arithmetic: str) -> Iterator[None]:
    with gpu_arithmetic(), tf32_products() if arithmetic == "tf32" else contextlib.nullcontext():
        yield


def attention(*arguments: Any, **options: Any) -> Tensor:
    return joint_attention(*arguments, **options, backend="triton")


def tail(*arguments: Any, **options: Any) -> Tensor:
    return joint_attention_tail(*arguments, **options, backend="triton")


def eps(arithmetic: str) -> float:
    return TF32_EPS if arithmetic == "tf32" else torch.finfo(DTYPES[arithmetic]).eps


def draw(arithmetic: str, seed: int = 0) -> Case:
    return draw_joint(18, 35, 17, 7, 1, scale=0.5, dtype=DTYPES[arithmetic], seed=seed)


def test_attention(arithmetic: str) -> None:
    assert_within_budget(attention, [draw(arithmetic, seed) for seed in range(2)], eps(arithmetic))


@pytest.mark.parametrize("size", [30.0, 300.0])
def test_attention_with_large_logits(size: float, arithmetic: str) -> None:
    cases = [with_largest_logit(draw(arithmetic, seed), size) for seed in range(2)]
    assert_within_budget(attention, cases, eps(arithmetic))


def test_common_offset_of_keys_costs_no_accuracy(arithmetic: str) -> None:
    case = with_key_offset(draw(arithmetic), 1e3)
    truth = exact(case)
    assert max(errors(attention, poisoned(case, math.nan), truth)) < 2 * eps(arithmetic)


def test_rows_with_all_their_weight_on_one_key_have_no_gradient(arithmetic: str) -> None:
    case = draw_joint(18, 19, 19, 21, 1, masked=False, dtype=DTYPES[arithmetic])
    identity = 100 * torch.eye(19)
    query = (0.1 * case["query"].float() + identity[torch.arange(18) % 7]).to(case["query"].dtype)
    key = (case["key"].float() + identity).to(case["key"].dtype)
    _, grad_query, grad_key, _ = run(attention, case.with_inputs(query=query, key=key))
    assert not grad_query.any()
    assert not grad_key.any()


def test_tail(arithmetic: str) -> None:
    cases = [draw_tail(17, 3, 18, 17, relu=True, dtype=DTYPES[arithmetic], seed=seed) for seed in range(2)]
    assert_within_budget(tail, cases, eps(arithmetic))


def test_operands_of_tf32_products_are_rounded_to_nearest(arithmetic: str) -> None:
    """Inputs that are rounded beforehand change nothing; truncation would."""
    if arithmetic != "tf32":
        pytest.skip("16-bit operands are not rounded")
    for function, case in ((attention, draw_joint(18, 19, 17, 7)), (tail, draw_tail(5, 3, 17, 9, relu=True))):
        names = [name for name in case.given if name not in ("key", "bias")]
        nearest = {name: _round(case[name]) for name in names}
        assert all(not torch.equal(case[name], part) for name, part in nearest.items())
        assert_identical(run(function, case), run(function, case.with_inputs(**nearest)))


def _round(part: Tensor) -> Tensor:
    """The nearest number with 10 bits of mantissa."""
    mantissa, exponent = torch.frexp(part)
    return torch.ldexp((mantissa * 2**11).round(), exponent - 11)
