"""The joint attention's tail, which never holds the projected tokens, against the literal form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from kernels.separable_attention.test_memory import LargestTensor
from support.joint_oracle import (
    JointCase,
    assert_joint_within_budget,
    draw_tail,
    poisoned,
    run_joint,
)
from torch import Tensor

from cmsa_fast.kernels import joint_attention_tail
from cmsa_fast.kernels.joint_attention import projection_eager as joint_tail

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SEEDS = range(11)


def tail(*arguments: Any, relu: bool) -> Tensor:
    return joint_attention_tail(*arguments, relu=relu, backend="torch")


def literal(*arguments: Any, relu: bool) -> Tensor:
    return joint_attention_tail(*arguments, relu=relu, backend="reference")


pytestmark = pytest.mark.parametrize("relu", [False, True], ids=["linear", "relu"])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("places", "words", "width", "channels", "batch"),
    [
        (1, 1, 5, 3, 1),
        (1, 4, 7, 7, 2),
        (17, 1, 7, 9, 3),
        (2, 2, 1, 1, 1),
        (13, 5, 7, 40, 4),
        (37, 19, 33, 1, 2),
    ],
)
def test_sizes(
    places: int,
    words: int,
    width: int,
    channels: int,
    batch: int,
    dtype: torch.dtype,
    bias: bool,
    relu: bool,
) -> None:
    sizes = (places, words, width, channels, batch)
    assert_joint_within_budget(
        tail,
        [draw_tail(*sizes, relu=relu, bias=bias, dtype=dtype, seed=seed) for seed in range(3)],
    )


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_blocks(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, masked: bool, relu: bool
) -> None:
    """Blocks of three or fewer of 13 places, and of a single one."""
    for elements in (3 * 6 * 11, 1):
        monkeypatch.setattr(joint_tail, "_BLOCK", elements)
        cases = [draw_tail(relu=relu, masked=masked, dtype=dtype, seed=seed) for seed in SEEDS]
        assert_joint_within_budget(tail, cases)


@pytest.mark.parametrize("spread", [1e-4, 1e3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_small_and_large_values(dtype: torch.dtype, spread: float, relu: bool) -> None:
    cases = [draw_tail(relu=relu, spread=spread, dtype=dtype, seed=seed) for seed in SEEDS]
    assert_joint_within_budget(tail, cases)


@pytest.mark.parametrize("function", [tail, literal])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_padding_changes_no_bit(function: Any, dtype: torch.dtype, relu: bool) -> None:
    case = draw_tail(batch=4, relu=relu, dtype=dtype)
    assert case.mask is not None
    zeros, *others = (
        run_joint(function, poisoned(case, value))
        for value in (0.0, math.nan, math.inf, -math.inf, torch.finfo(dtype).max)
    )
    for other in others:
        for expected, found in zip(zeros, other, strict=True):
            assert torch.equal(expected, found)
    by_word = zeros[1].transpose(1, 2)
    assert not by_word[~case.mask].any()
    assert by_word[case.mask].any()


def test_no_mask_is_a_mask_of_true_words(relu: bool) -> None:
    case = draw_tail(masked=False, relu=relu, dtype=torch.float64)
    everywhere = torch.ones(2, case["attended"].shape[2], dtype=torch.bool)
    masked = JointCase(case.operation, case.inputs, everywhere, case.grad, case.options)
    for one, other in zip(run_joint(tail, case), run_joint(tail, masked), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


def test_relu_has_no_gradient_where_it_is_at_zero(relu: bool) -> None:
    """As `torch.relu`; without it the gradient passes."""
    case = draw_tail(bias=False, relu=relu)
    case = case.with_inputs(weight=torch.zeros_like(case["weight"]))
    _, _, of_weight = run_joint(tail, case)
    assert of_weight.any() == (not relu)


def test_no_expression(relu: bool) -> None:
    case = draw_tail(masked=False, batch=0, relu=relu)
    result, of_attended, of_weight, of_bias = run_joint(tail, case)
    assert result.shape == (0, 13, 9)
    assert of_attended.shape == (0, 13, 6, 11)
    assert not of_weight.any()
    assert not of_bias.any()


PLACES, WORDS, CHANNELS, BLOCK = 101, 13, 64, 2**14


@pytest.mark.parametrize("masked", [True, False])
def test_the_projected_tokens_are_never_held(
    monkeypatch: pytest.MonkeyPatch, masked: bool, relu: bool
) -> None:
    monkeypatch.setattr(joint_tail, "_BLOCK", BLOCK)
    case = draw_tail(PLACES, WORDS, 4, CHANNELS, masked=masked, relu=relu)
    for function, holds_all in ((tail, False), (literal, True)):
        inputs = [part.detach().requires_grad_() for part in case.inputs]  # type: ignore[union-attr]
        with LargestTensor() as forward:
            result = function(*inputs, case.mask, relu=relu)
        with LargestTensor() as backward:
            torch.autograd.grad(result, inputs, case.grad)
        if holds_all:
            assert forward.elements >= 2 * PLACES * WORDS * CHANNELS
        else:
            assert max(forward.elements, backward.elements) <= BLOCK


def test_what_is_kept_for_backward(relu: bool) -> None:
    """The inputs, and without ReLU the mean over words in the place of the attended values."""
    case = draw_tail(PLACES, WORDS, 4, CHANNELS, relu=relu)
    inputs = [part.requires_grad_() for part in case.inputs]  # type: ignore[union-attr]
    kept: list[Tensor] = []

    def keep(part: Tensor) -> Tensor:
        kept.append(part)
        return part

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda part: part):
        tail(*inputs, case.mask, relu=relu)
    assert kept
    largest = 2 * PLACES * 4 * (WORDS if relu else 1)
    assert max(part.numel() for part in kept) == largest
