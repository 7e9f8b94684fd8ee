"""Inputs and gradients that are views: transposed, strided, expanded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.oracle import Case, draw, fast, run
from torch import Tensor


def transposed(part: Tensor) -> Tensor:
    return part.mT.contiguous().mT


def strided(part: Tensor) -> Tensor:
    """Every third row and second channel of a larger tensor, the rest of which is NaN."""
    batch, rows, channels = part.shape
    larger = part.new_full((batch, 3 * rows, 2 * channels), torch.nan)
    larger[:, ::3, ::2] = part
    return larger[:, ::3, ::2]


def batch_inside(part: Tensor) -> Tensor:
    return part.transpose(0, 1).contiguous().transpose(0, 1)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("images", [None, 2])
@pytest.mark.parametrize("layout", [transposed, strided, batch_inside])
def test_layout_has_no_influence(
    layout: Callable[[Tensor], Tensor], images: int | None, padded: bool
) -> None:
    case = draw(23, 6, 11, 7, batch=3, images=images, padded=padded, dtype=torch.float64)
    views = tuple(layout(part) for part in case.features)
    assert not any(part.is_contiguous() for part in views)
    mask = case.word_mask.T.contiguous().T if padded else None  # type: ignore[union-attr]
    viewed = Case(views, mask, case.image_index, layout(case.grad))
    for expected, found in zip(run(fast, case), run(fast, viewed), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_expanded_input(axis: int) -> None:
    """Stride 0 in the batch, the rows or the channels of every input and of the gradient."""
    case = draw(23, 6, 11, 7, batch=3, padded=False, dtype=torch.float64)

    def spread(part: Tensor) -> Tensor:
        return part.narrow(axis, 0, 1).expand(part.shape)

    views = tuple(spread(part) for part in case.features)
    copies = tuple(part.contiguous() for part in views)
    expected = run(fast, Case(copies, None, None, spread(case.grad).contiguous()))
    found = run(fast, Case(views, None, None, spread(case.grad)))
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)


def test_gradient_of_a_sum_has_stride_zero() -> None:
    case = draw(dtype=torch.float64)
    features = [part.requires_grad_() for part in case.features]
    found = torch.autograd.grad(fast(*features, case.word_mask).sum(), features)
    ones = Case(case.features, case.word_mask, None, torch.ones_like(case.grad))
    for expected, gradient in zip(run(fast, ones)[1:], found, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_inputs_are_left_as_they_were() -> None:
    case = draw(scale=30.0)
    before = [part.clone() for part in (*case.features, case.grad, case.word_mask)]  # type: ignore[union-attr]
    run(fast, case)
    for one, other in zip(before, (*case.features, case.grad, case.word_mask), strict=True):
        assert torch.equal(one, other)  # type: ignore[arg-type]
