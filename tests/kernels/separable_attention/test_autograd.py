"""Derivatives of the eager backend: finite differences, single inputs, double backward, autocast, repetition."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.oracle import assert_close, assert_identical, run
from support.separable_oracle import NAMES, draw, eager
from torch import Tensor

from cmsa_fast.kernels import cross_modal_attention, received_word_attention
from cmsa_fast.kernels.separable_attention import mean_softmax


def check_gradients(images: int | None, scale: float) -> None:
    case = draw(5, 4, 3, 2, batch=3, images=images, scale=scale, dtype=torch.float64)
    features = [part.requires_grad_() for part in case.inputs]

    def attention(*features: Tensor) -> Tensor:
        return eager(*features, case.mask, **case.options)

    assert torch.autograd.gradcheck(attention, features, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("images", [None, 2])
@pytest.mark.parametrize("scale", [0.7, 4.0])
def test_gradcheck(scale: float, images: int | None) -> None:
    check_gradients(images, scale)


def test_gradcheck_of_the_direct_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an infinite floor all rows take the direct form."""
    monkeypatch.setattr(mean_softmax, "_FLOOR", {torch.float64: torch.inf})
    check_gradients(2, 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_of_a_single_input(name: str) -> None:
    case = draw()
    expected = run(eager, case)[1 + NAMES.index(name)]
    features = case.given
    features[name].requires_grad_()
    result = eager(*features.values(), case.mask)
    assert_identical([expected], torch.autograd.grad(result, features[name], case.grad))


def test_one_tensor_as_several_arguments() -> None:
    case = draw(dtype=torch.float64, padded=False)
    place, word = case["place_query"].requires_grad_(), case["word_query"].requires_grad_()
    both = []
    for backend in ("torch", "reference"):
        result = cross_modal_attention(*[place] * 3, *[word] * 3, backend=backend)
        both.append(torch.autograd.grad(result, (place, word), case.grad))
    assert_close(*both, tolerance=1e-11)


def test_no_graph_without_gradients() -> None:
    case = draw()
    assert not eager(*case.inputs, case.mask).requires_grad


def test_double_backward_raises() -> None:
    """Also where the incoming gradient needs none, which `once_differentiable` would not notice."""
    case = draw(dtype=torch.float64)
    features = [part.requires_grad_() for part in case.inputs]
    result = eager(*features, case.mask)
    gradients = torch.autograd.grad(result, features, case.grad, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative.*backend=\"reference\""):
        torch.autograd.grad(gradients[0].square().sum(), features)


def test_reference_has_a_second_derivative() -> None:
    case = draw(3, 3, 2, batch=1, dtype=torch.float64)
    features = [part.requires_grad_() for part in case.inputs]

    def attention(*features: Tensor) -> Tensor:
        return cross_modal_attention(*features, case.mask, backend="reference")

    assert torch.autograd.gradgradcheck(attention, features)


@pytest.mark.parametrize("images", [None, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_two_runs_are_bitwise_identical(dtype: torch.dtype, images: int | None) -> None:
    case = draw(101, 9, 33, 17, batch=5, images=images, scale=3.0, dtype=dtype)
    assert_identical(run(eager, case), run(eager, case))


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_casts_the_inputs(low: torch.dtype, backend: str) -> None:
    case = draw(31, 5, 17, 9)

    def attention(*arguments: Any, **options: Any) -> Tensor:
        return cross_modal_attention(*arguments, **options, backend=backend)

    expected = run(attention, case.to(low))
    with torch.autocast("cpu", dtype=low):
        result, *gradients = run(attention, replace(case, grad=case.grad.to(low)))
    assert result.dtype == low
    assert {part.dtype for part in gradients} == {torch.float32}
    assert_identical(expected, [result, *(part.to(low) for part in gradients)])


def test_backward_may_run_inside_or_after_autocast() -> None:
    case = draw(31, 5, 17, 9)
    runs = []
    for inside in (True, False):
        features = [part.detach().clone().requires_grad_() for part in case.inputs]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = eager(*features, case.mask)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            runs.append(torch.autograd.grad(result, features, case.grad.bfloat16()))
    assert_identical(*runs)


def test_autocast_keeps_float64() -> None:
    case = draw(dtype=torch.float64)
    expected = run(eager, case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_identical(expected, run(eager, case))


def test_received_attention_under_autocast() -> None:
    case = draw(31, 5, 17, 9)
    parts = (case["place_query"], case["word_query"], case["word_key"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        received = received_word_attention(*parts, case.mask)
    assert received.dtype == torch.bfloat16
    expected = received_word_attention(*(part.bfloat16() for part in parts), case.mask)
    assert torch.equal(received, expected)
