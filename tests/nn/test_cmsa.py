"""`CMSA` against Eq. 1-4 as printed, and `CMSA.project` against the convolution that it includes, in float64."""

import pytest
import torch
from support.small_level import (
    PROJECTED,
    TOKEN,
    VISUAL,
    WIDTH,
    WORD,
    Inputs,
    build,
    draw,
    padding,
    tensor_shapes,
)
from torch import Tensor
from torch.nn import functional as F

from cmsa_fast.kernels import reference
from cmsa_fast.nn import CMSA


def literal(module: CMSA, visual: Tensor, words: Tensor, mask: Tensor | None) -> Tensor:
    weights = (module.query, module.key, module.value, module.output)
    return reference.cmsa(visual, words, mask, *(part.weight for part in weights))


@pytest.mark.parametrize(("words", "height", "width"), [(1, 1, 1), (6, 3, 5), (3, 7, 1)])
def test_equals_the_printed_equations(words: int, height: int, width: int) -> None:
    module = build()
    visual, vectors, *_ = draw(3, 3, words, height, width)
    mask = torch.ones(3, words, dtype=torch.bool)
    if words > 2:
        mask[0, 0] = mask[1, 1] = mask[2, -1] = False
    leaves = [visual.requires_grad_(), vectors.requires_grad_(), *module.parameters()]
    upstream = torch.randn(3, TOKEN, height, width, dtype=torch.float64)
    results = [
        (out, *torch.autograd.grad(out, leaves, upstream))
        for out in (module(visual, vectors, mask), literal(module, visual, vectors, mask))
    ]
    scale = max(float(part.detach().norm()) for part in results[1])
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).norm() <= 1e-12 * scale


def test_padding_has_no_influence() -> None:
    module = build()
    visual, words, *_ = draw(2, 2, 4, 3, 3)
    mask = torch.tensor([[False, True, True, True], [True, False, True, False]])
    spoilt = words.masked_fill(~mask[..., None], torch.nan).requires_grad_()
    result = module(visual, spoilt, mask)
    assert torch.equal(result, module(visual, words, mask))
    (gradient,) = torch.autograd.grad(result.sum(), spoilt)
    assert torch.isfinite(gradient).all()
    assert (gradient[~mask] == 0).all()


def test_expressions_share_an_image() -> None:
    module = build()
    visual, words, *_ = draw(2, 3, 4, 3, 4)
    index = torch.tensor([1, 0, 1])
    shared = module(visual, words, image_index=index)
    torch.testing.assert_close(shared, module(visual[index], words), rtol=1e-12, atol=1e-12)


def test_zero_vectors_give_no_nan() -> None:
    module = build()
    visual, words, *_ = draw(1, 1, 3, 2, 2)
    visual[..., 0, 0] = 0
    words[:, 1] = 0
    leaves = [visual.requires_grad_(), words.requires_grad_()]
    result = module(*leaves)
    assert torch.isfinite(result).all()
    assert all(torch.isfinite(part).all() for part in torch.autograd.grad(result.sum(), leaves))


def test_word_attention_sums_to_one_over_real_words() -> None:
    module = build()
    visual, words, *_ = draw(2, 2, 5, 3, 2)
    mask = torch.tensor([[True] * 5, [False, True, True, True, False]])
    fused, received = module(visual, words, mask, return_word_attention=True)
    assert torch.equal(fused, module(visual, words, mask))
    assert received.shape == (2, 5)
    torch.testing.assert_close(received.sum(1), torch.ones(2, dtype=torch.float64))
    assert (received[~mask] == 0).all()


def test_parameters_are_the_matrices_of_the_paper() -> None:
    shapes = {name: tuple(part.shape) for name, part in build().named_parameters()}
    assert shapes == {
        "query.weight": (WIDTH, TOKEN),
        "key.weight": (WIDTH, TOKEN),
        "value.weight": (WIDTH, TOKEN),
        "output.weight": (TOKEN, WIDTH),
    }


