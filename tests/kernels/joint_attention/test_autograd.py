"""Derivatives and layouts of the joint attention and its tail: finite differences, some inputs, twice, views."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.joint_oracle import ATTENTION, JointCase, draw_joint, draw_tail, exact, run_joint
from torch import Tensor

from cmsa_fast.kernels import joint_attention, joint_attention_tail
from cmsa_fast.kernels.joint_attention import eager as joint
from cmsa_fast.kernels.joint_attention import projection_eager as joint_tail

Draw = Callable[..., JointCase]


def draw_relu_tail(*sizes: int, **options: Any) -> JointCase:
    return draw_tail(*sizes, relu=True, **options)


pytestmark = pytest.mark.parametrize(
    "draw", [draw_joint, draw_tail, draw_relu_tail], ids=["attention", "linear tail", "relu tail"]
)


def function_of(case: JointCase, backend: str = "torch") -> Callable[..., Tensor]:
    public = joint_attention if case.operation is ATTENTION else joint_attention_tail

    def function(*arguments: Any, **options: Any) -> Tensor:
        return public(*arguments, **options, backend=backend)  # type: ignore[operator]

    return function


def run(case: JointCase) -> list[Tensor]:
    return run_joint(function_of(case), case)


def assert_equal(expected: list[Tensor], found: list[Tensor]) -> None:
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)


def assert_close(expected: list[Tensor], found: list[Tensor]) -> None:
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)


def small(draw: Draw) -> JointCase:
    if draw is draw_joint:
        return draw(5, 7, 3, 2, batch=3, scale=0.8, dtype=torch.float64)
    return draw(3, 5, 3, 4, batch=3, dtype=torch.float64)


def test_gradcheck(monkeypatch: pytest.MonkeyPatch, draw: Draw) -> None:
    for module in (joint, joint_tail):
        monkeypatch.setattr(module, "_BLOCK", 20)
    case = small(draw)
    function = function_of(case)

    def of_inputs(*inputs: Tensor) -> Tensor:
        return function(*inputs, case.mask, **case.options)

    inputs = [part.requires_grad_() for part in case.inputs if part is not None]
    assert torch.autograd.gradcheck(of_inputs, inputs, eps=1e-6, atol=1e-6)


def test_the_literal_form_is_what_the_oracle_writes_out(draw: Draw) -> None:
    case = small(draw)
    literal = run_joint(function_of(case, "reference"), case)
    for found, expected in zip(literal, exact(case), strict=True):
        np.testing.assert_allclose(found.numpy(), expected.astype(float), rtol=1e-11, atol=1e-12)


def test_the_reference_has_a_second_derivative(draw: Draw) -> None:
    case = small(draw)
    function = function_of(case, "reference")

    def of_inputs(*inputs: Tensor) -> Tensor:
        return function(*inputs, case.mask, **case.options)

    inputs = [part.requires_grad_() for part in case.inputs if part is not None]
    assert torch.autograd.gradgradcheck(of_inputs, inputs)


def test_double_backward_is_refused_in_words(draw: Draw) -> None:
    case = small(draw)
    inputs = [part.requires_grad_() for part in case.inputs if part is not None]
    result = function_of(case)(*inputs, case.mask, **case.options)
    gradients = torch.autograd.grad(result, inputs, case.grad, create_graph=True)
    for gradient in gradients:
        with pytest.raises(RuntimeError, match=r"no second derivative.*backend=\"reference\""):
            torch.autograd.grad(gradient.square().sum(), inputs, retain_graph=True)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_one_input_asks_for_a_gradient(draw: Draw, number: int) -> None:
    case = draw()
    expected = run(case)[1 + number]
    inputs = [part.detach() for part in case.inputs if part is not None]
    inputs[number].requires_grad_()
    result = function_of(case)(*inputs, case.mask, **case.options)
    (found,) = torch.autograd.grad(result, inputs[number], case.grad)
    assert torch.equal(found, expected)


def test_no_gradient_asked(draw: Draw) -> None:
    case = draw()
    result = function_of(case)(*case.inputs, case.mask, **case.options)
    assert not result.requires_grad
    assert torch.equal(result, run(case)[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_two_runs_are_equal_to_the_bit(draw: Draw, dtype: torch.dtype) -> None:
    sizes = (201, 143, 33, 17, 3) if draw is draw_joint else (57, 9, 33, 17, 3)
    case = draw(*sizes, spread=2.0, dtype=dtype)
    assert_equal(run(case), run(case))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_input_is_computed_in_float32(draw: Draw, dtype: torch.dtype) -> None:
    case = draw(dtype=dtype)
    single = run(case.to(torch.float32))
    assert_equal([part.to(dtype) for part in single], run(case))


def test_inputs_are_left_as_they_were(draw: Draw) -> None:
    case = draw(spread=3.0)
    before = [part.clone() for part in (*case.inputs, case.mask, case.grad) if part is not None]
    run(case)
    after = [part for part in (*case.inputs, case.mask, case.grad) if part is not None]
    assert_equal(before, after)


def transposed(part: Tensor) -> Tensor:
    """The last two axes of a matrix or more, or a vector with a stride of 2."""
    if part.ndim == 1:
        return torch.stack([part, part.new_full(part.shape, torch.nan)], 1)[:, 0]
    return part.mT.contiguous().mT


def strided(part: Tensor) -> Tensor:
    """Every second element in every axis of a larger tensor, the rest of which is NaN."""
    larger = part.new_full([2 * size for size in part.shape], torch.nan)
    inside = larger[(slice(None, None, 2),) * part.ndim]
    inside.copy_(part)
    return inside


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("layout", [transposed, strided])
def test_layout_has_no_influence(
    draw: Draw, layout: Callable[[Tensor], Tensor], masked: bool
) -> None:
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
def test_expanded_input(draw: Draw, axis: int) -> None:
    """Stride 0 in one axis of every input that has it, and of the gradient."""
    case = draw(dtype=torch.float64)

    def spread(part: Tensor) -> Tensor:
        return part if part.ndim < -axis else part.narrow(axis, 0, 1).expand(part.shape)

    views = tuple(spread(part) for part in case.inputs if part is not None)
    copies = tuple(part.contiguous() for part in views)
    grad = spread(case.grad)
    expected = run(replace(case, inputs=copies, grad=grad.contiguous()))
    assert_close(expected, run(replace(case, inputs=views, grad=grad)))


def test_gradient_of_a_sum_has_stride_zero(draw: Draw) -> None:
    case = draw(dtype=torch.float64)
    inputs = [part.requires_grad_() for part in case.inputs if part is not None]
    found = torch.autograd.grad(function_of(case)(*inputs, case.mask, **case.options).sum(), inputs)
    expected = run(replace(case, grad=torch.ones_like(case.grad)))[1:]
    assert_close(expected, list(found))


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_is_the_cast_of_the_inputs(draw: Draw, low: torch.dtype, backend: str) -> None:
    case = draw()
    function = function_of(case, backend)
    expected = run_joint(function, case.to(low))
    with torch.autocast("cpu", dtype=low):
        found = run_joint(function, replace(case, grad=case.grad.to(low)))
    assert found[0].dtype == low
    assert torch.equal(found[0], expected[0])
    for one, other in zip(expected[1:], found[1:], strict=True):
        assert other.dtype == torch.float32
        assert torch.equal(one, other.to(low))


def test_backward_under_autocast_or_after_it(draw: Draw) -> None:
    case = draw()
    runs = []
    for inside in (True, False):
        inputs = [part.detach().clone().requires_grad_() for part in case.inputs]  # type: ignore[union-attr]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = function_of(case)(*inputs, case.mask, **case.options)
            if inside:
                runs.append(torch.autograd.grad(result, inputs, case.grad.bfloat16()))
        if not inside:
            runs.append(torch.autograd.grad(result, inputs, case.grad.bfloat16()))
    assert_equal(list(runs[0]), list(runs[1]))


def test_autocast_leaves_float64_alone(draw: Draw) -> None:
    case = draw(dtype=torch.float64)
    expected = run(case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_equal(expected, run(case))


def test_autocast_takes_inputs_of_several_dtypes(draw: Draw) -> None:
    """As it does for a linear layer: float32 parameters and what an earlier product gave in bfloat16."""
    case = draw()
    low = case.to(torch.bfloat16)
    mixed = replace(case, inputs=(low.inputs[0], *case.inputs[1:]), grad=low.grad)
    expected = run(low)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(mixed)
    assert [part.dtype for part in found[:3]] == [torch.bfloat16, torch.bfloat16, torch.float32]
    assert_equal(expected, [part.to(torch.bfloat16) for part in found])
