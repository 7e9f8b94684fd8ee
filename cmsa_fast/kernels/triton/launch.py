"""What every launcher shares: the architecture, the launch itself, dtypes and precisions."""

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import uses_tf32

# 0 stands for Triton's interpreter; the rest are those with tiles in every table.
INTERPRETER = 0
ARCHITECTURES = (80, 86, 89, 90, 100, 120)

# The most programs that CUDA allows along the second and third axis of a grid.
_MOST_PROGRAMS = 65535


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter (TRITON_INTERPRET=1), on the CPU."""
    return bool(triton.knobs.runtime.interpret)


def architecture() -> int:
    """The newest of ARCHITECTURES that the current GPU's own is not older than, or INTERPRETER.

    Raises:
        RuntimeError: the GPU is older than all of them.
    """
    if interpreted():
        return INTERPRETER
    own = triton.runtime.driver.active.get_current_target().arch
    fitting = [arch for arch in ARCHITECTURES if arch <= own]
    if not fitting:
        raise RuntimeError(
            f"the Triton kernels need a GPU of compute capability {ARCHITECTURES[0] / 10} or newer; "
            f"this one has {own / 10}."
        )
    return fitting[-1]


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """kernel[grid](*arguments, **constants) on the device of the first tensor; nothing for an empty grid."""
    if 0 in grid:
        return
    if max(grid[1:], default=0) > _MOST_PROGRAMS:
        raise ValueError(
            f"the Triton kernels take at most {_MOST_PROGRAMS} images or expressions at once; "
            f"got {max(grid[1:])}. Work on them in parts."
        )
    tensor = next(part for part in arguments if isinstance(part, Tensor))
    on_device = torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
    with on_device:
        kernel[grid](*arguments, **constants)


def accumulator(dtype: torch.dtype) -> Any:
    """The dtype that products of `dtype` are summed in."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def precision(dtype: torch.dtype) -> str:
    """`input_precision` of products of float32 numbers: PyTorch's own setting for float32 input.

    For 16-bit input they are float32 intermediates, for which TF32's 10 bits are enough.
    """
    if dtype == torch.float64:
        return "ieee"
    if dtype == torch.float32:
        return "tf32" if uses_tf32() else "ieee"
    return "tf32"
