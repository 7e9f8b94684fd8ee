"""Runs launchers on meta tensors: kernels are compiled for an architecture, and every launch is recorded."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators that start no kernel: they allocate, or return a view.
_NO_LAUNCH = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "detach")


class Launch(NamedTuple):
    """One kernel that a call starts.

    Attributes:
        kernel: Name of the Triton kernel, or of the PyTorch operator.
        programs: CTAs of a Triton kernel; 0 for an operator.
        tensors: Bytes of all tensors among the arguments and results, each counted once.
        flop: FLOP of an operator's matrix products; 0 for a Triton kernel.
        options: Compile-time options of a Triton kernel.
        compiled: Triton's result, or None for an operator.
    """

    kernel: str
    programs: int
    tensors: int
    flop: int
    options: dict[str, Any]
    compiled: Any


class Driver:
    """The part of Triton's driver interface that a launch uses."""

    def __init__(self, architecture: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        # Triton caches compiled kernels by device, without regard to the architecture.
        return self.target.arch

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


@contextlib.contextmanager
def recording(architecture: int) -> Iterator[list[Launch]]:
    """Make launches compile for the architecture without running; yields all launches, PyTorch's included."""
    import triton

    launches: list[Launch] = []
    run = triton.JITFunction.run

    def compile_only(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        result = run(kernel, *arguments, grid=grid, warmup=True, **options)
        tensors = _bytes((arguments, options))
        launches.append(Launch(kernel_name(kernel, options), math.prod(grid), tensors, 0, options, result))

    triton.runtime.driver.set_active(Driver(architecture))
    triton.JITFunction.run = compile_only
    try:
        with _Operators(launches):
            yield launches
    finally:
        triton.JITFunction.run = run
        triton.runtime.driver.set_active(None)


def kernel_name(kernel: Any, options: dict[str, Any]) -> str:
    """The name, with the constant OF where one kernel computes several gradients."""
    name = kernel.fn.__name__.strip("_")
    return f"{name}_{options['OF']}" if "OF" in options else name


class _Operators(TorchDispatchMode):
    """Records the PyTorch operators that start a kernel."""

    def __init__(self, launches: list[Launch]) -> None:
        super().__init__()
        self.launches = launches

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        from torch.utils.flop_counter import flop_registry  # imports Triton, with or without the interpreter

        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if starts_kernel(func):
            count = flop_registry.get(func.overloadpacket)
            flop = count(*args, **kwargs, out_val=result) if count else 0
            self.launches.append(Launch(func._opname, 0, _bytes((args, kwargs, result)), flop, {}, None))
        return result


def starts_kernel(operator: Any) -> bool:
    """Whether a PyTorch operator starts a kernel."""
    return not operator.is_view and operator._opname not in _NO_LAUNCH


def _bytes(arguments: Any) -> int:
    """Bytes of the elements of the tensors, each tensor once; a broadcast dimension is read once."""
    tensors = {id(part): part for part in tree_leaves(arguments) if isinstance(part, Tensor)}
    return sum(
        part.element_size()
        * math.prod(size for size, stride in zip(part.shape, part.stride(), strict=True) if stride)
        for part in tensors.values()
    )
