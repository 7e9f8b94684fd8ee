"""The level tail (output projection plus residual) on all backends, against the literal concatenation."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.oracle import assert_identical, assert_within_budget, run
from support.tail_oracle import DEVICE, NAMES, TRITON, draw, needs_triton, supports, tail
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from cmsa_fast.kernels import level_tail

each_backend = pytest.mark.parametrize("backend", ["torch", TRITON])
with_and_without_index = pytest.mark.parametrize("images", [None, 2])


@pytest.mark.parametrize("backend", ["reference", "torch", TRITON])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("sizes", "images"),  # places, width, channels of visual, word and coordinates, batch
    [
        ((1, 1, 1, 1, 1, 1), None),
        ((19, 17, 21, 5, 8, 3), None),  # blocks with channels of two and of all three sources
        ((16, 16, 16, 16, 16, 1), None),  # exactly a tile
        ((33, 40, 3, 2, 1, 4), 3),
    ],
    ids=str,
)
def test_sizes(sizes: tuple[int, ...], images: int | None, dtype: torch.dtype, backend: str) -> None:
    if not supports(backend, dtype):
        pytest.skip("the dtype is not supported here")
    cases = [draw(*sizes, images=images, dtype=dtype, seed=seed) for seed in range(3)]
    assert_within_budget(functools.partial(tail, backend=backend), cases)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sums_over_expressions_are_rounded_once(dtype: torch.dtype) -> None:
    cases = [draw(1, 3, 2, 2, 1, batch=900, dtype=dtype, seed=seed) for seed in range(3)]
    assert_within_budget(tail, cases)


@each_backend
def test_strided_inputs(backend: str) -> None:
    """Transposed, sliced, interleaved and expanded inputs, and an expanded gradient."""
    function = functools.partial(tail, backend=backend)
    case = draw()
    strided = case.with_inputs(
        attended=torch.stack([case["attended"]] * 2, -1)[..., 1],
        output_weight=case["output_weight"].T.contiguous().T,
        unit_visual=case["unit_visual"].contiguous(),
        mean_word=torch.cat([case["mean_word"]] * 2, 1)[:, :5],
        coordinates=case["coordinates"].T.contiguous().T,
    )
    for one, other in zip(run(function, case), run(function, strided), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-5)
    expanded = case.with_inputs(
        attended=case["attended"][:, :1].expand(-1, 19, -1),
        unit_visual=case["unit_visual"][:1].expand(3, -1, -1),
    )
    grad = torch.tensor(1.5).expand(case.grad.shape)
    assert_within_budget(function, replace(expanded, grad=grad))


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_two_runs_are_bitwise_identical(dtype: torch.dtype, backend: str) -> None:
    case = draw(batch=4, images=2, dtype=dtype)
    function = functools.partial(tail, backend=backend)
    assert_identical(run(function, case), run(function, case))


@each_backend
def test_infinite_gradient_stays_with_its_image(backend: str) -> None:
    case = replace(draw(images=2), options={"image_index": torch.tensor([1, 0, 1])})
    case.grad[1] = torch.inf
    _, grad_attended, _, grad_visual, *_ = run(functools.partial(tail, backend=backend), case)
    assert grad_attended[[0, 2]].isfinite().all()
    assert grad_visual[1].isfinite().all()
    assert not grad_visual[0].isfinite().any()


@each_backend
@with_and_without_index
def test_no_expression(images: int | None, backend: str) -> None:
    case = draw(batch=0, images=images)
    result, *gradients = run(functools.partial(tail, backend=backend), case)
    assert result.shape == (0, 34, 19)
    for gradient in gradients:
        assert not gradient.any()


@each_backend
@pytest.mark.parametrize("name", NAMES)
def test_gradient_of_a_single_input(name: str, backend: str) -> None:
    case = draw(images=2)
    function = functools.partial(tail, backend=backend)
    expected = run(function, case)[1 + NAMES.index(name)]
    inputs = case.given
    inputs[name].requires_grad_()
    result = function(*inputs.values(), None, **case.options)
    assert_identical([expected], torch.autograd.grad(result, inputs[name], case.grad))


@each_backend
@with_and_without_index
def test_gradcheck(backend: str, images: int | None) -> None:
    if not supports(backend, torch.float64):
        pytest.skip("the kernel computes float64 in the interpreter only")
    case = draw(3, 2, 3, 2, 2, batch=3, images=images, dtype=torch.float64)
    inputs = [part.requires_grad_() for part in case.inputs]

    def function(*inputs: Tensor) -> Tensor:
        return tail(*inputs, None, **case.options, backend=backend)

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    if backend == "torch":
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@needs_triton
def test_double_backward_of_the_kernel_raises() -> None:
    case = draw()
    inputs = [part.requires_grad_() for part in case.inputs]
    result = tail(*inputs, None, backend="triton")
    gradients = torch.autograd.grad(result, inputs, case.grad, create_graph=True)
    with pytest.raises(RuntimeError, match=r'no second derivative.*backend="reference"'):
        torch.autograd.grad(gradients[0].square().sum(), inputs)


class LargeStorages(TorchDispatchMode):
    """Counts the storages of at least so many elements that operations allocate."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements = elements
        self.allocated: dict[int, Tensor] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        known = {part.untyped_storage().data_ptr() for part in args if isinstance(part, Tensor)}
        for part in result if isinstance(result, tuple | list) else (result,):
            if isinstance(part, Tensor):
                storage = part.untyped_storage()
                large = storage.nbytes() >= self.elements * part.element_size()
                if large and storage.data_ptr() not in known:
                    self.allocated[storage.data_ptr()] = part  # kept, so no address is reused
        return result


