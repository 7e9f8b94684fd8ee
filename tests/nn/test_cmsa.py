"""The CMSA module against Eq. 1-4 as printed, in float64: result, gradients, padding, start."""

import pytest
import torch
from torch import Tensor

from cmsa_fast.kernels import reference
from cmsa_fast.nn import CMSA

VISUAL, WORD, WIDTH = 11, 7, 5


def build() -> CMSA:
    torch.manual_seed(0)
    return CMSA(VISUAL, WORD, WIDTH).double()


def draw(batch: int, words: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    visual = torch.randn(batch, VISUAL, height, width, generator=generator, dtype=torch.float64)
    return visual, torch.randn(batch, words, WORD, generator=generator, dtype=torch.float64)


def literal(module: CMSA, visual: Tensor, words: Tensor, mask: Tensor | None) -> Tensor:
    weights = (module.query, module.key, module.value, module.output)
    return reference.cmsa(visual, words, mask, *(part.weight for part in weights))


@pytest.mark.parametrize(("words", "height", "width"), [(1, 1, 1), (6, 3, 5), (3, 7, 1)])
def test_equals_the_printed_equations(words: int, height: int, width: int) -> None:
    module = build()
    visual, vectors = draw(3, words, height, width)
    mask = torch.ones(3, words, dtype=torch.bool)
    if words > 2:
        mask[0, 0] = mask[1, 1] = mask[2, -1] = False
    leaves = [visual.requires_grad_(), vectors.requires_grad_(), *module.parameters()]
    upstream = torch.randn(3, VISUAL + WORD + 8, height, width, dtype=torch.float64)
    results = [
        (out, *torch.autograd.grad(out, leaves, upstream))
        for out in (module(visual, vectors, mask), literal(module, visual, vectors, mask))
    ]
    scale = max(float(part.detach().norm()) for part in results[1])
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).norm() <= 1e-12 * scale


def test_what_stands_in_padding_has_no_influence() -> None:
    module = build()
    visual, words = draw(2, 4, 3, 3)
    mask = torch.tensor([[False, True, True, True], [True, False, True, False]])
    spoilt = words.masked_fill(~mask[..., None], torch.nan).requires_grad_()
    result = module(visual, spoilt, mask)
    assert torch.equal(result, module(visual, words, mask))
    (gradient,) = torch.autograd.grad(result.sum(), spoilt)
    assert torch.isfinite(gradient).all()
    assert (gradient[~mask] == 0).all()


def test_expressions_share_a_image() -> None:
    module = build()
    visual, words = draw(2, 4, 3, 4)
    words = torch.cat([words, words.flip(1)[:1]])
    index = torch.tensor([1, 0, 1])
    shared = module(visual, words, image_index=index)
    torch.testing.assert_close(shared, module(visual[index], words), rtol=1e-12, atol=1e-12)


def test_zero_vectors_give_no_nan() -> None:
    module = build()
    visual, words = draw(1, 3, 2, 2)
    visual[..., 0, 0] = 0
    words[:, 1] = 0
    leaves = [visual.requires_grad_(), words.requires_grad_()]
    result = module(*leaves)
    assert torch.isfinite(result).all()
    assert all(torch.isfinite(part).all() for part in torch.autograd.grad(result.sum(), leaves))


def test_word_attention_is_what_each_word_receives() -> None:
    module = build()
    visual, words = draw(2, 5, 3, 2)
    mask = torch.tensor([[True] * 5, [False, True, True, True, False]])
    _, received = module(visual, words, mask, return_word_attention=True)
    assert received.shape == (2, 5)
    torch.testing.assert_close(received.sum(1), torch.ones(2, dtype=torch.float64))
    assert (received[~mask] == 0).all()


def test_parameters_are_the_paper_s_matrices() -> None:
    shapes = {name: tuple(part.shape) for name, part in CMSA(11, 7, 5).named_parameters()}
    token = 11 + 7 + 8
    assert shapes == {
        "query.weight": (5, token),
        "key.weight": (5, token),
        "value.weight": (5, token),
        "output.weight": (token, 5),
    }


@pytest.mark.parametrize("width", [16, 128, 512])
def test_logits_start_with_a_deviation_near_one(width: int) -> None:
    torch.manual_seed(0)
    module = CMSA(64, 32, width)
    feature = torch.cat(
        [
            torch.nn.functional.normalize(torch.randn(400, 64), dim=1),
            torch.nn.functional.normalize(torch.randn(400, 32), dim=1),
            torch.rand(400, 8) * 2 - 1,
        ],
        dim=1,
    )
    logits = module.query(feature) @ module.key(feature).T
    assert 0.7 < logits.std() < 1.4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_stays_near(dtype: torch.dtype) -> None:
    module = build().to(dtype)
    visual, words = (part.to(dtype) for part in draw(2, 5, 4, 3))
    exact = literal(module.double(), visual.double(), words.double(), None)
    module.to(dtype)
    theirs = literal(module, visual, words, None)
    floor = torch.finfo(dtype).eps * exact.norm()
    error = (module(visual, words) - exact).norm()
    assert error <= 2 * max((theirs - exact).norm(), floor)


def test_messages() -> None:
    module = CMSA(11, 7, 5)
    visual, words = torch.rand(2, 11, 3, 3), torch.rand(2, 4, 7)
    none = torch.zeros(2, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"visual must have shape \[batch, 11"):
        module(torch.rand(2, 10, 3, 3), words)
    with pytest.raises(ValueError, match="words must have shape"):
        module(visual, torch.rand(2, 4, 6))
    with pytest.raises(ValueError, match="image_index"):
        module(visual, torch.rand(3, 4, 7))
    with pytest.raises(TypeError, match="word_mask must be a bool"):
        module(visual, words, none.int())
    with pytest.raises(ValueError, match="word_mask must have shape"):
        module(visual, words, none[:, :3])
    with pytest.raises(ValueError, match="true word in every expression"):
        module(visual, words, none)
    with pytest.raises(TypeError, match="words must have the dtype of visual"):
        module(visual, words.double())
    with pytest.raises(TypeError, match="visual must be a tensor"):
        module([1], words)
    with pytest.raises(ValueError, match="attention_channels must be at least 1"):
        CMSA(3, 3, 0)
    with pytest.raises(ValueError, match="backend must be one of"):
        CMSA(3, 3, 3, backend="numpy")
