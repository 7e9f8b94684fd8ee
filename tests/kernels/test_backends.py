"""The choice of backend: what "auto" stands for, and where "triton" raises instead of being replaced."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.joint_oracle import draw_joint, draw_tail
from support.oracle import Case, assert_identical, run
from support.separable_oracle import draw
from support.tail_oracle import draw as draw_level_tail
from torch import Tensor

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


def tensor_on(device: str, dtype: torch.dtype = torch.float32) -> Any:
    """A stand-in for a tensor on a device that this machine may not have."""
    return SimpleNamespace(is_cuda=device.startswith("cuda"), dtype=dtype, device=torch.device(device))


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float64, *KERNEL_DTYPES], ids=str)
def test_auto_is_triton_on_gpus_that_have_it(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, device: str, installed: bool
) -> None:
    specification = SimpleNamespace() if installed else None
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: specification)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    chosen = backends.automatic_backend(tensor_on(device, dtype))
    has_kernels = device == "cuda" and dtype in KERNEL_DTYPES and installed
    assert chosen == ("triton" if has_kernels else "torch")
    assert chosen in backends.BACKENDS


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
    installed: bool,
    device: str,
    capability: tuple[int, int],
    kind: type[Exception],
    message: str,
) -> None:
    """And there "auto" stands for "torch"."""
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    if not installed:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    expected = f'backend="triton" {message} Use backend="torch" instead.'
    with pytest.raises(kind, match=f"^{re.escape(expected)}$"):
        backends.check_triton(tensor_on(device))
    assert backends.automatic_backend(tensor_on(device)) == "torch"


def test_triton_takes_float64_in_the_interpreter_only(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with pytest.raises(TypeError, match=r"float32, bfloat16 or float16 on a GPU; got torch\.float64"):
        backends.check_triton(tensor_on("cuda", torch.float64))


FUNCTIONS = [
    pytest.param(cross_modal_attention, draw, id="separable"),
    pytest.param(joint_attention, draw_joint, id="joint"),
    pytest.param(joint_attention_tail, draw_tail, id="joint tail"),
    pytest.param(level_tail, draw_level_tail, id="level tail"),
]


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
