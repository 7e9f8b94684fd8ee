"""Saturated softmaxes, and rows whose sum over E_A E_C underflows."""

from __future__ import annotations

import math

import pytest
import torch
from support.oracle import Case, assert_within_budget, draw, fast, run
from torch import Tensor

SEEDS = range(11)
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def with_largest_logit(case: Case, size: float) -> Case:
    """Scale queries and keys alike until the largest logit of two tokens is `size` in magnitude."""
    query, key = (
        (case[f"place_{part}"].double()[:, :, None] + case[f"word_{part}"].double()[:, None])
        for part in ("query", "key")
    )
    largest = float((query.flatten(1, 2) @ key.flatten(1, 2).mT).abs().max())
    scale = (size / largest) ** 0.5
    names = ("place_query", "place_key", "word_query", "word_key")
    return case.with_features(**{name: case[name] * scale for name in names})


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
@pytest.mark.parametrize("size", [30.0, 300.0, 1e4])
def test_large_logits(size: float, dtype: torch.dtype) -> None:
    assert_within_budget(
        [with_largest_logit(draw(29, 5, 13, 7, dtype=dtype, seed=seed), size) for seed in range(21)]
    )


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("part", ["place", "word"])
def test_all_logits_at_one_extreme(part: str, sign: float) -> None:
    """A constant channel of 100 in queries and keys puts every logit at +-1e4, with differences of order 1."""
    cases = []
    for seed in SEEDS:
        case = draw(29, 5, 13, 7, seed=seed)
        query, key = case[f"{part}_query"].clone(), case[f"{part}_key"].clone()
        query[..., 0], key[..., 0] = 100, sign * 100
        cases.append(case.with_features(**{f"{part}_query": query, f"{part}_key": key}))
    assert_within_budget(cases)


def log_totals(case: Case, half: str) -> Tensor:
    """[B, P, N] log Z in float64, at true words only; `half` says whose keys: "place" or "word"."""
    key = case[f"{half}_key"].double()
    of_places = case["place_query"].double() @ key.mT  # A
    of_words = case["word_query"].double() @ key.mT  # C
    if half == "word" and case.word_mask is not None:
        of_places = of_places.masked_fill(~case.word_mask[:, None], -math.inf)
        of_words = of_words.masked_fill(~case.word_mask[:, None], -math.inf)
    of_places -= of_places.amax(-1, keepdim=True)
    of_words -= of_words.amax(-1, keepdim=True)
    totals = (of_places[:, :, None] + of_words[:, None]).logsumexp(-1)
    if case.word_mask is not None:
        totals = totals.masked_fill(~case.word_mask[:, None], 0)
    return totals


def with_least_total(case: Case, half: str, least: float) -> Case:
    """Scale the queries until the smallest Z is about `least`.

    The factorised form moves an offset that outweighs the spread from place queries to word queries; independent
    normal queries have none, so its Z is the one computed here.
    """
    low, high = 0.0, 1e3
    for _ in range(40):
        scale = (low + high) / 2
        scaled = scale_queries(case, scale)
        if log_totals(scaled, half).min() > math.log(least):
            low = scale
        else:
            high = scale
    return scaled


def scale_queries(case: Case, scale: float) -> Case:
    return case.with_features(
        place_query=case["place_query"] * scale, word_query=case["word_query"] * scale
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grad_scale", [1e-7, 1.0, 65536.0])
@pytest.mark.parametrize("least", [1e-17, 1e-25, 1e-90])
@pytest.mark.parametrize("half", ["place", "word"])
def test_totals_near_the_floor(
    half: str, least: float, grad_scale: float, dtype: torch.dtype
) -> None:
    cases = []
    for seed in SEEDS:
        case = draw(19, 7, 16, 5, grad_scale=grad_scale, dtype=dtype, seed=seed)
        case = with_least_total(case, half, least)
        reached = float(log_totals(case, half).min().exp())
        # A query in bfloat16 moves in steps of 2^-8, and the logarithm of Z, here up to 200, with it.
        assert reached == pytest.approx(least, rel=0.5 if dtype != torch.bfloat16 else 2.0)
        if least == 1e-90:
            assert torch.tensor(reached, dtype=torch.float32) == 0
        cases.append(case)
    assert_within_budget(cases)


def test_float64_totals_under_its_own_floor() -> None:
    cases = []
    for seed in SEEDS:
        case = with_least_total(draw(19, 7, 16, 5, dtype=torch.float64, seed=seed), "place", 1e-200)
        cases.append(case)
        assert float(log_totals(case, "place").min()) < math.log(2.0**-500)
    assert_within_budget(cases)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 10.0, 1e3, 1e9, 1e15])
def test_finite_in_finite_out(scale: float) -> None:
    for seed in range(5):
        for part in run(fast, draw(31, 5, 17, 9, scale=scale, seed=seed)):
            assert part.isfinite().all()


@pytest.mark.parametrize("large", ["place_query", "place_key", "word_query", "word_key"])
def test_finite_where_one_side_makes_the_logits(large: str) -> None:
    """Features near float32's end whose squares overflow, though no logit does."""
    case = draw(31, 5, 17, 9)
    factors = dict.fromkeys(("place_query", "place_key", "word_query", "word_key"), 1e-25)
    factors[large] = 1e25
    case = case.with_features(**{name: case[name] * factor for name, factor in factors.items()})
    for part in run(fast, case):
        assert part.isfinite().all()
