"""The attention that words and places receive, against the literal softmax over all pairs."""

from __future__ import annotations

import pytest
import torch
from support.oracle import Case, assert_close
from support.separable_oracle import LOGIT_NAMES, draw

from cmsa_fast.kernels import received_place_attention, received_word_attention, reference


def literal(case: Case) -> torch.Tensor:
    inputs = [case[name] for name in LOGIT_NAMES]
    return reference.received_word_attention(*inputs, case.mask, **case.options)


def fast(case: Case) -> torch.Tensor:
    inputs = [case[name] for name in ("place_query", "word_query", "word_key")]
    return received_word_attention(*inputs, case.mask, **case.options)


@pytest.mark.parametrize("images", [None, 2])
@pytest.mark.parametrize("scale", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("words", [1, 2, 7, 20])
def test_parity_in_float64(words: int, scale: float, images: int | None) -> None:
    case = draw(23, words, 11, batch=5, images=images, scale=scale, dtype=torch.float64)
    assert_close([literal(case)], [fast(case)], tolerance=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_error_is_within_the_budget(scale: float, dtype: torch.dtype) -> None:
    case = draw(23, 7, 11, batch=3, scale=scale, dtype=dtype)
    exact = literal(case.to(torch.float64))
    error, literal_error = (
        float((received.double() - exact).norm() / exact.norm()) for received in (fast(case), literal(case))
    )
    assert fast(case).dtype == dtype
    assert error <= 2 * max(literal_error, torch.finfo(dtype).eps)


@pytest.mark.parametrize("images", [None, 2])
def test_gradients_are_those_of_the_literal_form(images: int | None) -> None:
    case = draw(11, 4, 5, batch=3, images=images, dtype=torch.float64)
    leaves = [case[name].requires_grad_() for name in ("place_query", "word_query", "word_key")]
    upstream = torch.randn(3, 4, dtype=torch.float64)
    expected, ours = (torch.autograd.grad(form(case), leaves, upstream) for form in (literal, fast))
    assert_close(expected, ours, tolerance=1e-11)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_sums_to_one(scale: float) -> None:
    case = draw(23, 7, 11, batch=4, scale=scale)
    received = fast(case)
    torch.testing.assert_close(received.sum(1), torch.ones(4))
    assert not received[~case.mask].any()
    assert (received >= 0).all()


def literal_places(case: Case) -> torch.Tensor:
    inputs = [case[name] for name in LOGIT_NAMES]
    return reference.received_place_attention(*inputs, case.mask, **case.options)


def fast_places(case: Case) -> torch.Tensor:
    inputs = [case[name] for name in ("place_query", "place_key", "word_query")]
    return received_place_attention(*inputs, case.mask, **case.options)


@pytest.mark.parametrize("images", [None, 2])
@pytest.mark.parametrize("scale", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("words", [1, 2, 7, 20])
def test_places_in_float64(words: int, scale: float, images: int | None) -> None:
    case = draw(23, words, 11, batch=5, images=images, scale=scale, dtype=torch.float64)
    assert_close([literal_places(case)], [fast_places(case)], tolerance=1e-11)


@pytest.mark.parametrize("places", [1, 23])
def test_places_in_blocks(places: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = draw(places, 7, 11, batch=3, scale=30.0, dtype=torch.float64)  # some factors underflow
    monkeypatch.setattr("cmsa_fast.kernels.separable_attention.received._BLOCK", 4 * places + 1)
    assert_close([literal_places(case)], [fast_places(case)], tolerance=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_error_of_places_is_within_the_budget(scale: float, dtype: torch.dtype) -> None:
    case = draw(23, 7, 11, batch=3, scale=scale, dtype=dtype)
    exact = literal_places(case.to(torch.float64))
    error, literal_error = (
        float((received.double() - exact).norm() / exact.norm())
        for received in (fast_places(case), literal_places(case))
    )
    assert fast_places(case).dtype == dtype
    assert error <= 2 * max(literal_error, torch.finfo(dtype).eps)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_places_sum_to_one_whatever_padding_holds(scale: float) -> None:
    case = draw(23, 7, 11, batch=4, scale=scale)
    received = fast_places(case)
    torch.testing.assert_close(received.sum(1), torch.ones(4))
    assert (received >= 0).all()
    poisoned = case["word_query"].masked_fill(~case.mask[..., None], torch.nan)
    assert torch.equal(fast_places(case.with_inputs(word_query=poisoned)), received)
