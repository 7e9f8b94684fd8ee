"""The check of a program against its model fails where it should."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.small_training import CONFIG
from torch import Tensor

from cmsa_fast.export.check import TOLERANCE, compare
from cmsa_fast.export.program import Inputs


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return CONFIG.build().eval()


@torch.no_grad()
def test_the_largest_differences_are_reported(model: Any) -> None:
    seen = []

    def run(inputs: Inputs) -> Tensor:
        seen.append((len(inputs[0]), *inputs[1].shape))
        return model(*inputs)[:, 0] * (1 + TOLERANCE / 2 / len(seen))

    agreement = compare(model, CONFIG, torch.no_grad()(run))
    assert agreement.relative_error == pytest.approx(TOLERANCE / 2, rel=1e-2)
    assert 0 < agreement.probability_error < TOLERANCE
    assert seen == [(1, 1, 1), (1, 1, 20), (2, 3, 1), (2, 3, 20)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda logits: logits * (1 + 2 * TOLERANCE), "is not the model: its logits differ by 2.0e-04"),
        (lambda logits: logits.masked_fill(logits == logits.amax(), torch.nan), "is not the model"),
        (lambda logits: logits[:, 1:], r"have shape \[1, 31, 32\], and those of the model \[1, 32, 32\]"),
    ],
    ids=["different", "not a number", "shape"],
)
def test_a_wrong_program_is_refused(model: Any, wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(model, CONFIG, torch.no_grad()(lambda inputs: wrong(model(*inputs)[:, 0])))
