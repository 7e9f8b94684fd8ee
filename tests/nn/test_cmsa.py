"""`CMSA` against Eq. 1-4 as printed, in float64."""

import pytest
import torch
from support.small_level import TOKEN, WIDTH, assert_rounded_like, build, draw
from torch import Tensor
from torch.nn import functional as F

from cmsa_fast.kernels import reference
from cmsa_fast.nn import CMSA
from cmsa_fast.nn.tokens import coordinate_rows


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


def test_word_attention_sums_to_one_over_real_words() -> None:
    module = build()
    visual, words, *_ = draw(2, 2, 5, 3, 2)
    mask = torch.tensor([[True] * 5, [False, True, True, True, False]])
    fused, received = module(visual, words, mask, return_word_attention=True)
    assert torch.equal(fused, module(visual, words, mask))
    assert received.shape == (2, 5)
    torch.testing.assert_close(received.sum(1), torch.ones(2, dtype=torch.float64))
    assert (received[~mask] == 0).all()


def test_place_attention_is_that_of_the_printed_equations() -> None:
    module = build()
    visual, words, *_ = draw(2, 3, 5, 3, 2)
    mask = torch.tensor([[True] * 5, [False, True, True, True, False], [True, False, True, False, True]])
    index = torch.tensor([1, 0, 1])
    # The attention that place p' receives is what the tokens of p' add to the attended values if their value is 1.
    gathered = visual[index]
    feature = torch.cat(
        [
            F.normalize(gathered.flatten(2).mT, dim=2)[:, :, None].expand(-1, -1, 5, -1),
            F.normalize(words, dim=2)[:, None].expand(-1, 6, -1, -1),
            coordinate_rows(visual)[None, :, None].expand(3, -1, 5, -1),
        ],
        dim=3,
    ).flatten(1, 2)
    value = torch.eye(6, dtype=torch.float64).repeat_interleave(5, 0).expand(3, -1, -1)
    real = mask[:, None].expand(-1, 6, -1).flatten(1)
    weights = reference.token_attention(module.query(feature), module.key(feature), value, real)
    expected = torch.stack([one[rows].mean(0) for one, rows in zip(weights, real, strict=True)])
    received = module.place_attention(visual, words, mask, image_index=index)
    torch.testing.assert_close(received, expected.unflatten(1, (3, 2)), rtol=1e-12, atol=1e-12)
    assert not received.requires_grad


def test_word_attention_is_differentiable() -> None:
    module = build()
    visual, words, *_ = draw(2, 2, 3, 2, 2)

    def received(words: Tensor, *weights: Tensor) -> Tensor:
        parameters = dict(zip(("query.weight", "key.weight"), weights, strict=True))
        options = {"return_word_attention": True}
        return torch.func.functional_call(module, parameters, (visual, words), options)[1]

    inputs = [part.detach().requires_grad_() for part in (words, module.query.weight, module.key.weight)]
    assert torch.autograd.gradcheck(received, inputs, fast_mode=True)


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
    assert_rounded_like(module(visual, words), theirs, exact, dtype)
