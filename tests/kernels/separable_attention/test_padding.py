"""The contents of padded words have no influence on results and gradients."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from support.oracle import Case, Function, assert_identical, run
from support.separable_oracle import NAMES, draw, eager

from cmsa_fast.kernels import received_word_attention, reference

WORDS = NAMES[3:]


def filled(case: Case, value: float) -> Case:
    padding = ~case.mask[..., None]
    return case.with_inputs(**{name: case[name].masked_fill(padding, value) for name in WORDS})


@pytest.mark.parametrize("scale", [1.0, 30.0], ids=["moderate", "saturated"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("attention", [eager, reference.cross_modal_attention])
def test_padding_has_no_influence(attention: Function, dtype: torch.dtype, scale: float) -> None:
    case = draw(23, 7, 11, 5, batch=4, scale=scale, dtype=dtype)
    expected = run(attention, filled(case, 0.0))
    for value in (math.nan, math.inf, -math.inf, 3e38):
        assert_identical(expected, run(attention, filled(case, value)))
    for gradient in expected[4:]:
        assert not gradient[~case.mask].any()
        assert gradient[case.mask].any()


def test_padding_has_no_influence_with_shared_images() -> None:
    case = draw(23, 7, 11, 5, batch=8, images=3)
    assert_identical(run(eager, filled(case, 0.0)), run(eager, filled(case, math.nan)))


@pytest.mark.parametrize("scale", [1.0, 8.0], ids=["moderate", "saturated"])
def test_padded_words_equal_absent_words(scale: float) -> None:
    case = draw(23, 7, 11, 5, batch=4, scale=scale, dtype=torch.float64)
    padded = run(eager, filled(case, math.nan))
    for expression, mask in enumerate(case.mask):
        one = slice(expression, expression + 1)
        inputs = [part[one] for part in case.inputs[:3]]
        inputs += [part[one, mask] for part in case.inputs[3:]]
        bare = run(eager, replace(case, inputs=tuple(inputs), mask=None, grad=case.grad[one]))
        outputs = [part[one] for part in padded]
        outputs[4:] = [part[:, mask] for part in outputs[4:]]
        largest = max(float(part.norm()) for part in bare[1:])
        for number, (expected, part) in enumerate(zip(bare, outputs, strict=True)):
            norm = largest if number else float(expected.norm())
            assert float((part - expected).norm()) <= 1e-12 * norm


def test_received_attention_ignores_padding() -> None:
    case = draw(23, 7, 11, 5, batch=4)
    zeros, garbage = (
        received_word_attention(some["place_query"], some["word_query"], some["word_key"], some.mask)
        for some in (filled(case, 0.0), filled(case, math.nan))
    )
    assert torch.equal(zeros, garbage)
    assert not zeros[~case.mask].any()
