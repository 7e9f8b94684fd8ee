"""Saturated softmaxes, and rows where the factorised sum Z = E_A E_C^T underflows."""

from __future__ import annotations

import math

import pytest
import torch
from support.oracle import Case, assert_within_budget, run
from support.separable_oracle import LOGIT_NAMES, draw, eager, with_largest_logit
from torch import Tensor

SEEDS = range(11)
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
@pytest.mark.parametrize("size", [30.0, 300.0, 1e4])
def test_large_logits(size: float, dtype: torch.dtype) -> None:
    cases = [draw(29, 5, 13, 7, dtype=dtype, seed=seed) for seed in range(21)]
    assert_within_budget(eager, [with_largest_logit(case, size) for case in cases])


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("part", ["place", "word"])
def test_constant_channel_makes_all_logits_large(part: str, sign: float) -> None:
    """A channel of 100 in queries and +-100 in keys puts all logits near +-1e4, with differences near 1."""
    cases = []
    for seed in SEEDS:
        case = draw(29, 5, 13, 7, seed=seed)
        query, key = case[f"{part}_query"].clone(), case[f"{part}_key"].clone()
        query[..., 0], key[..., 0] = 100, sign * 100
        cases.append(case.with_inputs(**{f"{part}_query": query, f"{part}_key": key}))
    assert_within_budget(eager, cases)


def log_totals(case: Case, half: str) -> Tensor:
    """log Z in float64, [B, P, N], at real words only; `half` selects the keys: "place" or "word"."""
    key = case[f"{half}_key"].double()
    place_logits = case["place_query"].double() @ key.mT  # A
    word_logits = case["word_query"].double() @ key.mT  # C
    if half == "word":
        place_logits = place_logits.masked_fill(~case.mask[:, None], -math.inf)
        word_logits = word_logits.masked_fill(~case.mask[:, None], -math.inf)
    place_logits -= place_logits.amax(-1, keepdim=True)
    word_logits -= word_logits.amax(-1, keepdim=True)
    totals = (place_logits[:, :, None] + word_logits[:, None]).logsumexp(-1)
    return totals.masked_fill(~case.mask[:, None], 0)


def with_smallest_total(case: Case, half: str, smallest: float) -> Case:
    """Scale the queries until the smallest Z is about `smallest`.

    The factorised form moves an offset that outweighs the spread from place queries to word queries; independent
    normal queries have none, so its Z is the one computed here.
    """
    low, high = 0.0, 1e3
    for _ in range(40):
        scale = (low + high) / 2
        queries = {name: case[name] * scale for name in ("place_query", "word_query")}
        scaled = case.with_inputs(**queries)
        if log_totals(scaled, half).min() > math.log(smallest):
            low = scale
        else:
            high = scale
    return scaled


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grad_scale", [1e-7, 1.0, 65536.0])
@pytest.mark.parametrize("smallest", [1e-17, 1e-25, 1e-90])
@pytest.mark.parametrize("half", ["place", "word"])
def test_totals_near_and_below_the_floor(
    half: str, smallest: float, grad_scale: float, dtype: torch.dtype
) -> None:
    cases = []
    for seed in SEEDS:
        case = draw(19, 7, 16, 5, grad_scale=grad_scale, dtype=dtype, seed=seed)
        case = with_smallest_total(case, half, smallest)
        reached = float(log_totals(case, half).min().exp())
        # Queries in bfloat16 have steps of 2^-8, and so has the logarithm of Z, here up to 200.
        assert reached == pytest.approx(smallest, rel=0.5 if dtype != torch.bfloat16 else 2.0)
        if smallest == 1e-90:
            assert torch.tensor(reached, dtype=torch.float32) == 0
        cases.append(case)
    assert_within_budget(eager, cases)


def test_float64_totals_below_its_own_floor() -> None:
    cases = []
    for seed in SEEDS:
        case = draw(19, 7, 16, 5, dtype=torch.float64, seed=seed)
        cases.append(with_smallest_total(case, "place", 1e-200))
        assert float(log_totals(cases[-1], "place").min()) < math.log(2.0**-500)
    assert_within_budget(eager, cases)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 10.0, 1e3, 1e9, 1e15])
def test_finite_inputs_give_finite_results(scale: float) -> None:
    for seed in range(5):
        for part in run(eager, draw(31, 5, 17, 9, scale=scale, seed=seed)):
            assert part.isfinite().all()


@pytest.mark.parametrize("large", LOGIT_NAMES)
def test_finite_where_squares_of_features_overflow(large: str) -> None:
    """Features of 1e25, whose squares float32 cannot hold, in products with small ones."""
    case = draw(31, 5, 17, 9)
    scaled = {name: case[name] * (1e25 if name == large else 1e-25) for name in LOGIT_NAMES}
    for part in run(eager, case.with_inputs(**scaled)):
        assert part.isfinite().all()


@pytest.mark.parametrize("images", [None, 2])
@pytest.mark.parametrize("scale", [1.0, 10.0], ids=["moderate", "below the floor"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_query_that_is_not_finite_changes_its_own_row_only(value: float, scale: float, images: int | None) -> None:
    """As in the literal form; the other rows equal those without that place's query."""
    case = draw(31, 5, 17, 9, batch=3, images=images, scale=scale, dtype=torch.float64)
    query = case["place_query"].clone()
    query[:, 2, 3] = value
    spoiled = case.with_inputs(place_query=query)
    result, grad_query, *_ = outputs = run(eager, spoiled)
    for ours, literal in zip(outputs, run(spoiled.operation.literal, spoiled), strict=True):
        assert torch.equal(ours.isfinite(), literal.isfinite())
    others = torch.arange(31) != 2
    for part, expected in zip((result, grad_query), run(eager, case), strict=False):
        assert part[:, others].isfinite().all()
        torch.testing.assert_close(part[:, others], expected[:, others], rtol=1e-9, atol=1e-9)
