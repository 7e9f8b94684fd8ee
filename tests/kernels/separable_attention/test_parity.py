"""The eager backend against the literal form: sizes, dtypes, offsets and outliers."""

from __future__ import annotations

import pytest
import torch
from support.oracle import assert_identical, assert_within_budget
from support.separable_oracle import NAMES, draw, eager, shifted

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SEEDS = range(11)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "sizes",  # places, words, width, value width, batch
    [
        (1, 1, 5, 3, 1),
        (1, 4, 7, 7, 2),
        (17, 1, 7, 9, 3),
        (2, 2, 1, 1, 1),
        (13, 5, 7, 9, 4),
        (63, 7, 33, 19, 3),
        (37, 19, 130, 1, 2),
    ],
    ids=str,
)
def test_sizes(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    cases = [draw(*sizes, scale=0.7, dtype=dtype, seed=seed) for seed in range(3)]
    assert_within_budget(eager, cases)


@pytest.mark.parametrize("words", range(1, 21))
def test_every_number_of_words(words: int) -> None:
    assert_within_budget(eager, draw(11, words, 9, 5, 3, seed=words))


def test_flat_logits_over_many_places() -> None:
    """The literal form sums few terms at a time here, and its error is less than one rounding."""
    assert_within_budget(eager, draw(200, 6, 512, batch=1, scale=0.149, padded=False))


def test_no_expression() -> None:
    case = draw(5, 4, 3, batch=0, images=2, padded=False)
    features = [part.requires_grad_() for part in case.inputs]
    result = eager(*features, **case.options)
    assert result.shape == (0, 5, 3)
    for gradient in torch.autograd.grad(result.sum(), features):
        assert not gradient.any()


def test_no_mask_equals_a_mask_of_real_words() -> None:
    case = draw(padded=False)
    everywhere = torch.ones(case["word_query"].shape[:2], dtype=torch.bool)
    assert_identical([eager(*case.inputs)], [eager(*case.inputs, everywhere)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "offsets",
    [
        {"place_key": 100.0},
        {"word_key": 100.0},
        {"place_key": 30.0, "word_key": -30.0},
        {"place_value": 100.0},
        {"word_value": 100.0},
        {"place_value": 1000.0, "word_value": -1000.0},
        {"place_query": 100.0, "word_query": -100.0},
        {"place_query": -1000.0, "word_query": 1000.0},
        {"place_query": 3.0},
        {"word_query": 3.0},
        dict.fromkeys(NAMES, 10.0),
    ],
    ids=lambda offsets: ",".join(f"{name}{size:+g}" for name, size in offsets.items()),
)
def test_common_offsets(offsets: dict[str, float], dtype: torch.dtype) -> None:
    cases = [shifted(draw(31, 5, 17, 9, dtype=dtype, seed=seed), **offsets) for seed in SEEDS]
    assert_within_budget(eager, cases)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_single_outlier(name: str, dtype: torch.dtype) -> None:
    cases = []
    for seed in SEEDS:
        case = draw(31, 5, 17, 9, dtype=dtype, seed=seed, padded=False)
        row = case[name].clone()
        row[:, 2] *= 1000
        cases.append(case.with_inputs(**{name: row}))
    assert_within_budget(eager, cases)