@pytest.mark.parametrize("width", [16, 128, 512])
def test_initial_logits_have_a_standard_deviation_near_one(width: int) -> None:
    torch.manual_seed(0)
    module = CMSA(64, 32, width)
    feature = torch.cat(
        [
            F.normalize(torch.randn(400, 64), dim=1),
            F.normalize(torch.randn(400, 32), dim=1),
            torch.rand(400, 8) * 2 - 1,
        ],
        dim=1,
    )
    logits = module.query(feature) @ module.key(feature).T
    assert 0.7 < logits.std() < 1.4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_error_is_that_of_the_literal_form(dtype: torch.dtype) -> None:
    module = build().to(dtype)
    visual, words = (part.to(dtype) for part in draw(2, 2, 5, 4, 3)[:2])
    exact = literal(module.double(), visual.double(), words.double(), None)
    module.to(dtype)
    theirs = literal(module, visual, words, None)
    floor = torch.finfo(dtype).eps * exact.norm()
    error = (module(visual, words) - exact).norm()
    assert error <= 2 * max((theirs - exact).norm(), floor)


def project(
    module: CMSA, inputs: Inputs, mask: Tensor | None = None, index: Tensor | None = None
) -> Tensor:
    visual, words, weight, bias = inputs
    return module.project(visual, words, mask, weight=weight, bias=bias, image_index=index)


def convolve(
    module: CMSA, inputs: Inputs, mask: Tensor | None = None, index: Tensor | None = None
) -> Tensor:
    visual, words, weight, bias = inputs
    return F.conv2d(module(visual, words, mask, image_index=index), weight, bias)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("index", [None, [1, 0, 1, 1]])
def test_project_equals_forward_and_convolution(
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
            project(module, inputs, mask, image_index),
            convolve(module, inputs, mask, image_index),
        )
    )
    assert ours[0].is_contiguous()
    for mine, exact in zip(ours, theirs, strict=True):
        assert torch.isfinite(mine).all()
        assert (mine - exact).norm() <= 1e-10 * exact.norm()
    if mask is not None:
        assert (ours[2][~mask] == 0).all()


@pytest.mark.parametrize("visual_dtype", [torch.float32, torch.bfloat16])
def test_project_under_autocast(visual_dtype: torch.dtype) -> None:
    module = build().float()
    visual, *others = (part.float() for part in draw(2, 2, 5, 9, 7))
    visual = visual.to(visual_dtype)
    mask = padding(2, 5)
    doubles = (visual.double(), *(part.double() for part in others))
    exact = convolve(module.double(), doubles, mask)
    module.float()
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (run(module, (visual, *others), mask) for run in (project, convolve))
    assert ours.dtype == theirs.dtype == torch.bfloat16
    allowed = max((theirs - exact).norm(), torch.finfo(torch.bfloat16).eps * exact.norm())
    assert (ours - exact).norm() <= 2 * allowed


def test_project_does_not_materialise_the_level() -> None:
    module, inputs = build(), draw(1, 1, 5, 9, 7)
    places = {63, 9}  # all places, or rows of the grid

    def materialises(shapes: set[tuple[int, ...]]) -> bool:
        return any(TOKEN in shape and places & set(shape) for shape in shapes)

    assert materialises(tensor_shapes(lambda: convolve(module, inputs)))
    assert not materialises(tensor_shapes(lambda: project(module, inputs)))


def test_project_names_wrong_convolutions() -> None:
    module = build()
    visual, words, weight, bias = draw(2, 2, 3, 3, 3)
    for wrong in (weight[:, 1:], weight.expand(-1, -1, 3, 3)):
        with pytest.raises(ValueError, match=r"weight must have shape \[channels, 26, 1, 1\]"):
            module.project(visual, words, weight=wrong)
    with pytest.raises(TypeError, match=r"weight must have the dtype of output\.weight"):
        module.project(visual, words, weight=weight.float())
    with pytest.raises(TypeError, match="weight must be a tensor"):
        module.project(visual, words, weight=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"bias must have shape \[channels\] = \[6\]"):
        module.project(visual, words, weight=weight, bias=bias[1:])
    with pytest.raises(TypeError, match="bias must have the dtype of weight"):
        module.project(visual, words, weight=weight, bias=bias.float())


def test_wrong_sizes_and_backends_are_named() -> None:
    with pytest.raises(ValueError, match="attention_channels must be at least 1; got 0"):
        CMSA(VISUAL, WORD, 0)
    with pytest.raises(ValueError, match="backend must be one of"):
        CMSA(VISUAL, WORD, 3, backend="numpy")
