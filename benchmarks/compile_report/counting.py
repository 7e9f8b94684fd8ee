"""Counts the work of every Triton launch of a call, by running its kernels in Triton's interpreter.

With the tiles of an architecture the interpreter executes what a GPU would execute. To be fast it executes the
first and the last program along each axis of a grid, where the first stands for all but the last, and takes no
products and rounds nothing: a product is 1, and so is a bfloat16 number. No loop depends on that, and no token
takes the direct form.

`python -m benchmarks.compile_report.counting CASE` with TRITON_INTERPRET=1 prints the counts as JSON: the
interpreter has to be chosen before the kernels are imported.
"""

import contextlib
import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from .cases import Case, Size, run
from .driver import Driver, kernel_name


class Work(NamedTuple):
    """What a launch executes, summed over its programs.

    Attributes:
        kernel: Its name.
        flop: In matrix products, padding included.
        loaded, stored: Bytes, each time that a program loads or stores them.
        exponentials: Numbers of which exp is taken.
        operations: Other float operations on single numbers; reductions and conversions are not counted.
    """

    kernel: str
    flop: int = 0
    loaded: int = 0
    stored: int = 0
    exponentials: int = 0
    operations: int = 0


def count(case: Case, size: Size) -> dict[str, list[Work]]:
    """The work of each kernel in each call of a case, summed over its launches, counted in a new process."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-m", __spec__.name, json.dumps([case, size])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"counting {case} failed: {done.stderr}")
    calls = json.loads(done.stdout)
    return {call: [Work(*row) for row in rows] for call, rows in calls.items()}


def _count_here(case: Case, size: Size) -> dict[str, list[Work]]:
    import triton
    from triton.runtime import interpreter

    from cmsa_fast.kernels.separable_attention import state
    from cmsa_fast.kernels.triton import launch

    calls: dict[str, list[Work]] = {}
    counter = _Counter()
    triton.runtime.driver.set_active(Driver(case.architecture))
    with (
        # Not the interpreter's own tiles and paddings, which are small.
        mock.patch.object(launch, "interpreted", return_value=False),
        mock.patch.object(state, "_INTERPRETED", state._PLACES),
        # Flags that no program wrote are not set.
        mock.patch.object(Tensor, "new_empty", Tensor.new_zeros),
        _hooks(interpreter, counter),
    ):
        for call in run(case, size, _random):
            calls[call] = [Work(kernel, **count) for kernel, count in counter.counts.items()]
            counter.counts = {}
    return calls


class _Counter:
    """Counts by kernel.

    Attributes:
        counts: Name of a kernel -> field of Work -> its sum.
        kernel, grid: Of the launch that runs.
        weight: The number of programs that the running one stands for.
    """

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}
        self.kernel = ""
        self.grid: tuple[int, ...] = ()
        self.weight = 0

    def add(self, field: str, number: int) -> None:
        self.counts.setdefault(self.kernel, Counter())[field] += number * self.weight

    def start(self, position: tuple[int, ...]) -> tuple[int, ...]:
        """Where in the grid the program at 0 or 1 along each axis is."""
        axes = list(zip(position, self.grid, strict=True))
        self.weight = math.prod(1 if index else max(1, size - 1) for index, size in axes)
        return tuple(index * (size - 1) for index, size in axes)


@contextlib.contextmanager
def _hooks(interpreter: Any, counter: _Counter) -> Iterator[None]:
    """Make the interpreter count, and run a sample of programs."""
    from triton import language as tl

    def call(executor: Any, *arguments: Any, **options: Any) -> None:
        counter.kernel = kernel_name(executor, options)
        counter.grid = (*executor.grid, 1, 1)[:3]
        executor.grid = tuple(min(2, size) for size in counter.grid)
        call_original(executor, *arguments, **options)

    def set_grid_dim(self: Any, *_: int) -> None:
        originals["set_grid_dim"](self, *counter.grid)

    def set_grid_idx(self: Any, *position: int) -> None:
        originals["set_grid_idx"](self, *counter.start(position))

    def bytes_of(pointers: Any, mask: Any) -> int:
        return int(np.count_nonzero(mask.data)) * pointers.get_element_ty().primitive_bitwidth // 8

    def dot(self: Any, left: Any, right: Any, total: Any, *options: Any) -> Any:
        counter.add("flop", 2 * math.prod(left.data.shape) * right.data.shape[-1])
        return interpreter.TensorHandle(total.data + total.data.dtype.type(1), total.dtype.scalar)

    def cast(self: Any, source: Any, target: Any) -> Any:
        if tl.bfloat16 not in (source.dtype.scalar, target.scalar):
            return originals["cast_impl"](self, source, target)
        one = 0x3F80 if target.scalar == tl.bfloat16 else 1
        return interpreter.TensorHandle(
            np.full(source.data.shape, one, interpreter._get_np_dtype(target)), target.scalar
        )

    def load(self: Any, pointers: Any, mask: Any, *options: Any) -> Any:
        counter.add("loaded", bytes_of(pointers, mask))
        return originals["create_masked_load"](self, pointers, mask, *options)

    def store(self: Any, pointers: Any, value: Any, mask: Any, *options: Any) -> Any:
        counter.add("stored", bytes_of(pointers, mask))
        return originals["create_masked_store"](self, pointers, value, mask, *options)

    def operation(name: str) -> Any:
        def counted(self: Any, first: Any, *others: Any) -> Any:
            if first.data.dtype == np.float32:
                counter.add("operations", first.data.size)
            return originals[name](self, first, *others)

        return counted

    def unary(self: Any, argument: Any, function: Any) -> Any:
        counter.add("exponentials", argument.data.size if function in (np.exp, np.exp2) else 0)
        return originals["unary_op"](self, argument, function)

    builder = interpreter.InterpreterBuilder
    hooks = {
        "set_grid_dim": set_grid_dim,
        "set_grid_idx": set_grid_idx,
        "create_dot": dot,
        "cast_impl": cast,
        "create_masked_load": load,
        "create_masked_store": store,
        "unary_op": unary,
        **{name: operation(name) for name in ("binary_op", "ternary_op")},
    }
    originals = {name: getattr(builder, name) for name in hooks}
    call_original = interpreter.GridExecutor.__call__
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(interpreter.GridExecutor, "__call__", call))
        for name, hook in hooks.items():
            stack.enter_context(mock.patch.object(builder, name, hook))
        yield


def _random(dtype: torch.dtype, *shape: int) -> Tensor:
    """Features whose logits have a standard deviation near 1, equal weights of words, index 0, true masks."""
    if dtype in (torch.int64, torch.bool):
        return torch.full(shape, dtype == torch.bool, dtype=dtype)
    if len(shape) == 2 and dtype == torch.float32:
        return torch.full(shape, 1 / shape[1])
    return (torch.randn(shape) * shape[-1] ** -0.25).to(dtype)


if __name__ == "__main__":
    case, size = json.loads(sys.argv[1])
    print(json.dumps(_count_here(Case(*case), Size(*size))))
