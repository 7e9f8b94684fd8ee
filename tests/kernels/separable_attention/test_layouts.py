"""Inputs and gradients that are views: transposed, strided, expanded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from support.oracle import assert_close, assert_identical, run
from support.separable_oracle import draw, eager
from torch import Tensor


def transposed(part: Tensor) -> Tensor:
    return part.mT.contiguous().mT


def strided(part: Tensor) -> Tensor:
    """Every third row and second channel of a larger tensor that is NaN elsewhere."""
    batch, rows, channels = part.shape
    larger = part.new_full((batch, 3 * rows, 2 * channels), torch.nan)
    larger[:, ::3, ::2] = part
    return larger[:, ::3, ::2]


def batch_inside(part: Tensor) -> Tensor:
    return part.transpose(0, 1).contiguous().transpose(0, 1)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("images", [None, 2])
@pytest.mark.parametrize("layout", [transposed, strided, batch_inside])
def test_layout_has_no_influence(layout: Callable[[Tensor], Tensor], images: int | None, padded: bool) -> None:
    case = draw(23, 6, 11, 7, batch=3, images=images, padded=padded, dtype=torch.float64)
    views = tuple(layout(part) for part in case.inputs)
    assert not any(part.is_contiguous() for part in views)
    mask = case.mask.T.contiguous().T if padded else None
    viewed = replace(case, inputs=views, mask=mask, grad=layout(case.grad))
    assert_close(run(eager, case), run(eager, viewed))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_expanded_inputs(axis: int) -> None:
    """Stride 0 in the batch, the rows or the channels of all inputs and of the gradient."""
    case = draw(23, 6, 11, 7, batch=3, padded=False, dtype=torch.float64)

    def expand(part: Tensor) -> Tensor:
        return part.narrow(axis, 0, 1).expand(part.shape)

    views = replace(case, inputs=tuple(expand(part) for part in case.inputs), grad=expand(case.grad))
    copies = replace(
        views,
        inputs=tuple(part.contiguous() for part in views.inputs),
        grad=views.grad.contiguous(),
    )
    assert_close(run(eager, copies), run(eager, views))


def test_gradient_with_stride_zero() -> None:
    case = draw(dtype=torch.float64)
    features = [part.requires_grad_() for part in case.inputs]
    gradients = torch.autograd.grad(eager(*features, case.mask).sum(), features)
    assert_close(run(eager, replace(case, grad=torch.ones_like(case.grad)))[1:], gradients)


def test_inputs_are_not_modified() -> None:
    case = draw(scale=30.0)
    tensors = (*case.inputs, case.grad, case.mask)
    before = [part.clone() for part in tensors]
    run(eager, case)
    assert_identical(before, tensors)
