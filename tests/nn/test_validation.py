"""Every cross-modal module names the argument that does not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.small_level import PROJECTED, TOKEN, VISUAL, WORD
from torch import Tensor

from cmsa_fast.nn import CMSA, PooledCMSA, SqueezedCMSA

Arguments = dict[str, Any]
MISTAKES: dict[str, tuple[Callable[[Tensor, Tensor], Arguments], type[Exception], str]] = {
    "visual": (
        lambda v, w: {"visual": v[:, 1:], "words": w},
        ValueError,
        r"visual must have shape \[batch, 11",
    ),
    "no tensor": (
        lambda v, w: {"visual": [1], "words": w},
        TypeError,
        "visual must be a tensor; got list",
    ),
    "words": (
        lambda v, w: {"visual": v, "words": w[..., 1:]},
        ValueError,
        r"words must have shape \[batch, words, 7\]",
    ),
    "batch": (
        lambda v, w: {"visual": v, "words": w[:1]},
        ValueError,
        "visual has 2 images and words 1 expressions",
    ),
    "dtype": (
        lambda v, w: {"visual": v, "words": w.float()},
        TypeError,
        "words must have the dtype of visual",
    ),
    "mask dtype": (
        lambda v, w: {"visual": v, "words": w, "word_mask": torch.ones(2, 4)},
        TypeError,
        "word_mask must be a bool tensor; got torch.float32",
    ),
    "mask shape": (
        lambda v, w: {"visual": v, "words": w, "word_mask": torch.ones(2, 3, dtype=torch.bool)},
        ValueError,
        r"word_mask must have shape \[batch, words\] = \[2, 4\]; got \[2, 3\]",
    ),
    "empty expression": (
        lambda v, w: {"visual": v, "words": w, "word_mask": torch.arange(2)[:, None] > w[..., 0]},
        ValueError,
        r"word_mask must have a true word in every expression; expressions \[0\] of 2",
    ),
    "index dtype": (
        lambda v, w: {"visual": v, "words": w, "image_index": torch.zeros(2)},
        TypeError,
        "image_index must be an int64 tensor",
    ),
    "index shape": (
        lambda v, w: {"visual": v, "words": w, "image_index": torch.zeros(3, dtype=torch.int64)},
        ValueError,
        r"image_index must have shape \[batch\] = \[2\]; got \[3\]",
    ),
    "index range": (
        lambda v, w: {"visual": v, "words": w, "image_index": torch.tensor([0, 2])},
        ValueError,
        r"image_index must lie in 0\.\.1; got values from 0 to 2",
    ),
    "no image": (
        lambda v, w: {"visual": v[:0], "words": w, "image_index": torch.tensor([0, 0])},
        ValueError,
        "visual must hold at least one image for 2 expressions",
    ),
}


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
@pytest.mark.parametrize("mistake", MISTAKES)
def test_wrong_arguments_are_named(call: str, mistake: str) -> None:
    given, error, text = MISTAKES[mistake]
    visual = torch.rand(2, VISUAL, 3, 3, dtype=torch.float64)
    words = torch.rand(2, 4, WORD, dtype=torch.float64)  # in [0, 1)
    with pytest.raises(error, match=text):
        CALLS[call](**given(visual, words))
