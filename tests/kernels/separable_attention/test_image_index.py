"""Expressions that share images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.oracle import Case, assert_within_budget, draw, fast, run
from torch import Tensor

from cmsa_fast.kernels import received_word_attention
from cmsa_fast.kernels.separable_attention import eager as separable

# In any order; image 2 has no expression, image 0 three of them.
INDEX = torch.tensor([3, 0, 1, 0, 3, 0])


def shared(dtype: torch.dtype = torch.float64, scale: float = 1.0, places: int = 23) -> Case:
    case = draw(places, 6, 11, 7, batch=len(INDEX), images=4, dtype=dtype, scale=scale)
    return replace(case, image_index=INDEX)


def gathered(*arguments: Tensor, image_index: Tensor) -> Tensor:
    """Each expression with a copy of its image; autograd adds up the copies' gradients."""
    places = (part[image_index] for part in arguments[:3])
    return fast(*places, *arguments[3:])


@pytest.mark.parametrize("scale", [1.0, 10.0], ids=["moderate", "saturated"])
def test_gradients_are_those_of_the_gathered_form(scale: float) -> None:
    case = shared(scale=scale)
    expected, found = run(gathered, case), run(fast, case)
    largest = max(float(part.norm()) for part in expected[1:])
    torch.testing.assert_close(found[0], expected[0], rtol=1e-11, atol=1e-11)
    for one, other in zip(expected[1:], found[1:], strict=True):
        assert float((one - other).norm()) <= 1e-11 * largest


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_parity(scale: float, dtype: torch.dtype) -> None:
    assert_within_budget(shared(dtype, scale))


def test_a_image_without_expressions_gets_no_gradient() -> None:
    for gradient in run(fast, shared())[1:4]:
        assert not gradient[2].any()
        assert gradient[[0, 1, 3]].any()


def test_one_image_for_all() -> None:
    case = draw(23, 6, 11, 7, batch=9, images=1)
    assert not case.image_index.any()  # type: ignore[union-attr]
    assert_within_budget(case)


@pytest.mark.parametrize("elements", [1, 23 * 23, 2 * 23 * 23, 100])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    """However few expressions and rows are taken at a time."""
    case = shared()
    whole = run(fast, case)
    monkeypatch.setattr(separable, "_BLOCK", elements)
    for expected, found in zip(whole, run(fast, case), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_received_attention_follows_the_index() -> None:
    case = shared()
    place_query, word_query, word_key = case["place_query"], case["word_query"], case["word_key"]
    found = received_word_attention(
        place_query, word_query, word_key, case.word_mask, image_index=INDEX
    )
    expected = received_word_attention(place_query[INDEX], word_query, word_key, case.word_mask)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
