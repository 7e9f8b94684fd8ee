"""The joint attention in blocks of queries against the literal form."""

from __future__ import annotations

import math

import pytest
import torch
from kernels.separable_attention.test_memory import LargestTensor
from support.joint_oracle import (
    JointCase,
    assert_joint_within_budget,
    draw_joint,
    poisoned,
    run_joint,
)
from torch import Tensor

from cmsa_fast.kernels import joint_attention
from cmsa_fast.kernels.joint_attention import eager as joint

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SEEDS = range(11)


def attention(*arguments: Tensor, **options: float) -> Tensor:
    return joint_attention(*arguments, **options, backend="torch")


def literal(*arguments: Tensor, **options: float) -> Tensor:
    return joint_attention(*arguments, **options, backend="reference")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("queries", "keys", "width", "value_width", "batch"),
    [
        (1, 1, 5, 3, 1),
        (1, 9, 7, 7, 2),
        (19, 1, 7, 9, 3),
        (2, 2, 1, 1, 1),
        (13, 57, 7, 9, 4),
        (61, 23, 33, 19, 3),
        (53, 53, 48, 64, 1),
        (37, 141, 130, 1, 2),
    ],
)
def test_sizes(
    queries: int, keys: int, width: int, value_width: int, batch: int, dtype: torch.dtype
) -> None:
    assert_joint_within_budget(
        attention,
        [
            draw_joint(queries, keys, width, value_width, batch, spread=0.7, dtype=dtype, seed=seed)
            for seed in range(3)
        ],
    )


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_blocks(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, masked: bool) -> None:
    """Blocks of five or fewer of 37 queries, and of a single one."""
    for elements in (5 * 53, 1):
        monkeypatch.setattr(joint, "_BLOCK", elements)
        cases = [draw_joint(value_width=7, masked=masked, dtype=dtype, seed=seed) for seed in SEEDS]
        assert_joint_within_budget(attention, cases)


@pytest.mark.parametrize("scale", [0.25, -1.5, 0.0, 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scale(dtype: torch.dtype, scale: float) -> None:
    cases = [draw_joint(scale=scale, dtype=dtype, seed=seed) for seed in SEEDS]
    assert_joint_within_budget(attention, cases)


def with_largest_logit(case: JointCase, size: float) -> JointCase:
    largest = float((case["query"].double() @ case["key"].double().mT).abs().max())
    factor = (size / largest) ** 0.5
    return case.with_inputs(query=case["query"] * factor, key=case["key"] * factor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [30.0, 300.0, 1e4])
def test_large_logits(size: float, dtype: torch.dtype) -> None:
    assert_joint_within_budget(
        attention,
        [with_largest_logit(draw_joint(dtype=dtype, seed=seed), size) for seed in range(21)],
    )


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_all_logits_at_one_extreme(sign: float) -> None:
    """A constant channel of 100 in queries and keys puts every logit at +-1e4, with differences of order 1."""
    cases = []
    for seed in SEEDS:
        case = draw_joint(seed=seed)
        query, key = case["query"].clone(), case["key"].clone()
        query[..., 0], key[..., 0] = 100, sign * 100
        cases.append(case.with_inputs(query=query, key=key))
    assert_joint_within_budget(attention, cases)


@pytest.mark.parametrize("spread", [1e-30, 1e-3, 1e3, 1e9, 1e15])
def test_finite_in_finite_out(spread: float) -> None:
    for part in run_joint(attention, draw_joint(spread=spread)):
        assert part.isfinite().all()


@pytest.mark.parametrize("function", [attention, literal])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_keys_change_no_bit(function: object, dtype: torch.dtype) -> None:
    case = draw_joint(29, 41, 11, 5, batch=4, dtype=dtype)
    assert case.mask is not None
    zeros, *others = (
        run_joint(function, poisoned(case, value))  # type: ignore[arg-type]
        for value in (0.0, math.nan, math.inf, -math.inf, torch.finfo(dtype).max)
    )
    for other in others:
        for expected, found in zip(zeros, other, strict=True):
            assert torch.equal(expected, found)
    for gradient in zeros[2:]:
        assert not gradient[~case.mask].any()
        assert gradient[case.mask].any()


def test_masked_keys_may_as_well_be_absent() -> None:
    case = poisoned(draw_joint(29, 41, 11, 5, batch=4, dtype=torch.float64), math.nan)
    found = run_joint(attention, case)
    for entry, mask in enumerate(case.mask):  # type: ignore[arg-type]
        query, key, value = (case[name][entry, None] for name in ("query", "key", "value"))
        inputs = (query, key[:, mask], value[:, mask])
        alone = JointCase(case.operation, inputs, None, case.grad[entry, None])
        own = [part[entry, None] for part in found]
        own[2:] = [part[:, mask] for part in own[2:]]
        for expected, part in zip(run_joint(attention, alone), own, strict=True):
            torch.testing.assert_close(part, expected, rtol=1e-12, atol=1e-12)


def test_no_mask_is_a_mask_of_true_keys() -> None:
    case = draw_joint(masked=False)
    everywhere = torch.ones(case["key"].shape[:2], dtype=torch.bool)
    masked = JointCase(case.operation, case.inputs, everywhere, case.grad)
    for one, other in zip(run_joint(attention, case), run_joint(attention, masked), strict=True):
        assert torch.equal(one, other)


def test_no_batch_entry() -> None:
    for part in run_joint(attention, draw_joint(masked=False, batch=0)):
        assert part.shape[0] == 0


QUERIES, KEYS, BLOCK = 401, 307, 2**12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("masked", [True, False])
def test_no_array_over_queries_and_keys(
    monkeypatch: pytest.MonkeyPatch, masked: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(joint, "_BLOCK", BLOCK)
    case = draw_joint(QUERIES, KEYS, 4, masked=masked, dtype=dtype)
    for function, holds_all in ((attention, False), (literal, True)):
        inputs = [part.detach().requires_grad_() for part in case.inputs]  # type: ignore[union-attr]
        with LargestTensor() as forward:
            result = function(*inputs, case.mask)  # type: ignore[arg-type]
        with LargestTensor() as backward:
            torch.autograd.grad(result, inputs, case.grad)
        for recorder in (forward, backward):
            if holds_all:
                assert recorder.elements >= QUERIES * KEYS
            else:
                assert BLOCK / 2 < recorder.elements <= BLOCK


def test_only_the_inputs_are_kept_for_backward() -> None:
    case = draw_joint(QUERIES, KEYS, 4)
    inputs = [part.requires_grad_() for part in case.inputs]  # type: ignore[union-attr]
    kept: set[int] = set()

    def keep(part: Tensor) -> Tensor:
        kept.add(part.data_ptr())
        return part

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda part: part):
        attention(*inputs, case.mask)  # type: ignore[arg-type]
    assert kept == {part.data_ptr() for part in (*inputs, case.mask)}  # type: ignore[union-attr]
