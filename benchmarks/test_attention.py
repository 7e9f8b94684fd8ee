"""Parity, then speed, of the attention: `pytest benchmarks/`. No speed fails a test."""

from typing import Any

import pytest
import torch

from . import attention, cases


@pytest.mark.parametrize("peer", ["literal", "sdpa"])
def test_parity_with(peer: str) -> None:
    """Within twice the float32 error of the peer itself, against the literal form in float64."""
    parts = cases.features(130, 7)
    exact = cases.attend([part.double() for part in parts], "reference")
    other = cases.sdpa(parts) if peer == "sdpa" else cases.attend(parts, "reference")
    ours = cases.attend(parts, "torch")
    floor = torch.finfo(torch.float32).eps * exact.norm()
    assert (ours - exact).norm() <= 2 * max((other - exact).norm(), floor)


@pytest.mark.parametrize("name", cases.NAMES)
def test_speed(name: str, benchmark: Any) -> None:
    case = cases.build(name)
    benchmark.extra_info["flops"] = case.flops
    warm_up = int(case.rounds > 3)
    benchmark.pedantic(case.run, rounds=min(case.rounds, 5), warmup_rounds=warm_up)


def test_interleaved_summary(capsys: pytest.CaptureFixture[str]) -> None:
    """The figures that the README quotes, in one interleaved run."""
    figures = attention.collect()
    with capsys.disabled():
        print("\n" + attention.format_table(figures))
    assert set(figures["cases"]) == set(cases.NAMES)
    assert all(row["median_s"] > 0 for row in figures["cases"].values())
