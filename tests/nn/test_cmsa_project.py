"""`CMSA.project` against the 1x1 convolution of the level that it replaces."""

from typing import Any

import pytest
import torch
from support.small_level import PROJECTED, TOKEN, Inputs, build, draw, padding
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from cmsa_fast.nn import CMSA


def folded(module: CMSA, inputs: Inputs, mask: Tensor | None, index: Tensor | None) -> Tensor:
    visual, words, weight, bias = inputs
    return module.project(visual, words, mask, weight=weight, bias=bias, image_index=index)


def unfolded(module: CMSA, inputs: Inputs, mask: Tensor | None, index: Tensor | None) -> Tensor:
    visual, words, weight, bias = inputs
    return F.conv2d(module(visual, words, mask, image_index=index), weight, bias)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("index", [None, [1, 0, 1, 1]])
def test_is_the_convolution_of_the_level(
    backend: str, masked: bool, index: list[int] | None
) -> None:
    module = build(backend)
    visual, words, weight, bias = draw(3 if index is None else 2, 4 if index else 3, 5, 3, 7)
    mask = padding(*words.shape[:2]) if masked else None
    if mask is not None:
        words = words.masked_fill(~mask[..., None], torch.nan)
    image_index = None if index is None else torch.tensor(index)
    inputs = tuple(part.requires_grad_() for part in (visual, words, weight, bias))
    leaves = [*inputs, *module.parameters()]
    upstream = torch.randn(len(words), PROJECTED, 3, 7, dtype=torch.float64)
    ours, theirs = (
        (out.detach(), *torch.autograd.grad(out, leaves, upstream))
        for out in (
            folded(module, inputs, mask, image_index),
            unfolded(module, inputs, mask, image_index),
        )
    )
    assert ours[0].is_contiguous()
    for mine, exact in zip(ours, theirs, strict=True):
        assert torch.isfinite(mine).all()
        assert (mine - exact).norm() <= 1e-10 * exact.norm()
    if mask is not None:
        assert (ours[2][~mask] == 0).all()


def test_one_place_one_word_no_bias() -> None:
    module = build()
    visual, words, weight, _ = draw(2, 2, 1, 1, 1)
    ours = module.project(visual, words, weight=weight)
    theirs = F.conv2d(module(visual, words), weight)
    assert (ours - theirs).norm() <= 1e-12 * theirs.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_is_that_of_the_convolution(dtype: torch.dtype) -> None:
    module = build().to(dtype)
    inputs = tuple(part.to(dtype) for part in draw(2, 2, 5, 9, 7))
    mask = padding(2, 5)
    exact = unfolded(module.double(), tuple(part.double() for part in inputs), mask, None)
    module.to(dtype)
    errors = [(run(module, inputs, mask, None) - exact).norm() for run in (folded, unfolded)]
    assert errors[0] <= 2 * max(errors[1], torch.finfo(dtype).eps * exact.norm())


@pytest.mark.parametrize("visual_dtype", [torch.float32, torch.bfloat16])
def test_autocast(visual_dtype: torch.dtype) -> None:
    module = build().float()
    visual, *others = (part.float() for part in draw(2, 2, 5, 9, 7))
    visual = visual.to(visual_dtype)
    mask = padding(2, 5)
    exact = unfolded(
        module.double(), (visual.double(), *(part.double() for part in others)), mask, None
    )
    module.float()
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (run(module, (visual, *others), mask, None) for run in (folded, unfolded))
    assert ours.dtype == theirs.dtype == torch.bfloat16
    allowed = max((theirs - exact).norm(), torch.finfo(torch.bfloat16).eps * exact.norm())
    assert (ours - exact).norm() <= 2 * allowed


class _Shapes(TorchDispatchMode):
    """Records the shape of every tensor that an operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.seen.append(tuple(result.shape))
        return result


def test_the_level_is_never_built() -> None:
    module = build()
    inputs = draw(1, 1, 5, 9, 7)
    places = {63, 9}  # all places, or rows of the grid

    def built(run: Any) -> bool:
        with _Shapes() as shapes:
            run(module, inputs, None, None)
        return any(TOKEN in shape and places & set(shape) for shape in shapes.seen)

    assert built(unfolded)
    assert not built(folded)


def test_messages() -> None:
    module = build()
    visual, words, weight, bias = draw(2, 2, 3, 3, 3)
    with pytest.raises(ValueError, match=r"weight must have shape \[channels, 26, 1, 1\]"):
        module.project(visual, words, weight=weight[:, 1:])
    with pytest.raises(ValueError, match=r"weight must have shape \[channels, 26, 1, 1\]"):
        module.project(visual, words, weight=weight.expand(-1, -1, 3, 3))
    with pytest.raises(TypeError, match=r"weight must have the dtype of output\.weight"):
        module.project(visual, words, weight=weight.float())
    with pytest.raises(TypeError, match="weight must be a tensor"):
        module.project(visual, words, weight=None)
    with pytest.raises(ValueError, match=r"bias must have shape \[channels\] = \[6\]"):
        module.project(visual, words, weight=weight, bias=bias[1:])
    with pytest.raises(TypeError, match="bias must have the dtype of weight"):
        module.project(visual, words, weight=weight, bias=bias.float())
    with pytest.raises(ValueError, match="visual must have shape"):
        module.project(visual[:, 1:], words, weight=weight)
