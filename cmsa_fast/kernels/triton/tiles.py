"""How much of a problem one program of each kernel takes on, by architecture, precision and width."""

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
    slice: int = 512  # channels of a wide accumulator; wider tensors are spread over the grid


# The interpreter runs any size; small ones make small inputs cross several tiles.
INTERPRETED = Tile(rows=16, keys=16, channels=16, warps=1, stages=1)

# Programs that keep every current GPU busy: about one for each of its processors.
_PROGRAMS = 128


def word_block(words: int) -> int:
    """Words, padded to a size that a product of tiles takes."""
    return max(16, triton.next_power_of_2(words))


def slice_width(width: int, tile: Tile) -> int:
    """Channels that one program accumulates."""
    return min(tile.slice, max(16, triton.next_power_of_2(width)))


def row_splits(rows: int, block: int, programs: int, architecture: int) -> tuple[int, int]:
    """Into how many parts to split a walk over rows so that the grid fills a GPU, and rows in each."""
    wanted = 2 if not architecture else max(1, _PROGRAMS // max(1, programs))
    per_part = triton.cdiv(triton.cdiv(rows, wanted), block) * block
    return triton.cdiv(rows, per_part), per_part


def arithmetic(dtype: torch.dtype) -> str:
    """How products are computed: "half" for 16-bit input, "tf32" or "ieee" for float32 as PyTorch is set."""
    if dtype.itemsize == 2:
        return "half"
    if dtype == torch.float32 and uses_tf32():
        return "tf32"
    return "ieee"


def uses_tf32() -> bool:
    """PyTorch's setting for products of float32, by whichever of its interfaces it was made."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"