@each_backend
@with_and_without_index
def test_neither_concatenation_nor_copy_is_made(backend: str, images: int | None) -> None:
    """The result is the only array [B, C, P] that is allocated; the literal form allocates several."""
    case = draw(67, 5, 40, 20, 8, batch=3, images=images).to(DEVICE)
    allocated = {}
    for name in (backend, "reference"):
        inputs = [part.requires_grad_() for part in case.inputs]
        with LargeStorages(case.grad.numel()) as forward:
            result = level_tail(*inputs, **case.options, backend=name)
        with LargeStorages(case.grad.numel()) as backward:
            torch.autograd.grad(result, inputs, case.grad)
        allocated[name] = len(forward.allocated), len(backward.allocated)
        assert result.is_contiguous() == (name == backend)
    assert allocated[backend] == (1, 0)
    assert allocated["reference"][0] >= 3


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_casts_the_inputs(low: torch.dtype) -> None:
    case = draw()
    expected = run(tail, case.to(low))
    with torch.autocast(DEVICE, dtype=low):
        result, *gradients = run(tail, replace(case, grad=case.grad.to(low)))
    assert result.dtype == low
    assert_identical(expected, [result, *(part.to(low) for part in gradients)])


@each_backend
def test_flop_are_those_of_the_products(backend: str) -> None:
    places, width, batch = 7, 5, 2
    case = draw(places, width, 3, 2, 2, batch)
    inputs = [part.requires_grad_() for part in case.inputs]
    product = 2 * batch * places * width * 7
    # A counter only knows the formulas of operators that were registered before it was made.
    tail(*inputs, None, backend=backend)
    with FlopCounterMode(display=False) as counter:
        result = tail(*inputs, None, backend=backend)
    assert counter.get_total_flops() == product
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(result, inputs, case.grad)
    assert counter.get_total_flops() == 2 * product


@pytest.mark.parametrize("backend", ["auto", TRITON])
def test_compiles_to_one_graph(backend: str) -> None:
    case = draw(images=2).to(DEVICE)
    inputs = [part.requires_grad_() for part in case.inputs]

    def function(*inputs: Tensor) -> Tensor:
        return level_tail(*inputs, **case.options, backend=backend)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    results = []
    for form in (function, compiled):
        result = form(*inputs)
        results.append([result, *torch.autograd.grad(result, inputs, case.grad)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
