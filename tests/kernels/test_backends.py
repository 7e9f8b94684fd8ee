"""The choice of backend: what "auto" stands for, and where "triton" raises instead of being replaced."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.host_waits import NoHostWaits
from support.joint_oracle import draw_joint, draw_tail
from support.oracle import Case, assert_identical, run
from support.separable_oracle import draw
from support.tail_oracle import draw as draw_level_tail
from torch import Tensor
from torch._subclasses import FakeTensorMode

from cmsa_fast.kernels import (
    backends,
    cross_modal_attention,
    joint_attention,
    joint_attention_tail,
    level_tail,
)
from cmsa_fast.kernels.joint_attention import ops

KERNEL_DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _no_cached_obstacle() -> Iterator[None]:
    backends._obstacle.cache_clear()
    yield
    backends._obstacle.cache_clear()


def tensor_on(device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without values on a device that this machine may not have."""
    with FakeTensorMode():
        return torch.empty(1, dtype=dtype, device=device)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[int, int]], None]:
    """Pretend that this machine has a GPU of a compute capability."""

    def pretend(capability: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return pretend


@pytest.fixture
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """PyTorch's precision of float32 products on GPUs."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, request.param
    yield request.param
    matmul.fp32_precision = before


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (9, 0), (12, 0)])
@pytest.mark.parametrize("precision", ["ieee", "tf32"], indirect=True)
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float64, *KERNEL_DTYPES], ids=str)
def test_auto_is_triton_on_tensor_cores(
    monkeypatch: pytest.MonkeyPatch,
    gpu: Callable[[tuple[int, int]], None],
    dtype: torch.dtype,
    device: str,
    precision: str,
    capability: tuple[int, int],
) -> None:
    """And nowhere without Triton."""
    first = tensor_on(device, dtype)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace())
    gpu(capability)
    half = dtype in (torch.bfloat16, torch.float16)
    on_tensor_cores = half or (dtype == torch.float32 and precision == "tf32")
    expected = "triton" if "cuda" in device and capability >= (8, 0) and on_tensor_cores else "torch"
    assert backends.choose_backend("auto", first) == expected
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    backends._obstacle.cache_clear()
    assert backends.choose_backend("auto", first) == "torch"


def test_auto_is_torch_for_cuda_tensors_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    fake = tensor_on("cuda", torch.bfloat16)
    assert backends.choose_backend("auto", fake) == "torch"
    pytest.importorskip("triton")
    with pytest.raises(ValueError, match="runs on NVIDIA GPUs; PyTorch finds none"):
        backends.choose_backend("triton", fake)


@pytest.mark.parametrize(
    ("installed", "device", "capability", "kind", "message"),
    [
        (False, "cuda", (9, 0), ImportError, "needs the package triton, which is not installed."),
        (
            True,
            "cpu",
            (9, 0),
            ValueError,
            "runs on NVIDIA GPUs (and on the CPU in Triton's interpreter, TRITON_INTERPRET=1); got cpu.",
        ),
        (
            True,
            "cuda:1",
            (7, 5),
            ValueError,
            "needs compute capability 8.0 or newer; cuda:1 has 7.5.",
        ),
    ],
)
def test_triton_raises_where_it_cannot_run(
    monkeypatch: pytest.MonkeyPatch,
    gpu: Callable[[tuple[int, int]], None],
    installed: bool,
    device: str,
    capability: tuple[int, int],
    kind: type[Exception],
    message: str,
) -> None:
    """And there "auto" stands for "torch"."""
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    first, half = tensor_on(device), tensor_on(device, torch.bfloat16)
    if not installed:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    gpu(capability)
    expected = f'backend="triton" {message} Use backend="torch" instead.'
    with pytest.raises(kind, match=f"^{re.escape(expected)}$"):
        backends.check_triton(first)
    assert backends.choose_backend("auto", half) == "torch"


def test_triton_takes_float64_in_the_interpreter_only(gpu: Callable[[tuple[int, int]], None]) -> None:
    pytest.importorskip("triton")
    gpu((9, 0))
    with pytest.raises(TypeError, match=r"float32, bfloat16 or float16 on a GPU; got torch\.float64"):
        backends.check_triton(tensor_on("cuda", torch.float64))


FUNCTIONS = [
    pytest.param(cross_modal_attention, draw, id="separable"),
    pytest.param(joint_attention, draw_joint, id="joint"),
    pytest.param(joint_attention_tail, draw_tail, id="joint tail"),
    pytest.param(level_tail, draw_level_tail, id="level tail"),
]


OPERATORS = {
    cross_modal_attention: "separable_forward",
    joint_attention: "joint_forward",
    joint_attention_tail: "joint_tail_forward",
    level_tail: "level_tail_forward",
}


def call(function: Callable[..., Tensor], backend: str) -> Callable[..., Tensor]:
    """`function` with a backend; `level_tail` has no mask, which is the last input of a case."""

    def attention(*inputs: Tensor, **options: Any) -> Tensor:
        if function is level_tail:
            inputs = inputs[:-1]
        return function(*inputs, **options, backend=backend)

    return attention


@pytest.mark.parametrize(("function", "draw_case"), FUNCTIONS)
def test_auto_is_torch_on_the_cpu(function: Callable[..., Tensor], draw_case: Callable[[], Case]) -> None:
    case = draw_case()
    assert_identical(run(call(function, "torch"), case), run(call(function, "auto"), case))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("function", "draw_case"), FUNCTIONS)
@pytest.mark.parametrize(
    ("dtype", "precision"),
    [(torch.bfloat16, "ieee"), (torch.float32, "tf32"), (torch.float32, "ieee"), (torch.float64, "tf32")],
    ids=str,
    indirect=["precision"],
)
def test_every_function_follows_the_rule(
    gpu: Callable[[tuple[int, int]], None],
    function: Callable[..., Tensor],
    draw_case: Callable[[], Case],
    dtype: torch.dtype,
    precision: str,
    compiled: bool,
) -> None:
    pytest.importorskip("triton")
    gpu((9, 0))
    with FakeTensorMode():
        inputs = [torch.empty(part.shape, dtype=dtype, device="cuda") for part in draw_case().inputs]
        called = partial(function, relu=True) if function is joint_attention_tail else function
        names = operators_of_graph(called, inputs) if compiled else operators_of_call(called, inputs)
    in_triton = precision == "tf32" if dtype == torch.float32 else dtype == torch.bfloat16
    assert (OPERATORS[function] in names) == in_triton


def operators_of_call(function: Callable[..., Tensor], inputs: list[Tensor]) -> set[str]:
    with NoHostWaits(fake=True) as mode:
        function(*inputs)
    return set(mode.operators)


def operators_of_graph(function: Callable[..., Tensor], inputs: list[Tensor]) -> set[str]:
    """The graph traced before the setting of TF32 changes is not used after it."""
    names: list[set[str]] = []

    def record(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        names.append({str(node.target).removeprefix("cmsa_fast.") for node in graph.graph.nodes})
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend=record)
    matmul = torch.backends.cuda.matmul
    wanted, matmul.fp32_precision = matmul.fp32_precision, "tf32" if matmul.fp32_precision == "ieee" else "ieee"
    compiled(*inputs)
    matmul.fp32_precision = wanted
    compiled(*inputs)
    assert len(names) == 2
    return names[1]


@pytest.mark.parametrize(("function", "draw_case"), FUNCTIONS)
def test_triton_is_never_replaced(
    monkeypatch: pytest.MonkeyPatch,
    function: Callable[..., Tensor],
    draw_case: Callable[[], Case],
) -> None:
    refusal: Callable[..., str] = lambda device: "cannot run here."  # noqa: E731
    monkeypatch.setattr(backends, "_obstacle", refusal)
    case = draw_case()
    with pytest.raises(ValueError, match=r'^backend="triton" cannot run here\. Use backend="torch"'):
        call(function, "triton")(*case.inputs, case.mask, **case.options)
    call(function, "auto")(*case.inputs, case.mask, **case.options)


@pytest.mark.parametrize("dtype", KERNEL_DTYPES[1:], ids=str)
def test_autocast_casts_inputs_of_different_dtypes(dtype: torch.dtype) -> None:
    case = draw(5, 4, 3)
    mixed = [case.inputs[0].to(dtype), *case.inputs[1:]]
    expected = cross_modal_attention(*case.to(dtype).inputs, case.mask)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(cross_modal_attention(*mixed, case.mask), expected)
    with pytest.raises(TypeError, match="must have the dtype of place_query"):
        cross_modal_attention(*mixed, case.mask)


def test_joint_triton_functions_get_the_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, with the scale as a float: the operators have no keyword arguments."""
    given: list[tuple[Any, ...]] = []

    def record(*arguments: Any) -> Tensor:
        given.append(arguments)
        return arguments[0]

    monkeypatch.setattr(ops, "joint_attention", record)
    monkeypatch.setattr(ops, "joint_attention_tail", record)
    monkeypatch.setattr(backends, "check_triton", lambda first: None)

    attention, tail = draw_joint(), draw_tail()
    joint_attention(*attention.inputs, attention.mask, scale=2, backend="triton")
    joint_attention_tail(*tail.inputs, tail.mask, relu=True, backend="triton")
    for arguments, expected in zip(
        given,
        ((*attention.inputs, attention.mask, 2.0), (*tail.inputs, tail.mask, True)),
        strict=True,
    ):
        assert len(arguments) == len(expected)
        for one, other in zip(arguments, expected, strict=True):
            assert one is other or one == other
