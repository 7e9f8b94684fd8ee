"""Derivatives: against finite differences, of some inputs only, twice, under autocast, repeated."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.oracle import NAMES, draw, fast, run

from cmsa_fast.kernels import cross_modal_attention, received_word_attention


@pytest.mark.parametrize("images", [None, 2])
@pytest.mark.parametrize("scale", [0.7, 4.0])
def test_gradcheck(scale: float, images: int | None) -> None:
    case = draw(5, 4, 3, 2, batch=3, images=images, scale=scale, dtype=torch.float64)
    features = [part.requires_grad_() for part in case.features]

    def attention(*features: torch.Tensor) -> torch.Tensor:
        return fast(*features, case.word_mask, image_index=case.image_index)

    assert torch.autograd.gradcheck(attention, features, eps=1e-6, atol=1e-6)


def test_gradcheck_in_the_direct_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """A floor above every Z sends every row the direct way."""
    from cmsa_fast.kernels.separable_attention import mean_softmax

    monkeypatch.setattr(mean_softmax, "_FLOOR", {torch.float64: torch.inf})
    case = draw(5, 4, 3, 2, batch=3, images=2, dtype=torch.float64)
    features = [part.requires_grad_() for part in case.features]

    def attention(*features: torch.Tensor) -> torch.Tensor:
        return fast(*features, case.word_mask, image_index=case.image_index)

    assert torch.autograd.gradcheck(attention, features, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_one_input_asks_for_a_gradient(name: str) -> None:
    case = draw()
    expected = dict(zip(NAMES, run(fast, case)[1:], strict=True))[name]
    features = dict(zip(NAMES, case.features, strict=True))
    features[name].requires_grad_()
    result = fast(*features.values(), case.word_mask)
    (found,) = torch.autograd.grad(result, features[name], case.grad)
    assert torch.equal(found, expected)


def test_one_tensor_may_be_several_arguments() -> None:
    case = draw(dtype=torch.float64, padded=False)
    place, word = case["place_query"].requires_grad_(), case["word_query"].requires_grad_()
    both = []
    for backend in ("torch", "reference"):
        result = cross_modal_attention(*[place] * 3, *[word] * 3, backend=backend)
        both.append(torch.autograd.grad(result, (place, word), case.grad))
    for found, expected in zip(*both, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_no_graph_without_gradients() -> None:
    case = draw()
    assert not fast(*case.features, case.word_mask).requires_grad
    received = received_word_attention(
        case["place_query"].requires_grad_(), case["word_query"], case["word_key"]
    )
    assert not received.requires_grad


def test_double_backward_is_refused_in_words() -> None:
    case = draw(dtype=torch.float64)
    features = [part.requires_grad_() for part in case.features]
    result = fast(*features, case.word_mask)
    gradients = torch.autograd.grad(result, features, case.grad, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative.*backend=\"reference\""):
        torch.autograd.grad(gradients[0].square().sum(), features)


def test_the_reference_has_a_second_derivative() -> None:
    case = draw(3, 3, 2, batch=1, dtype=torch.float64)
    features = [part.requires_grad_() for part in case.features]

    def attention(*features: torch.Tensor) -> torch.Tensor:
        return cross_modal_attention(*features, case.word_mask, backend="reference")

    assert torch.autograd.gradgradcheck(attention, features)


@pytest.mark.parametrize("images", [None, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_two_runs_are_equal_to_the_bit(dtype: torch.dtype, images: int | None) -> None:
    case = draw(101, 9, 33, 17, batch=5, images=images, scale=3.0, dtype=dtype)
    for one, other in zip(run(fast, case), run(fast, case), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_is_the_cast_of_the_inputs(low: torch.dtype, backend: str) -> None:
    case = draw(31, 5, 17, 9)

    def attention(*arguments: object, image_index: object = None) -> torch.Tensor:
        return cross_modal_attention(*arguments, image_index=image_index, backend=backend)  # type: ignore[arg-type]

    expected = run(attention, case.to(low))
    with torch.autocast("cpu", dtype=low):
        found = run(attention, replace(case, grad=case.grad.to(low)))
    assert found[0].dtype == low
    assert torch.equal(found[0], expected[0])
    for one, other in zip(expected[1:], found[1:], strict=True):
        assert other.dtype == torch.float32
        assert torch.equal(one, other.to(low))


def test_backward_under_autocast_or_after_it() -> None:
    case = draw(31, 5, 17, 9)
    runs = []
    for inside in (True, False):
        features = [part.detach().clone().requires_grad_() for part in case.features]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = fast(*features, case.word_mask)
            if inside:
                runs.append(torch.autograd.grad(result, features, case.grad.bfloat16()))
        if not inside:
            runs.append(torch.autograd.grad(result, features, case.grad.bfloat16()))
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)


def test_autocast_leaves_float64_alone() -> None:
    case = draw(dtype=torch.float64)
    expected = run(fast, case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(fast, case)
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)


def test_received_attention_under_autocast() -> None:
    case = draw(31, 5, 17, 9)
    parts = (case["place_query"], case["word_query"], case["word_key"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = received_word_attention(*parts, case.word_mask)
    expected = received_word_attention(*(part.bfloat16() for part in parts), case.word_mask)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)
