"""What all cross-modal modules share: errors that name the wrong argument, and no nan for zero vectors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from support.small_level import PROJECTED, TOKEN, VISUAL, WORD, draw
from torch import nn

from cmsa_fast.nn import CMSA, FoldedLevel, PooledCMSA, SqueezedCMSA

V = torch.rand(2, VISUAL, 3, 3, dtype=torch.float64)
W = torch.rand(2, 4, WORD, dtype=torch.float64)
MASK = torch.ones(2, 4, dtype=torch.bool)
INDEX = torch.tensor([0, 1])


WEIGHT = torch.rand(PROJECTED, TOKEN, 1, 1, dtype=torch.float64)
LEVELS: dict[str, Callable[..., nn.Module]] = {
    "CMSA": CMSA,
    "PooledCMSA": PooledCMSA,
    "SqueezedCMSA": partial(SqueezedCMSA, squeezed_channels=4),
}


def level(name: str) -> Any:
    return LEVELS[name](VISUAL, WORD, attention_channels=3).double()


CALLS: dict[str, Callable[..., Any]] = {
    **{name: level(name) for name in LEVELS},
    "CMSA.project": partial(level("CMSA").project, weight=WEIGHT),
    "FoldedLevel": FoldedLevel(level("CMSA"), WEIGHT),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"visual": V[:, 1:]}, ValueError, r"visual must have shape \[batch, 11"),
        ({"visual": [1]}, TypeError, "visual must be a tensor; got list"),
        ({"words": W[..., 1:]}, ValueError, r"words must have shape \[batch, words, 7\]"),
        ({"words": W[:1]}, ValueError, "(visual|places) has 2 images and words 1 expr"),
        ({"words": W.float()}, TypeError, "words must have the dtype of (vis|the fold)"),
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
            "(visual|places) must hold at least one image",
        ),
    ],
)
def test_wrong_arguments_are_named(call: str, wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    with torch.no_grad(), pytest.raises(error, match=message):
        CALLS[call](**({"visual": V, "words": W} | wrong))


@pytest.mark.parametrize("name", LEVELS)
def test_wrong_sizes_and_backends_are_named(name: str) -> None:
    with pytest.raises(ValueError, match="attention_channels must be at least 1; got 0"):
        LEVELS[name](VISUAL, WORD, attention_channels=0)
    with pytest.raises(ValueError, match="backend must be one of .*; got 'numpy'"):
        LEVELS[name](VISUAL, WORD, attention_channels=3, backend="numpy")


def test_wrong_squeezed_size_is_named() -> None:
    with pytest.raises(ValueError, match="squeezed_channels must be at least 1; got 0"):
        SqueezedCMSA(3, 3, 0, 2)


@pytest.mark.parametrize("name", LEVELS)
def test_zero_vectors_give_no_nan(name: str) -> None:
    visual, words, *_ = draw(1, 1, 3, 2, 2)
    visual[..., 0, 0] = 0
    words[:, 1] = 0
    leaves = [visual.requires_grad_(), words.requires_grad_()]
    result = level(name)(*leaves)
    assert torch.isfinite(result).all()
    assert all(torch.isfinite(part).all() for part in torch.autograd.grad(result.sum(), leaves))
