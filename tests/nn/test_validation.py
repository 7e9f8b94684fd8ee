"""Every cross-modal module names the argument that does not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.small_level import PROJECTED, TOKEN, VISUAL, WORD
from torch import Tensor

from cmsa_fast.nn import CMSA, PooledCMSA, SqueezedCMSA

V = torch.rand(2, VISUAL, 3, 3, dtype=torch.float64)
W = torch.rand(2, 4, WORD, dtype=torch.float64)
MASK = torch.ones(2, 4, dtype=torch.bool)
INDEX = torch.tensor([0, 1])


def project(**given: Any) -> Tensor:
    weight = torch.rand(PROJECTED, TOKEN, 1, 1, dtype=torch.float64)
    return CMSA(VISUAL, WORD, 3).double().project(**given, weight=weight)


CALLS: dict[str, Callable[..., Any]] = {
    "CMSA": CMSA(VISUAL, WORD, 3).double(),
    "CMSA.project": project,
    "PooledCMSA": PooledCMSA(VISUAL, WORD, 3).double(),
    "SqueezedCMSA": SqueezedCMSA(VISUAL, WORD, 4, 3).double(),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"visual": V[:, 1:]}, ValueError, r"visual must have shape \[batch, 11"),
        ({"visual": [1]}, TypeError, "visual must be a tensor; got list"),
        ({"words": W[..., 1:]}, ValueError, r"words must have shape \[batch, words, 7\]"),
        ({"words": W[:1]}, ValueError, "visual has 2 images and words 1 expressions"),
        ({"words": W.float()}, TypeError, "words must have the dtype of visual"),
        (
            {"word_mask": MASK.float()},
            TypeError,
            "word_mask must be a bool tensor; got torch.float",
        ),
        ({"word_mask": MASK[:, 1:]}, ValueError, r"\[batch, words\] = \[2, 4\]; got \[2, 3\]"),
        (
            {"word_mask": MASK & (INDEX == 1)[:, None]},
            ValueError,
            r"expressions \[0\] of 2 have none",
        ),
        ({"image_index": INDEX.float()}, TypeError, "image_index must be an int64 tensor"),
        ({"image_index": INDEX[:1]}, ValueError, r"shape \[batch\] = \[2\]; got \[1\]"),
        ({"image_index": 2 * INDEX}, ValueError, r"must lie in 0\.\.1; got values from 0 to 2"),
        (
            {"image_index": INDEX, "visual": V[:0]},
            ValueError,
            "visual must hold at least one image",
        ),
    ],
)
def test_wrong_arguments_are_named(
    call: str, wrong: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        CALLS[call](**({"visual": V, "words": W} | wrong))
