"""Memory of the eager backend: the largest array that it makes, and what it keeps for backward."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from support.oracle import run
from support.recorders import largest_tensors, saved_for_backward
from support.separable_oracle import draw, eager

from cmsa_fast.kernels import reference
from cmsa_fast.kernels.separable_attention import eager as module

PLACES, WORDS = 211, 13


@pytest.mark.parametrize("scale", [1.0, 10.0], ids=["moderate", "saturated"])
def test_no_array_over_places_places_and_words(scale: float) -> None:
    """The largest are one allocation of two arrays over pairs of places in forward and four in backward."""
    case = draw(PLACES, WORDS, 8, batch=3, scale=scale)
    for elements, arrays in zip(largest_tensors(eager, case), (2, 4), strict=True):
        assert elements == arrays * PLACES**2 + 3 * PLACES * 8


def test_recorder_sees_the_array_of_the_literal_form() -> None:
    case = draw(31, 5, 8, batch=1)
    for elements in largest_tensors(reference.cross_modal_attention, case):
        assert elements >= (31 * 5) ** 2


def test_memory_does_not_grow_with_the_expressions_of_an_image() -> None:
    case = draw(PLACES, WORDS, 8, batch=40, images=2)
    for elements, arrays in zip(largest_tensors(eager, case), (2, 5), strict=True):
        assert elements == arrays * PLACES**2 + 3 * PLACES * 8


@pytest.mark.parametrize("scale", [1.0, 10.0], ids=["moderate", "saturated"])
def test_block_of_places_limits_the_arrays(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    case = draw(PLACES, WORDS, 8, batch=3, scale=scale)
    monkeypatch.setattr(module, "_BLOCK", 20 * PLACES)
    for elements, arrays in zip(largest_tensors(eager, case), (2, 4), strict=True):
        assert elements == arrays * 20 * PLACES + 3 * PLACES * 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_between_places_is_kept_for_backward(dtype: torch.dtype) -> None:
    case = draw(PLACES, WORDS, 8, 6, batch=3, dtype=dtype)
    features = [part.requires_grad_() for part in case.inputs]
    with saved_for_backward() as saved:
        eager(*features, case.mask)
    assert saved
    assert max(part.numel() for part in saved) <= 3 * PLACES * 8
    assert sum(part.numel() for part in saved) <= 2 * sum(part.numel() for part in case.inputs)


def test_result_is_freed_without_the_garbage_collector() -> None:
    case = draw()
    features = [part.requires_grad_() for part in case.inputs]
    gc.collect()
    gc.disable()
    try:
        result = eager(*features, case.mask)
        node = weakref.ref(result.grad_fn)
        del result
        assert node() is None
    finally:
        gc.enable()
    run(eager, case)
