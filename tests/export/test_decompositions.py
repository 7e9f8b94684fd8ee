"""Branch-free forms against the literal attention in float64, and in the extremes where they differ from eager."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from support.hostile import hostile_separable
from support.joint_oracle import draw_joint, draw_tail
from support.oracle import Case, exact
from support.separable_oracle import draw, eager, shifted, with_largest_logit
from torch import Tensor

from cmsa_fast.export.decompositions import DECOMPOSITIONS, separable_attention
from cmsa_fast.kernels.separable_attention.numerics import word_weights


def branch_free(*arguments: Any, image_index: Tensor | None = None) -> Tensor:
    *features, mask = arguments
    return separable_attention(*features, word_weights(mask, features[3]), image_index)


def error(function: Any, case: Case, truth: np.ndarray) -> float:
    """Of the result, relative to the norm of the exact one."""
    result = function(*case.inputs, case.mask, **case.options)
    assert result.dtype == case.grad.dtype
    return float(np.linalg.norm(result.double().numpy() - truth) / np.linalg.norm(truth))


def assert_within_budget(cases: list[Case]) -> None:
    """error <= 2 max(error of the literal form in the same dtype, eps), for medians over the cases."""
    truths = [exact(case)[0].astype(np.float64) for case in cases]
    ours, literal = (
        np.median([error(function, case, truth) for case, truth in zip(cases, truths, strict=True)])
        for function in (branch_free, cases[0].operation.literal)
    )
    assert ours <= 2 * max(literal, torch.finfo(cases[0].grad.dtype).eps)


@pytest.mark.parametrize(
    "sizes",  # places, words, width, value width, batch
    [(1, 1, 5, 3, 1), (17, 1, 7, 9, 3), (1, 4, 7, 7, 2), (63, 7, 33, 19, 3), (37, 19, 130, 1, 2)],
    ids=str,
)
def test_ordinary_inputs_are_within_the_error_budget(sizes: tuple[int, ...]) -> None:
    assert_within_budget([draw(*sizes, scale=0.7, seed=seed) for seed in range(5)])


@pytest.mark.parametrize(
    "offsets",
    [
        {"place_key": 100.0},
        {"place_value": 1000.0, "word_value": -1000.0},
        {"place_query": -1e3, "word_query": 1e3},
    ],
    ids=str,
)
def test_common_offsets_are_within_the_error_budget(offsets: dict[str, float]) -> None:
    assert_within_budget([shifted(draw(31, 5, 17, 9, seed=seed), **offsets) for seed in range(11)])


def test_expressions_of_shared_images() -> None:
    assert_within_budget([draw(23, 6, 11, batch=5, images=2, seed=seed) for seed in range(5)])


def test_values_of_padded_words_have_no_influence() -> None:
    case = draw(batch=4)
    assert case.mask is not None
    poisoned = case.with_inputs(
        **{name: case[name].masked_fill(~case.mask[..., None], torch.nan) for name in case.given if "word" in name}
    )
    assert torch.equal(branch_free(*poisoned.inputs, case.mask), branch_free(*case.inputs, case.mask))


VALUES = torch.tensor([[[1.0, 0.0], [-0.2, 1.0]]])  # without a common offset


def two_peaks(difference: float) -> tuple[Case, float]:
    """The first place attends to key 0 with logits that fall by `difference`; its only word likewise to key 1.

    Returns the case and the place's Z. The exact result of the place is the mean of `VALUES`; the second place
    attends to key 1 alone, like the word.
    """
    root = math.sqrt(difference)
    case = draw(2, 1, 2, batch=1, padded=False)
    case = case.with_inputs(
        place_query=torch.tensor([[[root, 0.0], [-root, 0.0]]]),
        place_key=root * torch.eye(2)[None],
        place_value=VALUES,
        word_query=torch.tensor([[[0.0, root]]]),
        word_key=torch.zeros(1, 1, 2),
        word_value=torch.zeros(1, 1, 2),
    )
    return case, 2 * math.exp(-difference)


@pytest.mark.parametrize("difference", [10.0, 41.0, 55.0, 69.0])
def test_tokens_with_a_sum_of_at_least_the_floor_are_exact(difference: float) -> None:
    """The operator takes the direct form from 42 on."""
    case, total = two_peaks(difference)
    assert total >= 2.0**-100
    expected = torch.stack([VALUES.mean(1), VALUES[:, 1]], dim=1)
    for function in (branch_free, eager):
        torch.testing.assert_close(function(*case.inputs, None), expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("difference", [71.0, 75.0, 80.0, 86.0])
def test_attention_to_places_fades_below_the_floor(difference: float) -> None:
    case, total = two_peaks(difference)
    share = total / 2.0**-100
    assert share < 1
    expected = torch.stack([VALUES.mean(1), VALUES[:, 1]], dim=1)
    torch.testing.assert_close(eager(*case.inputs, None), expected)
    expected[:, 0] *= share
    torch.testing.assert_close(branch_free(*case.inputs, None), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("size", [1e2, 1e4, 1e6])
def test_extreme_logits_stay_finite_and_bounded(size: float) -> None:
    """No attended value is larger than the largest value, whatever the logits are."""
    for seed in range(5):
        case = with_largest_logit(draw(40, 6, 16, seed=seed), size)
        result = branch_free(*case.inputs, case.mask)
        bound = case["place_value"].abs().amax() + case["word_value"].abs().amax()
        assert result.isfinite().all()
        assert result.abs().max() <= 3 * bound  # values less their offset, and the offset


def test_hostile_inputs_stay_finite() -> None:
    for seed in range(40):
        case = hostile_separable(seed)
        assert branch_free(*case.inputs, case.mask).isfinite().all(), seed


def test_the_joint_forms_equal_the_operators() -> None:
    attention, tail = draw_joint(), draw_tail(relu=True)
    operators = torch.ops.cmsa_fast
    for operator, arguments in (
        (operators.joint_eager_forward.default, (*attention.inputs, attention.mask, 0.5)),
        (operators.joint_eager_tail_forward.default, (*tail.inputs, tail.mask)),
    ):
        torch.testing.assert_close(DECOMPOSITIONS[operator](*arguments), operator(*arguments))
