"""Expressions that share images by `image_index`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.oracle import Case, assert_close, assert_within_budget, run
from support.separable_oracle import draw, eager
from torch import Tensor

from cmsa_fast.kernels import received_word_attention
from cmsa_fast.kernels.separable_attention import eager as module

# In no order; image 2 has no expression, image 0 three.
INDEX = torch.tensor([3, 0, 1, 0, 3, 0])


def shared(dtype: torch.dtype = torch.float64, scale: float = 1.0) -> Case:
    case = draw(23, 6, 11, 7, batch=len(INDEX), images=4, dtype=dtype, scale=scale)
    return replace(case, options={"image_index": INDEX})


def gathered(*arguments: Tensor, image_index: Tensor) -> Tensor:
    """Each expression with a copy of its image; autograd sums the copies' gradients."""
    places = (part[image_index] for part in arguments[:3])
    return eager(*places, *arguments[3:])


@pytest.mark.parametrize("scale", [1.0, 10.0], ids=["moderate", "saturated"])
def test_equals_copies_of_the_images(scale: float) -> None:
    case = shared(scale=scale)
    expected, outputs = run(gathered, case), run(eager, case)
    largest = max(float(part.norm()) for part in expected[1:])
    assert_close(expected[:1], outputs[:1], tolerance=1e-11)
    for one, other in zip(expected[1:], outputs[1:], strict=True):
        assert float((one - other).norm()) <= 1e-11 * largest


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_parity(scale: float, dtype: torch.dtype) -> None:
    assert_within_budget(eager, shared(dtype, scale))


def test_image_without_expressions_gets_zero_gradient() -> None:
    for gradient in run(eager, shared())[1:4]:
        assert not gradient[2].any()
        assert gradient[[0, 1, 3]].any()


def test_one_image_for_all_expressions() -> None:
    assert_within_budget(eager, draw(23, 6, 11, 7, batch=9, images=1))


@pytest.mark.parametrize("elements", [1, 23 * 23, 2 * 23 * 23, 100])
def test_result_does_not_depend_on_block_size(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    case = shared()
    whole = run(eager, case)
    monkeypatch.setattr(module, "_BLOCK", elements)
    assert_close(whole, run(eager, case), tolerance=1e-11)


def test_received_attention_uses_the_index() -> None:
    case = shared()
    place_query, words = case["place_query"], (case["word_query"], case["word_key"], case.mask)
    received = received_word_attention(place_query, *words, image_index=INDEX)
    assert_close([received_word_attention(place_query[INDEX], *words)], [received])
