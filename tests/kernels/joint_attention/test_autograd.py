"""Derivatives of the eager joint attention and its tail: finite differences, single inputs, autocast, views."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.joint_oracle import ATTENTION, draw_joint, draw_tail
from support.oracle import Case, assert_close, assert_identical, exact
from support.oracle import run as run_function
from torch import Tensor

from cmsa_fast.kernels import joint_attention, joint_attention_tail
from cmsa_fast.kernels.joint_attention import eager, projection_eager

Draw = Callable[..., Case]


def draw_relu_tail(*sizes: int, **options: Any) -> Case:
    return draw_tail(*sizes, relu=True, **options)


pytestmark = pytest.mark.parametrize(
    "draw", [draw_joint, draw_tail, draw_relu_tail], ids=["attention", "linear tail", "relu tail"]
)


def function_of(case: Case, backend: str = "torch") -> Callable[..., Tensor]:
    public = joint_attention if case.operation is ATTENTION else joint_attention_tail

    def function(*arguments: Any, **options: Any) -> Tensor:
        return public(*arguments, **options, backend=backend)

    return function


def run(case: Case) -> list[Tensor]:
    return run_function(function_of(case), case)


def small(draw: Draw) -> Case:
    if draw is draw_joint:
        return draw(5, 7, 3, 2, batch=3, scale=0.8, dtype=torch.float64)
    return draw(3, 5, 3, 4, batch=3, dtype=torch.float64)


def test_gradcheck(monkeypatch: pytest.MonkeyPatch, draw: Draw) -> None:
    for module in (eager, projection_eager):
        monkeypatch.setattr(module, "_BLOCK", 20)
    case = small(draw)
    function = function_of(case)

    def attention(*inputs: Tensor) -> Tensor:
        return function(*inputs, case.mask, **case.options)

    inputs = [part.requires_grad_() for part in case.inputs if part is not None]
    assert torch.autograd.gradcheck(attention, inputs, eps=1e-6, atol=1e-6)


def test_literal_form_equals_the_oracle_in_numpy(draw: Draw) -> None:
    case = small(draw)
    literal = run_function(function_of(case, "reference"), case)
    for outputs, expected in zip(literal, exact(case), strict=True):
        np.testing.assert_allclose(outputs.numpy(), expected.astype(float), rtol=1e-11, atol=1e-12)


def test_reference_has_a_second_derivative(draw: Draw) -> None:
    case = small(draw)
    function = function_of(case, "reference")

    def attention(*inputs: Tensor) -> Tensor:
        return function(*inputs, case.mask, **case.options)

    inputs = [part.requires_grad_() for part in case.inputs if part is not None]
    assert torch.autograd.gradgradcheck(attention, inputs)


def test_double_backward_raises(draw: Draw) -> None:
    case = small(draw)
    inputs = [part.requires_grad_() for part in case.inputs if part is not None]
    result = function_of(case)(*inputs, case.mask, **case.options)
    gradients = torch.autograd.grad(result, inputs, case.grad, create_graph=True)
    for gradient in gradients:
        with pytest.raises(RuntimeError, match=r"no second derivative.*backend=\"reference\""):
            torch.autograd.grad(gradient.square().sum(), inputs, retain_graph=True)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_gradient_of_a_single_input(draw: Draw, number: int) -> None:
    case = draw()
    expected = run(case)[1 + number]
    inputs = [part.detach() for part in case.inputs if part is not None]
    inputs[number].requires_grad_()
    result = function_of(case)(*inputs, case.mask, **case.options)
    (outputs,) = torch.autograd.grad(result, inputs[number], case.grad)
    assert torch.equal(outputs, expected)


def test_no_graph_without_gradients(draw: Draw) -> None:
    case = draw()
    result = function_of(case)(*case.inputs, case.mask, **case.options)
    assert not result.requires_grad
    assert torch.equal(result, run(case)[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_two_runs_are_bitwise_identical(draw: Draw, dtype: torch.dtype) -> None:
    sizes = (201, 143, 33, 17, 3) if draw is draw_joint else (57, 9, 33, 17, 3)
    case = draw(*sizes, spread=2.0, dtype=dtype)
    assert_identical(run(case), run(case))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_input_is_computed_in_float32(draw: Draw, dtype: torch.dtype) -> None:
    case = draw(dtype=dtype)
    single = run(case.to(torch.float32))
    assert_identical([part.to(dtype) for part in single], run(case))


def test_inputs_are_not_modified(draw: Draw) -> None:
    case = draw(spread=3.0)
    before = [part.clone() for part in (*case.inputs, case.mask, case.grad) if part is not None]
    run(case)
    after = [part for part in (*case.inputs, case.mask, case.grad) if part is not None]
    assert_identical(before, after)


def transposed(part: Tensor) -> Tensor:
    """A tensor with its last two axes swapped in memory, or a vector with stride 2."""
    if part.ndim == 1:
        return torch.stack([part, part.new_full(part.shape, torch.nan)], 1)[:, 0]
    return part.mT.contiguous().mT


def strided(part: Tensor) -> Tensor:
    """Every second element in every axis of a larger tensor that is NaN elsewhere."""
    larger = part.new_full([2 * size for size in part.shape], torch.nan)
    inside = larger[(slice(None, None, 2),) * part.ndim]
    inside.copy_(part)
    return inside


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("layout", [transposed, strided])
def test_layout_has_no_influence(draw: Draw, layout: Callable[[Tensor], Tensor], masked: bool) -> None:
    case = draw(masked=masked, dtype=torch.float64)
    viewed = replace(
        case,
        inputs=tuple(layout(part) for part in case.inputs if part is not None),
        mask=None if case.mask is None else case.mask.T.contiguous().T,
        grad=layout(case.grad),
    )
    assert not any(part.is_contiguous() for part in viewed.inputs if part is not None)
    assert_close(run(case), run(viewed))


@pytest.mark.parametrize("axis", [0, -2, -1])
def test_expanded_inputs(draw: Draw, axis: int) -> None:
    """Stride 0 in one axis of every input that has it, and of the gradient."""
    case = draw(dtype=torch.float64)

    def expand(part: Tensor) -> Tensor:
        return part if part.ndim < -axis else part.narrow(axis, 0, 1).expand(part.shape)

    views = tuple(expand(part) for part in case.inputs if part is not None)
    copies = tuple(part.contiguous() for part in views)
    grad = expand(case.grad)
    expected = run(replace(case, inputs=copies, grad=grad.contiguous()))
    assert_close(expected, run(replace(case, inputs=views, grad=grad)))


def test_gradient_with_stride_zero(draw: Draw) -> None:
    case = draw(dtype=torch.float64)
    inputs = [part.requires_grad_() for part in case.inputs if part is not None]
    outputs = torch.autograd.grad(function_of(case)(*inputs, case.mask, **case.options).sum(), inputs)
    expected = run(replace(case, grad=torch.ones_like(case.grad)))[1:]
    assert_close(expected, list(outputs))


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_casts_the_inputs(draw: Draw, low: torch.dtype, backend: str) -> None:
    case = draw()
    function = function_of(case, backend)
    expected = run_function(function, case.to(low))
    with torch.autocast("cpu", dtype=low):
        outputs = run_function(function, replace(case, grad=case.grad.to(low)))
    assert [part.dtype for part in outputs] == [low] + [torch.float32] * len(outputs[1:])
    assert_identical(expected, [part.to(low) for part in outputs])


def test_backward_may_run_inside_or_after_autocast(draw: Draw) -> None:
    case = draw()
    runs = []
    for inside in (True, False):
        inputs = [part.detach().clone().requires_grad_() for part in case.inputs]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = function_of(case)(*inputs, case.mask, **case.options)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            runs.append(torch.autograd.grad(result, inputs, case.grad.bfloat16()))
    assert_identical(*runs)


def test_autocast_keeps_float64(draw: Draw) -> None:
    case = draw(dtype=torch.float64)
    expected = run(case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_identical(expected, run(case))


def test_autocast_accepts_inputs_of_different_dtypes(draw: Draw) -> None:
    """As a linear layer does: float32 parameters and bfloat16 activations."""
    case = draw()
    low = case.to(torch.bfloat16)
    mixed = replace(case, inputs=(low.inputs[0], *case.inputs[1:]), grad=low.grad)
    expected = run(low)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = run(mixed)
    assert [part.dtype for part in outputs[:3]] == [torch.bfloat16, torch.bfloat16, torch.float32]
    assert_identical(expected, [part.to(torch.bfloat16) for part in outputs])
