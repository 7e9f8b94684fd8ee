"""What all cross-modal modules share: errors that name the wrong argument, and no nan for zero vectors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from support.small_level import PROJECTED, TOKEN, VISUAL, WORD, draw
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

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


@pytest.mark.parametrize("name", LEVELS)
def test_dtypes_that_differ_from_the_weights_are_named(name: str) -> None:
    """Autocast casts inputs and weights, except float64."""
    module, visual, words = level(name).half(), V.float(), W.float()
    with pytest.raises(
        TypeError, match=r"visual must have the dtype of output\.weight, torch\.float16; got torch.float32"
    ):
        module(visual, words)
    module.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert module(visual, words.bfloat16()).isfinite().all()
        with pytest.raises(TypeError, match=r"words must have the dtype of visual, .*; got torch\.float64"):
            module(visual, words.double())


class LowRank(nn.Module):
    """An adapter around a linear map, in the way of LoRA."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.weight, self.bias = base, base.weight, base.bias
        self.down, self.up = nn.Linear(base.in_features, 2), nn.Linear(2, base.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class LowRankWeight(nn.Module):
    """The same as a parametrization of the weight."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.down, self.up = (nn.Parameter(torch.randn(*shape).double()) for shape in ((2, columns), (rows, 2)))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def patch_forward(part: nn.Linear) -> None:
    part.forward = lambda x: 2 * F.linear(x, part.weight)  # type: ignore[method-assign]


MODIFICATIONS: dict[str, tuple[Callable[[Any, str], object], str]] = {
    "pre-hook": (lambda m, name: getattr(m, name).register_forward_pre_hook(lambda *_: None), "one with hooks"),
    "hook": (lambda m, name: getattr(m, name).register_forward_hook(lambda *_: None), "one with hooks"),
    "backward hook": (
        lambda m, name: getattr(m, name).register_full_backward_hook(lambda *_: None),
        "one with hooks",
    ),
    "pruned": (lambda m, name: prune.l1_unstructured(getattr(m, name), "weight", 0.5), "one with hooks"),
    "patched": (lambda m, name: patch_forward(getattr(m, name)), "Linear"),
    "adapter": (lambda m, name: setattr(m, name, LowRank(getattr(m, name))), "LowRank"),
    "quantised": (
        lambda m, name: setattr(m, name, torch.ao.nn.quantized.dynamic.Linear(3, 3)),
        "Linear",
    ),
}


@pytest.mark.filterwarnings("ignore:.*torch.ao.*:DeprecationWarning", "ignore:.*quantized.*:UserWarning")
@pytest.mark.parametrize("part", ["query", "output"])
@pytest.mark.parametrize("change", MODIFICATIONS)
@pytest.mark.parametrize("name", [*LEVELS, "FoldedLevel"])
def test_linear_maps_that_are_not_read_as_a_weight_are_refused(name: str, change: str, part: str) -> None:
    module = level("CMSA" if name == "FoldedLevel" else name)
    with torch.no_grad():
        call = FoldedLevel(module, WEIGHT) if name == "FoldedLevel" else module
        call(V, W)
        modify, came = MODIFICATIONS[change]
        modify(module, part)
        with pytest.raises(TypeError, match=rf"{part} must be an nn\.Linear without hooks, .*; got {came}\."):
            call(V, W)
        if name == "FoldedLevel":
            with pytest.raises(TypeError, match=f"{part} must be an nn"):
                FoldedLevel(module, WEIGHT)


@pytest.mark.parametrize("name", LEVELS)
def test_biases_that_would_be_ignored_are_refused(name: str) -> None:
    module = level(name)
    has_bias = module.key.bias is not None
    module.key = nn.Linear(3, 3, bias=not has_bias)
    with pytest.raises(TypeError, match=f"key must have bias={has_bias}; got bias={not has_bias}"):
        module(V, W)


@pytest.mark.parametrize("name", LEVELS)
def test_parametrized_weights_are_used(name: str) -> None:
    module, merged = level(name), level(name)
    merged.load_state_dict(module.state_dict())
    for part in ("query", "output"):
        linear = getattr(module, part)
        change = LowRankWeight(*linear.weight.shape)
        nn.utils.parametrize.register_parametrization(linear, "weight", change)
        getattr(merged, part).weight.data.copy_(linear.weight)
        change.up.grad = None
    result = module(V, W)
    assert torch.equal(result, merged(V, W))
    result.square().sum().backward()
    assert all(part.grad is not None for part in module.parameters())
