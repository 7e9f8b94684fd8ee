"""The eager joint attention against the literal form: parity, masks and memory."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.joint_oracle import (
    draw_joint,
    poisoned,
    with_constant_channel,
    with_key_offset,
    with_largest_logit,
)
from support.oracle import Function, assert_close, assert_identical, assert_within_budget, errors, exact, run
from support.recorders import largest_tensors, saved_for_backward
from torch import Tensor

from cmsa_fast.kernels import joint_attention, reference
from cmsa_fast.kernels.joint_attention import eager

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SEEDS = range(11)


def attention(*arguments: Any, **options: Any) -> Tensor:
    return joint_attention(*arguments, **options, backend="torch")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "sizes",  # queries, keys, width, value width, batch
    [
        (1, 1, 5, 3, 1),
        (1, 9, 7, 7, 2),
        (19, 1, 7, 9, 3),
        (2, 2, 1, 1, 1),
        (13, 57, 7, 9, 4),
        (61, 23, 33, 19, 3),
        (37, 141, 130, 1, 2),
    ],
    ids=str,
)
def test_sizes(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    cases = [draw_joint(*sizes, spread=0.7, dtype=dtype, seed=seed) for seed in range(3)]
    assert_within_budget(attention, cases)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_blocks(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, masked: bool) -> None:
    """Blocks of at most five of 37 queries, and of one."""
    cases = [draw_joint(value_width=7, masked=masked, dtype=dtype, seed=seed) for seed in SEEDS]
    for elements in (5 * 53, 1):
        monkeypatch.setattr(eager, "_BLOCK", elements)
        assert_within_budget(attention, cases)


@pytest.mark.parametrize("scale", [0.25, -1.5, 0.0, 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scale(dtype: torch.dtype, scale: float) -> None:
    cases = [draw_joint(scale=scale, dtype=dtype, seed=seed) for seed in SEEDS]
    assert_within_budget(attention, cases)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [30.0, 300.0, 1e4])
def test_large_logits(size: float, dtype: torch.dtype) -> None:
    cases = [with_largest_logit(draw_joint(dtype=dtype, seed=seed), size) for seed in range(21)]
    assert_within_budget(attention, cases)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_constant_channel_makes_all_logits_large(sign: float) -> None:
    cases = [with_constant_channel(draw_joint(seed=seed), sign) for seed in SEEDS]
    assert_within_budget(attention, cases)


@pytest.mark.parametrize("masked", [True, False])
def test_common_offset_of_keys_costs_no_accuracy(masked: bool) -> None:
    """The literal form loses three digits."""
    case = with_key_offset(draw_joint(masked=masked), 1e3)
    truth = exact(case)
    case = poisoned(case, math.nan) if masked else case
    assert max(errors(attention, case, truth)) < 1e-6
    assert min(errors(reference.token_attention, case, truth)) > 3e-5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinite_keys_reach_the_rows_that_they_reach_in_the_literal_form(value: float) -> None:
    case = draw_joint(masked=False)
    case["key"][0, 3, 2] = value
    result, literal = (function(*case.inputs, None) for function in (attention, reference.token_attention))
    torch.testing.assert_close(result, literal, equal_nan=True)
    assert literal[0].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_masked_keys_may_be_kept(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """As on a GPU, where the host would wait for their number."""
    case = poisoned(draw_joint(29, 41, 11, 5, batch=4, dtype=dtype), math.nan)
    expected = run(attention, case)
    monkeypatch.setattr(eager, "_INDEXED_DEVICES", ())
    outputs = run(attention, case)
    assert_close(expected, outputs, tolerance=1e-12 if dtype == torch.float64 else 1e-2)
    for gradient in outputs[2:]:
        assert not gradient[~case.mask].any()


@pytest.mark.parametrize("spread", [1e-30, 1e-3, 1e3, 1e9, 1e15])
def test_finite_inputs_give_finite_results(spread: float) -> None:
    for part in run(attention, draw_joint(spread=spread)):
        assert part.isfinite().all()


@pytest.mark.parametrize("function", [attention, reference.token_attention])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_keys_have_no_influence(function: Function, dtype: torch.dtype) -> None:
    case = draw_joint(29, 41, 11, 5, batch=4, dtype=dtype)
    expected = run(function, poisoned(case, 0.0))
    for value in (math.nan, math.inf, -math.inf, torch.finfo(dtype).max):
        assert_identical(expected, run(function, poisoned(case, value)))
    for gradient in expected[2:]:
        assert not gradient[~case.mask].any()
        assert gradient[case.mask].any()


def test_masked_keys_equal_absent_keys() -> None:
    case = poisoned(draw_joint(29, 41, 11, 5, batch=4, dtype=torch.float64), math.nan)
    outputs = run(attention, case)
    for entry, mask in enumerate(case.mask):
        query, key, value = (case[name][entry, None] for name in ("query", "key", "value"))
        inputs = (query, key[:, mask], value[:, mask])
        alone = replace(case, inputs=inputs, mask=None, grad=case.grad[entry, None])
        own = [part[entry, None] for part in outputs]
        own[2:] = [part[:, mask] for part in own[2:]]
        assert_close(run(attention, alone), own)


def test_no_mask_equals_a_mask_of_true_keys() -> None:
    case = draw_joint(masked=False)
    everywhere = torch.ones(case["key"].shape[:2], dtype=torch.bool)
    assert_identical(run(attention, case), run(attention, replace(case, mask=everywhere)))


def test_empty_batch() -> None:
    for part in run(attention, draw_joint(masked=False, batch=0)):
        assert part.shape[0] == 0


QUERIES, KEYS, BLOCK = 401, 307, 2**12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("masked", [True, False])
def test_no_array_over_queries_and_keys(monkeypatch: pytest.MonkeyPatch, masked: bool, dtype: torch.dtype) -> None:
    monkeypatch.setattr(eager, "_BLOCK", BLOCK)
    case = draw_joint(QUERIES, KEYS, 4, masked=masked, dtype=dtype)
    for elements in largest_tensors(attention, case):
        assert BLOCK / 2 < elements <= BLOCK
    for elements in largest_tensors(reference.token_attention, case):
        assert elements >= QUERIES * KEYS


def test_only_the_inputs_are_kept_for_backward() -> None:
    case = draw_joint(QUERIES, KEYS, 4)
    inputs = [part.requires_grad_() for part in case.inputs]
    with saved_for_backward() as saved:
        attention(*inputs, case.mask)
    assert {part.data_ptr() for part in saved} == {part.data_ptr() for part in (*inputs, case.mask)}
