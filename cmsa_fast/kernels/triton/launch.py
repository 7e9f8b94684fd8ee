"""What all launchers share: tile sizes, the architecture, dtypes and precisions, and the launch itself."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ..backends import uses_tf32

# Architectures (compute capability times ten) that have tiles in every table; 0 is Triton's interpreter.
INTERPRETER = 0
ARCHITECTURES = (80, 86, 89, 90, 100, 120)

# CUDA's limit on programs along the second and third axis of a grid.
_MOST_PROGRAMS = 65535

# Programs that keep every current GPU busy: about one for each multiprocessor.
_PROGRAMS = 128


class Tile(NamedTuple):
    """Sizes of one program's work; powers of two, at least 16."""

    rows: int  # of the queries' side
    keys: int  # of the keys' side
    channels: int  # of a contraction over the width, at a time
    warps: int
    stages: int  # loads in flight


# The interpreter runs any size; with small tiles, small inputs span several.
INTERPRETED = Tile(rows=16, keys=16, channels=16, warps=1, stages=1)


def row_splits(rows: int, block: int, programs: int) -> tuple[int, int]:
    """The number of parts that a loop over rows is split into to fill a GPU, and the rows in each part."""
    wanted = 2 if interpreted() else max(1, _PROGRAMS // max(1, programs))
    per_part = triton.cdiv(triton.cdiv(rows, wanted), block) * block
    return triton.cdiv(rows, per_part), per_part


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter (TRITON_INTERPRET=1), on the CPU."""
    return bool(triton.knobs.runtime.interpret)


def architecture() -> int:
    """The newest of ARCHITECTURES that is not newer than the current GPU, or INTERPRETER.

    Raises:
        RuntimeError: The GPU is older than all of them.
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
    """Run kernel[grid](*arguments, **constants) on the current GPU, unless the grid is empty."""
    if 0 in grid:
        return
    if max(grid[1:], default=0) > _MOST_PROGRAMS:
        raise ValueError(
            f"the Triton kernels take at most {_MOST_PROGRAMS} images or expressions at once; "
            f"got {max(grid[1:])}. Work on them in parts."
        )
    kernel[grid](*arguments, **constants)


def accumulator(dtype: torch.dtype) -> Any:
    """The dtype that products of `dtype` are summed in."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def arithmetic(dtype: torch.dtype) -> str:
    """How products are computed: "half" for 16-bit input, "tf32" or "ieee" for float32 as PyTorch is set."""
    if dtype.itemsize == 2:
        return "half"
    return "tf32" if dtype == torch.float32 and uses_tf32() else "ieee"


def precision(dtype: torch.dtype) -> str:
    """`input_precision` of products of float32 numbers; for the intermediates of 16-bit input TF32 is enough."""
    return "ieee" if arithmetic(dtype) == "ieee" else "tf32"


def options(tile: Tile, dtype: torch.dtype) -> dict[str, Any]:
    """What every kernel of products takes: how they are computed, and the compiler's options."""
    return {
        "PRECISION": precision(dtype),
        "ACCUMULATOR": accumulator(dtype),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }
