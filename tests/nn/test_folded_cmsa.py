"""`CMSA.project` and `FoldedLevel` against the level followed by its convolution."""

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import cast

import pytest
import torch
from support.small_level import (
    PROJECTED,
    TOKEN,
    VISUAL,
    WIDTH,
    Inputs,
    assert_rounded_like,
    build,
    convolve,
    draw,
    padding,
    project,
    tensor_shapes,
)
from torch import Tensor, nn
from torch.nn import functional as F

from cmsa_fast.nn import CMSA, FoldedLevel


@pytest.fixture(autouse=True)
def without_gradient() -> Iterator[None]:
    with torch.no_grad():
        yield


def fold(module: CMSA, inputs: Inputs, mask: Tensor | None, index: Tensor | None = None) -> Tensor:
    visual, words, weight, bias = inputs
    return FoldedLevel(module, weight, bias)(visual, words, mask, image_index=index)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("index", [None, [1, 0, 1, 1]])
@pytest.mark.parametrize("width", [WIDTH, 19])
@torch.enable_grad()
def test_equals_the_convolution_of_the_level(
    backend: str, masked: bool, index: list[int] | None, width: int
) -> None:
    module = build(backend, width)
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
        for out in (run(module, inputs, mask, image_index) for run in (project, convolve))
    )
    assert ours[0].is_contiguous()
    for mine, exact in zip(ours, theirs, strict=True):
        assert torch.isfinite(mine).all()
        assert (mine - exact).norm() <= 1e-10 * exact.norm()
    if mask is not None:
        assert (ours[2][~mask] == 0).all()
    with torch.no_grad():
        folded = fold(module, inputs, mask, image_index)
    assert folded.shape == upstream.shape
    assert (folded - theirs[0]).norm() <= 1e-12 * theirs[0].norm()


@pytest.mark.parametrize("width", [5, 21])
def test_kernels_take_values_of_another_width(width: int) -> None:
    pytest.importorskip("triton", reason="the kernels need Triton, which is not installed")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs = draw(2, 3, 4, 3, 5)
    mask, index = padding(3, 4), torch.tensor([1, 0, 1])
    exact = convolve(build(width=width), inputs, mask, index)
    single = tuple(part.float() for part in inputs)
    theirs = convolve(build(width=width).float(), single, mask, index)
    module = build("triton", width).float().to(device)
    visual, words, weight, bias = (part.to(device) for part in single)
    level = FoldedLevel(module, weight, bias)
    ours = level(visual, words, mask.to(device), image_index=index.to(device)).cpu()
    assert_rounded_like(ours, theirs, exact, torch.float32)


@pytest.mark.parametrize("run", [project, fold])
def test_one_place_one_word_without_bias(run: Callable[..., Tensor]) -> None:
    module = build()
    visual, words, weight, _ = draw(2, 2, 1, 1, 1)
    exact = F.conv2d(module(visual, words), weight)
    ours = run(module, (visual, words, weight, None), None)
    assert (ours - exact).norm() <= 1e-12 * exact.norm()


def test_convolutions_of_fewer_and_more_than_sixteen_channels() -> None:
    module = build()
    visual, words, _, _ = draw(2, 2, 5, 9, 7)
    for channels in (1, 16, 33):
        weight = torch.randn(channels, TOKEN, 1, 1, dtype=torch.float64)
        exact = F.conv2d(module(visual, words), weight)
        ours = FoldedLevel(module, weight)(visual, words)
        assert ours.shape == exact.shape
        assert (ours - exact).norm() <= 1e-12 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("run", [project, fold])
def test_rounding_error_is_that_of_the_convolution(run: Callable[..., Tensor], dtype: torch.dtype) -> None:
    module = build().to(dtype)
    inputs = tuple(part.to(dtype) for part in draw(2, 2, 5, 9, 7))
    mask = padding(2, 5)
    exact = convolve(module.double(), tuple(part.double() for part in inputs), mask)
    module.to(dtype)
    ours, theirs = (form(module, inputs, mask) for form in (run, convolve))
    assert ours.dtype == dtype
    assert_rounded_like(ours, theirs, exact, dtype)


@pytest.mark.parametrize(
    ("visual_dtype", "encoded_under_autocast"),
    [(torch.float32, False), (torch.float32, True), (torch.bfloat16, True)],
)
def test_autocast(visual_dtype: torch.dtype, encoded_under_autocast: bool) -> None:
    module = build().float()
    visual, words, weight, bias = (part.float() for part in draw(2, 2, 5, 9, 7))
    visual = visual.to(visual_dtype)
    mask = padding(2, 5)
    exact = convolve(module.double(), (visual.double(), words.double(), weight.double(), bias.double()), mask)
    level = FoldedLevel(module.float(), weight, bias)
    with torch.autocast("cpu", torch.bfloat16, enabled=encoded_under_autocast):
        places = level.encode(visual)
    with torch.autocast("cpu", torch.bfloat16):
        ours = level.project(places, words, mask)
        projected, theirs = (run(module, (visual, words, weight, bias), mask) for run in (project, convolve))
        received = level.unchecked_project(places, words, mask, None, True)[1]
    assert projected.dtype == theirs.dtype == torch.bfloat16
    assert not encoded_under_autocast or ours.dtype == torch.bfloat16
    assert_rounded_like(ours, theirs, exact, torch.bfloat16)
    assert_rounded_like(projected, theirs, exact, torch.bfloat16)
    assert (received.sum(1) - 1).abs().max() < 0.02


def test_folding_under_autocast_keeps_full_precision() -> None:
    module = build().float()
    inputs = tuple(part.float() for part in draw(1, 1, 5, 9, 7))
    plain = fold(module, inputs, None)
    with torch.autocast("cpu", torch.bfloat16):
        level = FoldedLevel(module, *inputs[2:])
    assert torch.equal(level(*inputs[:2]), plain)


def test_inference_mode() -> None:
    module, inputs = build(), draw(2, 2, 5, 3, 7)
    plain = fold(module, inputs, None)
    level = FoldedLevel(module, *inputs[2:])
    with torch.inference_mode():
        assert torch.equal(level(*inputs[:2]), plain)
        inference_level = FoldedLevel(module, *inputs[2:])
        places = inference_level.encode(inputs[0])
        assert torch.equal(fold(build(), inputs, None), plain)  # weights of inference mode
    assert torch.equal(inference_level.project(places, inputs[1]), plain)


def test_image_is_encoded_once_for_its_expressions() -> None:
    module, inputs = build(), draw(2, 3, 5, 3, 7)
    visual, words, weight, bias = inputs
    mask = padding(3, 5)
    level = FoldedLevel(module, weight, bias)
    places = level.encode(visual)
    index = torch.tensor([1, 0, 1])
    together = level.project(places, words, mask, image_index=index)
    assert torch.equal(together, level(visual, words, mask, image_index=index))
    for expression, image in enumerate(index):
        one = level.project(places, words[[expression]], mask[[expression]], image_index=image[None])
        assert (one[0] - together[expression]).norm() <= 1e-12 * one.norm()
    _, received = module(visual, words, mask, image_index=index, return_word_attention=True)
    ours = level.unchecked_project(places, words, mask, index, True)[1]
    assert (ours - received).norm() <= 1e-12 * received.norm()
    assert (ours[~mask] == 0).all()


def test_project_does_not_materialise_the_level() -> None:
    module, inputs = build(), draw(1, 1, 5, 9, 7)
    places = {63, 9}  # all places, or rows of the grid

    def materialises(run: Callable[..., Tensor]) -> bool:
        shapes = tensor_shapes(lambda: run(module, inputs))
        return any(TOKEN in shape and places & set(shape) for shape in shapes)

    assert materialises(convolve)
    assert not materialises(project)


def test_encoded_images_and_whole_weights_are_not_used_again() -> None:
    module, (visual, words, weight, bias) = build(width=4), draw(1, 1, 2, 9, 7)
    level = FoldedLevel(module, weight, bias)
    places = level.encode(visual)

    def sizes(run: Callable[[], object]) -> set[int]:
        return {VISUAL, TOKEN} & {size for shape in tensor_shapes(run) for size in shape}

    assert sizes(lambda: module.project(visual, words, weight=weight, bias=bias)) == {VISUAL, TOKEN}
    assert sizes(lambda: level(visual, words)) == {VISUAL}
    assert not sizes(lambda: level.unchecked_project(places, words, None, None, True))


def test_recording_gradients_is_refused() -> None:
    module, (visual, words, weight, bias) = build(), draw(1, 1, 3, 3, 3)
    level = FoldedLevel(module, weight, bias)
    places = level.encode(visual)
    for call in (
        lambda: level(visual, words),
        lambda: level.encode(visual),
        lambda: level.project(places, words),
    ):
        with torch.enable_grad(), pytest.raises(RuntimeError, match=r"under torch\.no_grad\(\)"):
            call()


def optimizer_step(module: CMSA, _: nn.Conv2d) -> None:
    with torch.enable_grad():
        visual, words, *_rest = draw(1, 1, 3, 3, 3)
        module(visual, words).square().sum().backward()
    torch.optim.Adam(module.parameters()).step()


def scaled_state(module: CMSA, factor: float) -> dict[str, Tensor]:
    return {name: factor * part for name, part in module.state_dict().items()}


CHANGES: dict[str, Callable[[CMSA, nn.Conv2d], object]] = {
    "optimizer step": optimizer_step,
    "load": lambda module, _: module.load_state_dict(scaled_state(module, 2)),
    "assign": lambda module, _: module.load_state_dict(scaled_state(module, 1), assign=True),
    "cast": lambda module, _: module.float(),
    "replace": lambda module, _: setattr(module.value.weight, "data", torch.ones_like(module.value.weight)),
    "parametrize": lambda module, _: nn.utils.parametrizations.weight_norm(module.value),
    "convolution": lambda _, convolution: convolution.weight.mul_(2),
    "bias": lambda _, convolution: cast(Tensor, convolution.bias).add_(1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_refused(change: str) -> None:
    module, (visual, words, _, _) = build(), draw(1, 1, 3, 3, 3)
    convolution = nn.Conv2d(TOKEN, PROJECTED, 1).double()
    level = FoldedLevel(module, convolution.weight, convolution.bias)
    places = level.encode(visual)
    before = level.project(places, words)
    assert torch.equal(level(visual, words), before)
    CHANGES[change](module, convolution)
    with pytest.raises(RuntimeError, match="fold them again"):
        level(visual, words)
    with pytest.raises(RuntimeError, match="fold them again"):
        level.project(places, words)


def test_folded_weights_are_a_copy() -> None:
    """An in-place change through `.data`, which cannot be detected, has no partial effect."""
    module, (visual, words, weight, bias) = build(), draw(1, 1, 3, 3, 3)
    level = FoldedLevel(module, weight, bias)
    before = level(visual, words)
    for part in (*module.parameters(), weight, bias):
        part.data.mul_(2)
    assert torch.equal(level(visual, words), before)


@pytest.mark.parametrize("call", [CMSA.project, FoldedLevel], ids=["project", "fold"])
def test_wrong_convolutions_are_named(call: Callable[..., object]) -> None:
    visual, words, right, bias = draw(2, 2, 3, 3, 3)
    given = {"visual": visual, "words": words} if call is CMSA.project else {}
    call(build(), **given, weight=right, bias=bias)
    for wrong in (right[:, 1:], right.expand(-1, -1, 3, 3)):
        with pytest.raises(ValueError, match=r"weight must have shape \[channels, 26, 1, 1\]"):
            call(build(), **given, weight=wrong)
    with pytest.raises(TypeError, match=r"weight must have the dtype of output\.weight"):
        call(build(), **given, weight=right.float())
    with pytest.raises(TypeError, match="weight must be a tensor"):
        call(build(), **given, weight=None)
    with pytest.raises(ValueError, match=r"bias must have shape \[channels\] = \[6\]"):
        call(build(), **given, weight=right, bias=bias[1:])
    with pytest.raises(TypeError, match="bias must have the dtype of weight"):
        call(build(), **given, weight=right, bias=bias.float())


def test_wrong_encoded_images_are_named() -> None:
    visual, words, weight, bias = draw(2, 2, 3, 3, 3)
    level = FoldedLevel(build(), weight, bias)
    with pytest.raises(TypeError, match="visual must have the dtype of the folded weights"):
        level(visual.float(), words)
    with pytest.raises(TypeError, match="places must come from encode, a FoldedPlaces; got Tensor"):
        level.project(visual, words)  # type: ignore[arg-type]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda part: pickle.loads(pickle.dumps(part))])
def test_copies_are_folded_from_their_own_weights(copied: Callable[[object], FoldedLevel]) -> None:
    module, (visual, words, weight, bias) = build(), draw(2, 2, 3, 3, 3)
    level = FoldedLevel(module, weight, bias)
    expected = level(visual, words)
    copy_of_level = copied(level)
    assert torch.equal(copy_of_level(visual, words), expected)
    module.query.weight.mul_(2)
    assert torch.equal(copy_of_level(visual, words), expected)
    with pytest.raises(RuntimeError, match="fold them again"):
        level(visual, words)
    assert torch.equal(copied(level)(visual, words), FoldedLevel(module, weight, bias)(visual, words))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("height", [3, 40])  # 40 x 37 places take several blocks
def test_prepared_places_give_the_same_result(height: int, dtype: torch.dtype) -> None:
    module = build(width=32).to(dtype)
    visual, words, weight, bias = (part.to(dtype) for part in draw(2, 4, 5, height, 37))
    mask, index = padding(4, 5), torch.tensor([1, 0, 1, 1])
    level = FoldedLevel(module, weight, bias)
    places = level.encode(visual)
    prepared = level.unchecked_prepare(places)
    assert places.exponentials is None
    assert prepared.exponentials is not None
    results = [level.unchecked_project(one, words, mask, index, True) for one in (places, prepared)]
    attention = [level.unchecked_place_attention(one, words, mask, index) for one in (places, prepared)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(*attention)
    torch.testing.assert_close(attention[0], module.place_attention(visual, words, mask, image_index=index))
    # The exponentials are used: with others, the result is another.
    others = places._replace(exponentials=cast(Tensor, prepared.exponentials).flip(2))
    wrong, _ = level.unchecked_project(others, words, mask, index, False)
    assert not torch.allclose(wrong, results[0][0], atol=0.01)


def test_exponentials_are_kept_where_they_fit_and_serve() -> None:
    visual, _, weight, bias = draw(1, 1, 5, 3, 7)
    level = FoldedLevel(build("reference"), weight, bias)
    assert level.unchecked_prepare(level.encode(visual)).exponentials is None
    level = FoldedLevel(build().bfloat16(), weight.bfloat16(), bias.bfloat16())
    assert level.unchecked_prepare(level.encode(visual.bfloat16())).exponentials is None
    level = FoldedLevel(build(), weight, bias)
    assert level.unchecked_prepare(level.encode(draw(1, 1, 1, 3, 683)[0])).exponentials is None  # 2049 places
