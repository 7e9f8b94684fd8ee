"""The tail of a CMSA level as an operator, in a graph, in a module; what it refuses and says."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.tail_oracle import DEVICE, TRITON, draw, needs_triton, tail
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cmsa_fast.kernels import BACKENDS, backends, level_tail
from cmsa_fast.nn import CMSA


@needs_triton
def test_second_derivatives_of_the_kernel_are_refused() -> None:
    case = draw()
    inputs = [part.requires_grad_() for part in case.inputs if part is not None]
    result = tail(*inputs, None, backend="triton")
    gradients = torch.autograd.grad(result, inputs, case.grad, create_graph=True)
    with pytest.raises(RuntimeError, match=r'no second derivative.*backend="reference"'):
        torch.autograd.grad(gradients[0].square().sum(), inputs)


@needs_triton
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("images", [None, 2])
def test_opcheck(images: int | None) -> None:
    from cmsa_fast.kernels.separable_attention import ops  # noqa: F401

    case = draw(5, 4, 3, 2, 2, images=images).to(DEVICE)
    index = case.options["image_index"]
    index = None if index is None else index.to(DEVICE)
    plain = [part.detach() for part in case.inputs if part is not None]
    leaves = [part.clone().requires_grad_() for part in plain]
    operators = torch.ops.cmsa_fast
    torch.library.opcheck(operators.level_tail_forward.default, (*leaves, index))
    arguments = (case.grad, *plain[:2], index, images or 3, 3)
    torch.library.opcheck(operators.level_tail_backward.default, arguments)


@pytest.mark.parametrize("backend", ["torch", TRITON])
def test_flop_are_those_of_the_products(backend: str) -> None:
    places, width, batch = 7, 5, 2
    case = draw(places, width, 3, 2, 2, batch)
    inputs = [part.requires_grad_() for part in case.inputs if part is not None]
    product = 2 * batch * places * width * 7
    tail(
        *inputs, None, backend=backend
    )  # a counter knows the formulas of operators that were there before it
    with FlopCounterMode(display=False) as counter:
        result = tail(*inputs, None, backend=backend)
    assert counter.get_total_flops() == product
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(result, inputs, case.grad)
    assert counter.get_total_flops() == 2 * product


@pytest.mark.parametrize("backend", ["auto", TRITON])
def test_one_graph(backend: str) -> None:
    case = draw(images=2).to(DEVICE)
    index = case.options["image_index"].to(DEVICE)
    inputs = [part.requires_grad_() for part in case.inputs if part is not None]

    def function(*inputs: Tensor) -> Tensor:
        return level_tail(*inputs, image_index=index, backend=backend)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    results = []
    for form in (function, compiled):
        result = form(*inputs)
        results.append([result, *torch.autograd.grad(result, inputs, case.grad)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@needs_triton
def test_a_module_takes_its_own_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every backend gives one result; the module's is the one that the tail gets."""
    from cmsa_fast.nn import cmsa

    asked: list[str] = []

    def spy(*arguments: Tensor, **options: Any) -> Tensor:
        asked.append(options["backend"])
        return level_tail(*arguments, **options)

    monkeypatch.setattr(cmsa, "level_tail", spy)
    torch.manual_seed(0)
    module = CMSA(11, 7, 5).to(DEVICE)
    visual, words = torch.randn(2, 11, 4, 5), torch.randn(3, 4, 7)
    index = torch.tensor([1, 0, 1], device=DEVICE)
    results = []
    for module.backend in BACKENDS:
        results.append(module(visual.to(DEVICE), words.to(DEVICE), image_index=index))
    assert asked == list(BACKENDS)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-5, atol=1e-5)


def arguments(**changed: Any) -> dict[str, Any]:
    """Two expressions on 6 places, width 4; 3 visual, 2 word and 8 coordinate channels."""
    right = {
        "attended": torch.zeros(2, 6, 4),
        "output_weight": torch.zeros(13, 4),
        "unit_visual": torch.zeros(2, 6, 3),
        "mean_word": torch.zeros(2, 2),
        "coordinates": torch.zeros(8, 6),
    }
    return right | changed


MESSAGES = [
    ({"attended": [[[0.0]]]}, TypeError, "attended must be a tensor; got list."),
    (
        {"mean_word": torch.zeros(2, 2, dtype=torch.int32)},
        TypeError,
        "mean_word must have one of the dtypes float64, float32, bfloat16, float16; got torch.int32.",
    ),
    (
        {"coordinates": torch.zeros(8, 6).double()},
        TypeError,
        "coordinates must have the dtype of attended, torch.float32; got torch.float64.",
    ),
    (
        {"unit_visual": torch.zeros(2, 6, 3, device="meta")},
        ValueError,
        "unit_visual must be on the device of attended, cpu; got meta.",
    ),
    (
        {"attended": torch.zeros(6, 4)},
        ValueError,
        "attended must have shape [batch, places, width] with at least one of each; got [6, 4].",
    ),
    (
        {"coordinates": torch.zeros(0, 6)},
        ValueError,
        "coordinates must have shape [coordinates, places] with at least one of each; got [0, 6].",
    ),
    (
        {"output_weight": torch.zeros(12, 4)},
        ValueError,
        "output_weight must have shape [channels, width] = [13, 4], channels being the sum of those of "
        "unit_visual, mean_word and coordinates; got [12, 4].",
    ),
    (
        {"unit_visual": torch.zeros(2, 5, 3)},
        ValueError,
        "unit_visual must have the places of attended, 6; got 5.",
    ),
    (
        {"mean_word": torch.zeros(3, 2)},
        ValueError,
        "mean_word must have the batch of attended, 2; got 3.",
    ),
    (
        {"coordinates": torch.zeros(8, 7)},
        ValueError,
        "coordinates must have the places of attended, 6; got 7.",
    ),
    (
        {"unit_visual": torch.zeros(1, 6, 3)},
        ValueError,
        "unit_visual has 1 images and attended 2 expressions; they must be equal unless image_index says "
        "which image each expression belongs to.",
    ),
    (
        {"image_index": torch.zeros(2)},
        TypeError,
        "image_index must be an int64 tensor; got torch.float32.",
    ),
    (
        {"image_index": torch.tensor([0, 2])},
        ValueError,
        "image_index must lie in 0..1; got values from 0 to 2.",
    ),
    (
        {"image_index": torch.tensor([0, 0]), "unit_visual": torch.zeros(0, 6, 3)},
        ValueError,
        "unit_visual must hold at least one image for 2 expressions; got 0.",
    ),
    (
        {"backend": "numpy"},
        ValueError,
        "backend must be one of auto, reference, torch, triton; got 'numpy'.",
    ),
]


@pytest.mark.parametrize(
    ("changed", "error", "message"), MESSAGES, ids=[row[2] for row in MESSAGES]
)
def test_messages(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        level_tail(**arguments(**changed))


def test_triton_by_name_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal: Callable[..., str] = lambda device: "cannot run here."  # noqa: E731
    monkeypatch.setattr(backends, "_obstacle", refusal)
    with pytest.raises(
        ValueError, match=r'^backend="triton" cannot run here\. Use backend="torch"'
    ):
        level_tail(**arguments(backend="triton"))
    level_tail(**arguments(backend="auto"))
