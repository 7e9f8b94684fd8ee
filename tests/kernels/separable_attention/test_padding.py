"""What stands in a padded word has no influence, whatever it is."""

from __future__ import annotations

import math

import pytest
import torch
from support.oracle import NAMES, Case, draw, fast, run
from torch import Tensor

from cmsa_fast.kernels import cross_modal_attention, received_word_attention, reference

WORDS = NAMES[3:]
GARBAGE = [0.0, math.nan, math.inf, -math.inf, 3e38]


def filled(case: Case, value: float) -> Case:
    padding = ~case.word_mask[..., None]  # type: ignore[index]
    return case.with_features(**{name: case[name].masked_fill(padding, value) for name in WORDS})


def literal(*arguments: Tensor | None, image_index: Tensor | None = None) -> Tensor:
    return cross_modal_attention(*arguments, image_index=image_index, backend="reference")  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1.0, 30.0], ids=["moderate", "saturated"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("attention", [fast, literal])
def test_padding_changes_no_bit(attention: object, dtype: torch.dtype, scale: float) -> None:
    case = draw(23, 7, 11, 5, batch=4, scale=scale, dtype=dtype)
    zeros, *others = (run(attention, filled(case, value)) for value in GARBAGE)  # type: ignore[arg-type]
    for other in others:
        for expected, found in zip(zeros, other, strict=True):
            assert torch.equal(expected, found)
    for gradient in zeros[4:]:
        assert not gradient[~case.word_mask].any()
        assert gradient[case.word_mask].any()


def test_padding_changes_no_bit_with_shared_images() -> None:
    case = draw(23, 7, 11, 5, batch=8, images=3)
    zeros = run(fast, filled(case, 0.0))
    for expected, found in zip(zeros, run(fast, filled(case, math.nan)), strict=True):
        assert torch.equal(expected, found)


@pytest.mark.parametrize("scale", [1.0, 8.0], ids=["moderate", "saturated"])
def test_padded_words_may_as_well_be_absent(scale: float) -> None:
    """An expression without its padding, against the same words padded at front, between and back."""
    case = draw(23, 7, 11, 5, batch=4, scale=scale, dtype=torch.float64)
    padded = run(fast, filled(case, math.nan))
    for expression, mask in enumerate(case.word_mask):  # type: ignore[arg-type]
        alone = Case(
            tuple(part[expression : expression + 1] for part in case.features[:3])
            + tuple(part[expression : expression + 1, mask] for part in case.features[3:]),
            None,
            None,
            case.grad[expression : expression + 1],
        )
        bare = run(fast, alone)
        found = [part[expression : expression + 1] for part in padded]
        found[4:] = [part[:, mask] for part in found[4:]]
        largest = max(float(part.norm()) for part in bare[1:])
        for number, (expected, part) in enumerate(zip(bare, found, strict=True)):
            scale_of = largest if number else float(expected.norm())
            assert float((part - expected).norm()) <= 1e-12 * scale_of


def test_received_attention_ignores_padding() -> None:
    case = draw(23, 7, 11, 5, batch=4)
    zeros, garbage = (
        received_word_attention(
            some["place_query"], some["word_query"], some["word_key"], some.word_mask
        )
        for some in (filled(case, 0.0), filled(case, math.nan))
    )
    assert torch.equal(zeros, garbage)
    assert not zeros[~case.word_mask].any()


def test_the_literal_form_reads_no_padding_either() -> None:
    case = filled(draw(5, 4, 3), math.nan)
    assert reference.cross_modal_attention(*case.features, case.word_mask).isfinite().all()
