"""The levels of the published code against their literal form, which materialises every token."""

from __future__ import annotations

import pytest
import torch
from support.small_level import TOKEN, VISUAL, WORD, assert_rounded_like, draw
from torch import Tensor, nn
from torch.nn import functional as F

from cmsa_fast.nn import PooledCMSA, SqueezedCMSA, spatial_coordinates

WIDTH, SQUEEZED = 6, 9
Level = PooledCMSA | SqueezedCMSA


LEVELS = {
    "pooled": lambda: PooledCMSA(VISUAL, WORD, WIDTH),
    "squeezed": lambda: SqueezedCMSA(VISUAL, WORD, SQUEEZED, WIDTH),
}


def build(kind: str) -> Level:
    """With biases and larger weights than the initial ones, so that the softmax is far from uniform."""
    torch.manual_seed(0)
    module: Level = LEVELS[kind]().double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.7 if parameter.ndim == 2 else 0.3))
    return module


def convolution(part: nn.Linear, feature: Tensor) -> Tensor:
    """A 1x1x1 convolution with bias, on [1, C, N, H, W]."""
    return F.conv3d(feature, part.weight[:, :, None, None, None], part.bias)


def literal_expression(module: Level, visual: Tensor, words: Tensor) -> Tensor:
    """One image [Cv, H, W] and the real words [N, Cl] of one expression -> [C, H, W]."""
    height, width, count = *visual.shape[1:], len(words)
    spatial = spatial_coordinates(height, width, dtype=visual.dtype)
    unit_visual = visual / visual.norm(dim=0).clamp_min(1e-6)
    unit_words = words / words.norm(dim=1, keepdim=True).clamp_min(1e-6)
    x = torch.stack(
        [
            torch.cat([unit_visual, word[:, None, None].expand(-1, height, width), spatial], dim=0)
            for word in unit_words
        ],
        dim=1,
    )[None]  # [1, C, N, H, W]
    if isinstance(module, SqueezedCMSA):
        x = convolution(module.squeeze, x).relu()
    query = convolution(module.query, x).relu().flatten(2)  # [1, d, N*H*W]
    key, value = (
        F.max_pool3d(convolution(part, x).relu(), 2, stride=2, ceil_mode=True).flatten(2)
        for part in (module.key, module.value)
    )
    weights = (query.mT @ key).softmax(2)
    attended = (weights @ value.mT).mT.unflatten(2, (count, height, width))
    return (convolution(module.output, attended).relu() + x)[0].mean(1)


def literal(
    module: Level, visual: Tensor, words: Tensor, mask: Tensor, image_index: Tensor | None = None
) -> Tensor:
    images = range(len(words)) if image_index is None else image_index.tolist()
    return torch.stack(
        [
            literal_expression(module, visual[image], words[expression][mask[expression]])
            for expression, image in enumerate(images)
        ]
    )


