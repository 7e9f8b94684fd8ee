"""The attention that words receive, against the literal softmax over all pairs."""

from __future__ import annotations

import pytest
import torch
from support.oracle import Case, draw

from cmsa_fast.kernels import received_word_attention, reference


def literal(case: Case) -> torch.Tensor:
    return reference.received_word_attention(
        case["place_query"],
        case["place_key"],
        case["word_query"],
        case["word_key"],
        case.word_mask,
        image_index=case.image_index,
    )


def ours(case: Case) -> torch.Tensor:
    return received_word_attention(
        case["place_query"],
        case["word_query"],
        case["word_key"],
        case.word_mask,
        image_index=case.image_index,
    )


@pytest.mark.parametrize("images", [None, 2])
@pytest.mark.parametrize("scale", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("words", [1, 2, 7, 20])
def test_float64(words: int, scale: float, images: int | None) -> None:
    case = draw(23, words, 11, batch=5, images=images, scale=scale, dtype=torch.float64)
    torch.testing.assert_close(ours(case), literal(case), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_budget(scale: float, dtype: torch.dtype) -> None:
    case = draw(23, 7, 11, batch=3, scale=scale, dtype=dtype)
    exact = literal(case.to(torch.float64))
    error, of_literal = (
        float((found.double() - exact).norm() / exact.norm())
        for found in (ours(case), literal(case))
    )
    assert ours(case).dtype == dtype
    assert error <= 2 * max(of_literal, torch.finfo(dtype).eps)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_sums_to_one(scale: float) -> None:
    case = draw(23, 7, 11, batch=4, scale=scale)
    received = ours(case)
    torch.testing.assert_close(received.sum(1), torch.ones(4))
    assert not received[~case.word_mask].any()
    assert (received >= 0).all()
