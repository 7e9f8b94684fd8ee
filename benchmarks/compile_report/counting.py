"""Counts the work of every Triton launch of a call, by running its kernels in Triton's interpreter.

The interpreter executes each program with the tiles of an architecture, so what is counted is what a GPU would
execute, loops and branches on data included. Run as a command (`TRITON_INTERPRET=1 python -m
benchmarks.compile_report.counting CASE`), it prints the counts as JSON, because the interpreter has to be chosen
before the kernels are imported.
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
from .driver import Driver


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
    counts: dict[str, Counter[str]] = {}
    current = [Counter[str]()]
    execute = interpreter.GridExecutor.__call__

    def start(executor: Any, *arguments: Any, **options: Any) -> None:
        current[0] = counts.setdefault(executor.fn.__name__.strip("_"), Counter())
        execute(executor, *arguments, **options)

    triton.runtime.driver.set_active(Driver(case.architecture))
    # Not the interpreter's own tiles and paddings, which are small.
    with (
        mock.patch.object(state, "_INTERPRETED", 128),
        mock.patch.object(launch, "interpreted", return_value=False),
        mock.patch.object(interpreter.GridExecutor, "__call__", start),
        _hooks(interpreter, current),
    ):
        for call in run(case, size, _random):
            calls[call] = [Work(kernel, **count) for kernel, count in counts.items()]
            counts.clear()
    return calls


@contextlib.contextmanager
def _hooks(interpreter: Any, current: list[Counter[str]]) -> Iterator[None]:
    """Make the interpreter's operations add to the counter in `current`."""
    builder = interpreter.InterpreterBuilder

    def bytes_of(pointers: Any, mask: Any) -> int:
        return int(np.count_nonzero(mask.data)) * pointers.get_element_ty().primitive_bitwidth // 8

    def dot(self: Any, left: Any, right: Any, total: Any, *options: Any) -> Any:
        current[0]["flop"] += 2 * math.prod(left.data.shape) * right.data.shape[-1]
        # The interpreter would multiply the bit patterns of bfloat16.
        return originals["create_dot"](self, _float32(self, left), _float32(self, right), total, *options)

    def load(self: Any, pointers: Any, mask: Any, *options: Any) -> Any:
        current[0]["loaded"] += bytes_of(pointers, mask)
        return originals["create_masked_load"](self, pointers, mask, *options)

    def store(self: Any, pointers: Any, value: Any, mask: Any, *options: Any) -> Any:
        current[0]["stored"] += bytes_of(pointers, mask)
        return originals["create_masked_store"](self, pointers, value, mask, *options)

    def operation(name: str) -> Any:
        def counted(self: Any, first: Any, *others: Any) -> Any:
            if first.data.dtype == np.float32:
                current[0]["operations"] += first.data.size
            return originals[name](self, first, *others)

        return counted

    def unary(self: Any, argument: Any, function: Any) -> Any:
        current[0]["exponentials"] += argument.data.size if function in (np.exp, np.exp2) else 0
        return originals["unary_op"](self, argument, function)

    hooks = {"create_dot": dot, "create_masked_load": load, "create_masked_store": store, "unary_op": unary}
    hooks |= {name: operation(name) for name in ("binary_op", "ternary_op")}
    originals = {name: getattr(builder, name) for name in hooks}
    with contextlib.ExitStack() as stack:
        for name, hook in hooks.items():
            stack.enter_context(mock.patch.object(builder, name, hook))
        yield


def _float32(builder: Any, tensor: Any) -> Any:
    from triton import language as tl

    return builder.cast_impl(tensor, tl.float32) if tensor.dtype.scalar == tl.bfloat16 else tensor


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
