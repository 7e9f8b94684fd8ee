"""The tail of a CMSA level, written straight to its place, against the literal concatenation."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from support.joint_oracle import JointCase, assert_joint_within_budget, run_joint
from support.tail_oracle import DEVICE, DTYPES, NAMES, TAIL, TRITON, draw, needs_triton, runs, tail
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cmsa_fast.kernels import level_tail


@pytest.mark.parametrize("backend", ["reference", "torch", TRITON])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("sizes", "images"),
    [
        ((1, 1, 1, 1, 1, 1), None),
        ((19, 17, 21, 5, 8, 3), None),
        ((33, 33, 18, 17, 3, 2), None),
        ((16, 16, 16, 16, 16, 1), None),
        ((17, 5, 9, 7, 8, 5), 3),
        ((33, 40, 3, 2, 1, 1), 4),
    ],
    ids=str,
)
def test_sizes(
    sizes: tuple[int, ...], images: int | None, dtype: torch.dtype, backend: str
) -> None:
    """One of everything, sizes about a tile, blocks with channels of two and of all three sources."""
    if not runs(backend, dtype):
        pytest.skip("no such arithmetic here")
    cases = [draw(*sizes, images=images, dtype=dtype, seed=seed) for seed in range(3)]
    assert_joint_within_budget(functools.partial(tail, backend=backend), cases)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sums_over_many_expressions_are_not_rounded_at_each(dtype: torch.dtype) -> None:
    cases = [draw(1, 3, 2, 2, 1, batch=900, dtype=dtype, seed=seed) for seed in range(3)]
    assert_joint_within_budget(tail, cases)


@pytest.mark.parametrize("backend", ["torch", TRITON])
def test_strides_are_honoured(backend: str) -> None:
    """Transposed, sliced, interleaved and expanded inputs, and a gradient without memory of its own."""
    function = functools.partial(tail, backend=backend)
    case = draw()
    strided = case.with_inputs(
        attended=torch.stack([case["attended"]] * 2, -1)[..., 1],
        output_weight=case["output_weight"].T.contiguous().T,
        unit_visual=case["unit_visual"].contiguous(),
        mean_word=torch.cat([case["mean_word"]] * 2, 1)[:, :5],
        coordinates=case["coordinates"].T.contiguous().T,
    )
    for one, other in zip(run_joint(function, case), run_joint(function, strided), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-5)
    expanded = case.with_inputs(
        attended=case["attended"][:, :1].expand(-1, 19, -1),
        unit_visual=case["unit_visual"][:1].expand(3, -1, -1),
    )
    grad = torch.tensor(1.5).expand(case.grad.shape)
    assert_joint_within_budget(function, JointCase(TAIL, expanded.inputs, None, grad, case.options))


@pytest.mark.parametrize("backend", ["torch", TRITON])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_two_runs_are_equal_to_the_bit(dtype: torch.dtype, backend: str) -> None:
    case = draw(batch=7, images=2, dtype=dtype)
    function = functools.partial(tail, backend=backend)
    for one, other in zip(run_joint(function, case), run_joint(function, case), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("backend", ["torch", TRITON])
def test_what_is_not_finite_stays_with_its_image(backend: str) -> None:
    case = draw(images=2)
    index = torch.tensor([1, 0, 1])
    case = JointCase(TAIL, case.inputs, None, case.grad.clone(), {"image_index": index})
    case.grad[1] = torch.inf
    _, of_attended, _, of_visual, *_ = run_joint(functools.partial(tail, backend=backend), case)
    assert of_attended[[0, 2]].isfinite().all()
    assert of_visual[1].isfinite().all()
    assert not of_visual[0].isfinite().any()


@pytest.mark.parametrize("backend", ["torch", TRITON])
@pytest.mark.parametrize("images", [None, 2])
def test_no_expression(images: int | None, backend: str) -> None:
    result, *gradients = run_joint(
        functools.partial(tail, backend=backend), draw(batch=0, images=images)
    )
    assert result.shape == (0, 34, 19)
    for gradient in gradients:
        assert not gradient.any()


@pytest.mark.parametrize("backend", ["torch", TRITON])
@pytest.mark.parametrize("name", NAMES)
def test_one_input_asks_for_a_gradient(name: str, backend: str) -> None:
    case = draw(images=2)
    function = functools.partial(tail, backend=backend)
    expected = run_joint(function, case)[1 + NAMES.index(name)]
    inputs = dict(zip(NAMES, case.inputs, strict=True))
    inputs[name] = case[name].detach().requires_grad_()
    result = function(*inputs.values(), None, **case.options)
    (found,) = torch.autograd.grad(result, inputs[name], case.grad)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("images", [None, 2])
@pytest.mark.parametrize("backend", ["torch", TRITON])
def test_gradcheck(backend: str, images: int | None) -> None:
    if not runs(backend, torch.float64):
        pytest.skip("the kernel computes float64 in the interpreter alone")
    case = draw(3, 2, 3, 2, 2, batch=3, images=images, dtype=torch.float64)
    inputs = [part.requires_grad_() for part in case.inputs if part is not None]

    def function(*inputs: Tensor) -> Tensor:
        return tail(*inputs, None, **case.options, backend=backend)

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    if backend == "torch":
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


class FullSize(TorchDispatchMode):
    """Counts the storages of at least so many elements that operations make."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements = elements
        self.made: dict[int, Tensor] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        known = {part.untyped_storage().data_ptr() for part in args if isinstance(part, Tensor)}
        for part in result if isinstance(result, tuple | list) else (result,):
            if isinstance(part, Tensor):
                storage = part.untyped_storage()
                large = storage.nbytes() >= self.elements * part.element_size()
                if large and storage.data_ptr() not in known:
                    self.made[storage.data_ptr()] = part  # kept, so that no address comes twice
        return result


@pytest.mark.parametrize(
    ("backend", "forward", "backward"),
    [("torch", 1, 0), pytest.param("triton", 1, 0, marks=needs_triton)],
)
@pytest.mark.parametrize("images", [None, 1])
def test_neither_concatenation_nor_copy(
    backend: str, forward: int, backward: int, images: int | None
) -> None:
    """The result is the one array [B, C, P] that is made; the literal form makes several."""
    case = draw(67, 5, 40, 20, 8, batch=3, images=images)
    made = {}
    for name in (backend, "reference"):
        inputs = [part.to(DEVICE).requires_grad_() for part in case.inputs if part is not None]
        index = case.options["image_index"]
        index = None if index is None else index.to(DEVICE)
        with FullSize(case.grad.numel()) as on_the_way:
            result = level_tail(*inputs, image_index=index, backend=name)  # type: ignore[misc]
        grad = case.grad.to(DEVICE)
        with FullSize(case.grad.numel()) as on_the_way_back:
            torch.autograd.grad(result, inputs, grad)
        made[name] = len(on_the_way.made), len(on_the_way_back.made)
        assert result.is_contiguous() == (name == backend)
    assert made[backend] == (forward, backward)
    assert made["reference"][0] >= 3


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_is_the_cast_of_the_inputs(low: torch.dtype) -> None:
    case = draw()
    expected = run_joint(tail, case.to(low))
    with torch.autocast(DEVICE, dtype=low):
        found = run_joint(tail, JointCase(TAIL, case.inputs, None, case.grad.to(low)))
    assert found[0].dtype == low
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one.float(), other.float())
