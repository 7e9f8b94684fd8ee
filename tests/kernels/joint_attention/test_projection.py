"""The eager tail of the joint attention against the literal form: parity, padding and memory."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.joint_oracle import draw_tail, poisoned
from support.oracle import Function, assert_close, assert_identical, assert_within_budget, run
from support.recorders import largest_tensors, saved_for_backward
from torch import Tensor

from cmsa_fast.kernels import joint_attention_tail, reference
from cmsa_fast.kernels.joint_attention import eager, projection_eager

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SEEDS = range(11)


def tail(*arguments: Any, relu: bool) -> Tensor:
    return joint_attention_tail(*arguments, relu=relu, backend="torch")


pytestmark = pytest.mark.parametrize("relu", [False, True], ids=["linear", "relu"])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "sizes",  # places, words, width, channels, batch
    [
        (1, 1, 5, 3, 1),
        (1, 4, 7, 7, 2),
        (17, 1, 7, 9, 3),
        (2, 2, 1, 1, 1),
        (13, 5, 7, 40, 4),
        (37, 19, 33, 1, 2),
    ],
    ids=str,
)
def test_sizes(sizes: tuple[int, ...], dtype: torch.dtype, bias: bool, relu: bool) -> None:
    options = {"relu": relu, "bias": bias, "dtype": dtype}
    assert_within_budget(tail, [draw_tail(*sizes, **options, seed=seed) for seed in range(3)])


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_blocks(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, masked: bool, relu: bool) -> None:
    """Blocks of at most three of 13 places, and of one."""
    for elements in (3 * 6 * 11, 1):
        monkeypatch.setattr(projection_eager, "_BLOCK", elements)
        cases = [draw_tail(relu=relu, masked=masked, dtype=dtype, seed=seed) for seed in SEEDS]
        assert_within_budget(tail, cases)


@pytest.mark.parametrize("spread", [1e-4, 1e3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_small_and_large_values(dtype: torch.dtype, spread: float, relu: bool) -> None:
    cases = [draw_tail(relu=relu, spread=spread, dtype=dtype, seed=seed) for seed in SEEDS]
    assert_within_budget(tail, cases)


@pytest.mark.parametrize("function", [tail, reference.joint_attention_tail])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_padding_has_no_influence(function: Function, dtype: torch.dtype, relu: bool) -> None:
    case = draw_tail(batch=4, relu=relu, dtype=dtype)
    expected = run(function, poisoned(case, 0.0))
    for value in (math.nan, math.inf, -math.inf, torch.finfo(dtype).max):
        assert_identical(expected, run(function, poisoned(case, value)))
    by_word = expected[1].transpose(1, 2)
    assert not by_word[~case.mask].any()
    assert by_word[case.mask].any()


def test_no_mask_equals_a_mask_of_real_words(relu: bool) -> None:
    case = draw_tail(masked=False, relu=relu, dtype=torch.float64)
    everywhere = torch.ones(2, case["attended"].shape[2], dtype=torch.bool)
    assert_close(run(tail, case), run(tail, replace(case, mask=everywhere)), tolerance=1e-13)


def test_relu_has_zero_gradient_at_zero(relu: bool) -> None:
    """As `torch.relu`; without it the gradient is not zero."""
    case = draw_tail(bias=False, relu=relu)
    case = case.with_inputs(weight=torch.zeros_like(case["weight"]))
    _, _, grad_weight = run(tail, case)
    assert grad_weight.any() == (not relu)


def test_no_expression(relu: bool) -> None:
    case = draw_tail(masked=False, batch=0, relu=relu)
    result, grad_attended, grad_weight, grad_bias = run(tail, case)
    assert result.shape == (0, 13, 9)
    assert grad_attended.shape == (0, 13, 6, 11)
    assert not grad_weight.any()
    assert not grad_bias.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_padded_words_may_be_kept(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, relu: bool) -> None:
    """As on a GPU, where the host would wait for their number."""
    case = poisoned(draw_tail(batch=4, relu=relu, dtype=dtype), math.nan)
    expected = run(tail, case)
    monkeypatch.setattr(eager, "_INDEXED_DEVICES", ())
    outputs = run(tail, case)
    assert_close(expected, outputs, tolerance=1e-12 if dtype == torch.float64 else 1e-2)
    assert not outputs[1].transpose(1, 2)[~case.mask].any()


PLACES, WORDS, CHANNELS, BLOCK = 101, 13, 64, 2**14


@pytest.mark.parametrize("masked", [True, False])
def test_projected_tokens_are_never_held(monkeypatch: pytest.MonkeyPatch, masked: bool, relu: bool) -> None:
    monkeypatch.setattr(projection_eager, "_BLOCK", BLOCK)
    case = draw_tail(PLACES, WORDS, 4, CHANNELS, masked=masked, relu=relu)
    assert max(largest_tensors(tail, case)) <= BLOCK
    forward, _ = largest_tensors(reference.joint_attention_tail, case)
    assert forward >= 2 * PLACES * WORDS * CHANNELS


def test_kept_for_backward(relu: bool) -> None:
    """With ReLU the inputs; without it the mean over words replaces the attended values."""
    case = draw_tail(PLACES, WORDS, 4, CHANNELS, relu=relu)
    inputs = [part.requires_grad_() for part in case.inputs]
    with saved_for_backward() as saved:
        tail(*inputs, case.mask, relu=relu)
    largest = 2 * PLACES * 4 * (WORDS if relu else 1)
    assert max(part.numel() for part in saved) == largest
