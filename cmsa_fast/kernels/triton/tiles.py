"""How much of a problem one program of each kernel takes on, by architecture and width."""

from typing import NamedTuple

import torch
import triton


class Tile(NamedTuple):
    """Sizes of one program's work; powers of two, at least 16."""

    rows: int  # of the queries' side
    keys: int  # of the keys' side
    channels: int  # of a contraction over the width, at a time
    warps: int
    stages: int  # loads in flight


# The interpreter runs any size; small ones make small inputs cross several tiles.
INTERPRETED = Tile(rows=16, keys=16, channels=16, warps=1, stages=1)

# Rows whose Z falls below take the direct form; see `cmsa_fast.kernels.mean_softmax`.
FLOOR = {torch.float32: 2.0**-60, torch.float64: 2.0**-500}

# Programs that keep every current GPU busy: about one for each of its processors.
_PROGRAMS = 128

# The widest slice of channels that one program accumulates.
_SLICE = 512


def word_block(words: int) -> int:
    """Words, padded to a size that a product of tiles takes."""
    return max(16, triton.next_power_of_2(words))


def slice_width(width: int) -> int:
    """Channels that one program accumulates; wider tensors are spread over the grid."""
    return min(_SLICE, max(16, triton.next_power_of_2(width)))


def separable_tile(kernel: str, width: int, dtype: torch.dtype, architecture: int) -> Tile:
    """The tile of a kernel at this width, on an architecture of `launch.ARCHITECTURES` or in the interpreter."""
    if not architecture:
        return INTERPRETED
    return Tile(64, 32, 64, 8, 2)


def row_splits(rows: int, block: int, programs: int, architecture: int) -> tuple[int, int]:
    """Into how many parts to split a walk over rows so that the grid fills a GPU, and rows in each."""
    wanted = 2 if not architecture else max(1, _PROGRAMS // programs)
    per_part = triton.cdiv(triton.cdiv(rows, wanted), block) * block
    return triton.cdiv(rows, per_part), per_part