def padding(batch: int, words: int) -> Tensor:
    """Padding at the front, in the middle, at the back and none, with odd and even numbers of words."""
    mask = torch.ones(batch, words, dtype=torch.bool)
    if words >= 3:
        mask[0, : words // 3] = False
        mask[1, 1 : words - 1] = False
        mask[2, -(words // 2) :] = False
    return mask


SIZES = [(1, 1, 1), (6, 3, 5), (5, 4, 6), (3, 7, 1), (7, 2, 3)]


@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize(("words", "height", "width"), SIZES)
@pytest.mark.parametrize("shared", [False, True])
def test_equals_the_literal_form(kind: str, words: int, height: int, width: int, shared: bool) -> None:
    module = build(kind)
    visual, vectors = draw(4, 4, words, height, width)[:2]
    mask = padding(4, words)
    index = torch.tensor([1, 0, 1, 2]) if shared else None
    if shared:
        visual = visual[:3]
    spoilt = vectors.masked_fill(~mask[..., None], torch.nan)
    leaves = [visual.requires_grad_(), spoilt.requires_grad_(), *module.parameters()]
    upstream = torch.randn(4, module.out_channels, height, width, dtype=torch.float64)
    ours, theirs = (
        (out, *torch.autograd.grad(out, leaves, upstream))
        for out in (
            module(visual, spoilt, mask, image_index=index),
            literal(module, visual, spoilt, mask, index),
        )
    )
    assert ours[0].shape == upstream.shape
    assert (ours[0] - theirs[0]).norm() <= 1e-10 * theirs[0].norm()
    largest = max(float(gradient.norm()) for gradient in theirs[1:])
    for mine, true in zip(ours[1:], theirs[1:], strict=True):
        assert torch.isfinite(true).all()
        assert (mine - true).norm() <= 1e-10 * largest
    assert (ours[2][~mask] == 0).all()


@pytest.mark.parametrize("kind", LEVELS)
def test_windows_pair_real_words_wherever_padding_is(kind: str) -> None:
    module = build(kind)
    visual, words = draw(1, 1, 5, 3, 3)[:2]
    whole = module(visual, words)
    expected = literal(module, visual, words, torch.ones(1, 5, dtype=torch.bool))
    assert (whole - expected).norm() <= 1e-10 * expected.norm()
    for places in ([0, 2, 3, 5, 7], [3, 4, 5, 6, 7], [0, 1, 2, 3, 4]):
        spread = torch.full((1, 8, WORD), torch.nan, dtype=torch.float64)
        spread[:, places] = words
        mask = torch.zeros(1, 8, dtype=torch.bool)
        mask[:, places] = True
        assert (module(visual, spread, mask) - whole).norm() <= 1e-12 * whole.norm()
    swapped = module(visual, words[:, [1, 2, 0, 3, 4]])
    assert (swapped - whole).norm() > 1e-6 * whole.norm()  # other pairs, other maxima


@pytest.mark.parametrize("kind", LEVELS)
def test_backend_and_memory_layout_do_not_change_the_result(kind: str) -> None:
    module = build(kind)
    visual, words = draw(3, 3, 5, 4, 3)[:2]
    mask = padding(3, 5)
    expected = module(visual, words, mask)
    strided = torch.stack([words, words.neg()], dim=2)[:, :, 0]
    again = module(visual.contiguous(), strided, mask.T.contiguous().T)
    assert (again - expected).norm() <= 1e-12 * expected.norm()
    module.backend = "reference"
    assert (module(visual, words, mask) - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_error_is_that_of_the_literal_form(kind: str, dtype: torch.dtype) -> None:
    module = build(kind).to(dtype)
    visual, words = (part.to(dtype) for part in draw(3, 3, 6, 5, 4)[:2])
    mask = padding(3, 6)
    exact = literal(module.double(), visual.double(), words.double(), mask)
    module.to(dtype)
    ours, theirs = module(visual, words, mask), literal(module, visual, words, mask)
    assert_rounded_like(ours, theirs, exact, dtype)


@pytest.mark.parametrize("kind", LEVELS)
def test_autocast_error_is_that_of_the_literal_form(kind: str) -> None:
    module = build(kind)
    visual, words = draw(3, 3, 6, 5, 4)[:2]
    exact = literal(module, visual, words, padding(3, 6))
    with torch.autocast("cpu", torch.bfloat16):
        given = (visual.bfloat16(), words.float(), padding(3, 6))
        ours, theirs = module.float()(*given), literal(module, *given)
    assert_rounded_like(ours, theirs, exact, torch.bfloat16)


def test_parameters_are_those_of_the_published_code() -> None:
    attention = {
        f"{name}.{kind}": shape
        for name in ("query", "key", "value")
        for kind, shape in (("weight", (WIDTH, TOKEN)), ("bias", (WIDTH,)))
    }
    output = {"output.weight": (TOKEN, WIDTH), "output.bias": (TOKEN,)}
    assert shapes(LEVELS["pooled"]()) == attention | output
    squeezed = {name: (WIDTH, SQUEEZED)[: len(shape)] for name, shape in attention.items()}
    assert shapes(LEVELS["squeezed"]()) == squeezed | {
        "output.weight": (SQUEEZED, WIDTH),
        "output.bias": (SQUEEZED,),
        "squeeze.weight": (SQUEEZED, TOKEN),
        "squeeze.bias": (SQUEEZED,),
    }


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(part.shape) for name, part in module.named_parameters()}
