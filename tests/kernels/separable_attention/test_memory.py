"""What is kept for backward, and the largest array that is made on the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.oracle import Case, draw, fast, run
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cmsa_fast.kernels.separable_attention import eager as separable


class LargestTensor(TorchDispatchMode):
    """Records the most elements of any tensor's storage that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple | list) else (result,):
            if isinstance(part, Tensor):
                stored = part.untyped_storage().nbytes() // part.element_size()
                self.elements = max(self.elements, stored)
        return result


def largest(case: Case, attention: Any = fast) -> tuple[int, int]:
    """The most elements in forward, and in backward."""
    features = [part.detach().requires_grad_() for part in case.features]
    with LargestTensor() as forward:
        result = attention(*features, case.word_mask, image_index=case.image_index)
    with LargestTensor() as backward:
        torch.autograd.grad(result, features, case.grad)
    return forward.elements, backward.elements


PLACES, WORDS = 211, 13


@pytest.mark.parametrize("scale", [1.0, 10.0], ids=["moderate", "saturated"])
def test_no_array_over_places_places_and_words(scale: float) -> None:
    case = draw(PLACES, WORDS, 8, batch=3, scale=scale)
    for elements in largest(case):
        assert PLACES * 8 <= elements <= PLACES**2


def test_the_recorder_sees_the_array_of_the_literal_form() -> None:
    from cmsa_fast.kernels import reference

    case = draw(31, 5, 8, batch=1)
    for elements in largest(case, reference.cross_modal_attention):
        assert elements >= (31 * 5) ** 2


def test_expressions_of_a_image_share_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    case = draw(PLACES, WORDS, 8, batch=40, images=2)
    monkeypatch.setattr(separable, "_BLOCK", 3 * PLACES**2)
    for elements in largest(case):
        assert PLACES**2 < elements <= 3 * PLACES**2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_between_places_is_kept_for_backward(dtype: torch.dtype) -> None:
    case = draw(PLACES, WORDS, 8, 6, batch=3, dtype=dtype)
    kept: list[Tensor] = []

    def keep(part: Tensor) -> Tensor:
        kept.append(part)
        return part

    features = [part.requires_grad_() for part in case.features]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda part: part):
        fast(*features, case.word_mask)
    assert kept
    inputs = sum(part.numel() for part in case.features)
    assert max(part.numel() for part in kept) <= 3 * PLACES * 8
    assert sum(part.numel() for part in kept) <= 2 * inputs


def test_a_run_leaves_no_reference_cycle() -> None:
    """What backward kept goes when the result goes, without the garbage collector."""
    import gc
    import weakref

    case = draw()
    features = [part.requires_grad_() for part in case.features]
    gc.collect()
    gc.disable()
    try:
        result = fast(*features, case.word_mask)
        node = weakref.ref(result.grad_fn)
        del result
        assert node() is None
    finally:
        gc.enable()
    run(fast, case)
