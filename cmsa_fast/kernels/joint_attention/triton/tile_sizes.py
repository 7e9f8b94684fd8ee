"""Tiles of the kernels of the joint attention and of its tail, by kernel, shared memory, dtype and width.

A program works on blocks of its own side (rows of a tile) and of the other side (keys). Its own side are the
queries in the attention's forward pass and the gradient of query, the keys in the gradients of key and value, the
places in the tail's forward pass and the gradient of attended, and the output channels in the gradient of weight.

Every tile was compiled for its architectures: it fits their shared memory, and at widths that are multiples of 16
no thread spills more than 256 bytes of registers.
"""

from typing import Any

import torch
import triton

from ...triton import launch
from ...triton.launch import INTERPRETED, Tile

# The most channels that one program accumulates; wider results are split over the grid.
WIDEST_SLICE = 512

# The most channels of a contraction taken at once where it needs several steps.
_CHUNK = 64

# Programs that fill each architecture's largest GPU: its multiprocessors. Not queried from the device, so that
# results do not depend on it.
_PROGRAMS = {launch.INTERPRETER: 6, 80: 108, 86: 84, 89: 128, 90: 132, 100: 148, 120: 170}

# Column of the table by shared memory per program: 227 KiB, 163 KiB, 99 KiB.
_COLUMN = {90: 0, 100: 0, 80: 1, 86: 2, 89: 2, 120: 2}


def constants(tile: Tile, dtype: torch.dtype) -> dict[str, Any]:
    """The compile-time constants of a launch that do not depend on widths."""
    return {"OWN": tile.rows, "OTHER": tile.keys, **launch.options(tile, dtype)}


_Tiles = tuple[Tile, ...]  # for widths up to 64, 128, 256 and 512, or one for all


def _tiles(*sizes: tuple[int, int, int, int, int]) -> _Tiles:
    return tuple(Tile(*size) for size in sizes)


_GRADIENT = (
    _tiles((64, 64, 64, 4, 3), (128, 64, 128, 8, 3), (128, 32, 256, 8, 2), (64, 64, 64, 8, 3)),
    _tiles((64, 64, 64, 4, 2), (64, 64, 128, 8, 2), (64, 32, 256, 8, 2), (64, 64, 64, 8, 3)),
    _tiles((64, 64, 64, 4, 2), (64, 64, 128, 8, 2), (64, 64, 64, 8, 3), (64, 32, 64, 8, 3)),
)
_TILES: dict[str, tuple[_Tiles, _Tiles, _Tiles]] = {
    "forward": (
        _tiles((128, 64, 64, 4, 3), (128, 64, 128, 8, 3), (128, 64, 256, 8, 2), (64, 32, 512, 8, 2)),
        _tiles((128, 64, 64, 8, 3), (128, 64, 128, 8, 3), (64, 32, 256, 8, 3), (64, 32, 512, 8, 2)),
        _tiles((128, 64, 64, 8, 2), (128, 32, 128, 8, 2), (64, 32, 256, 8, 2), (64, 64, 64, 8, 3)),
    ),
    "query": _GRADIENT,
    "key": _GRADIENT,
    "value": (
        _tiles((64, 64, 64, 4, 3), (128, 64, 128, 8, 3), (64, 64, 256, 8, 2), (64, 32, 512, 8, 2)),
        _tiles((64, 64, 64, 4, 2), (64, 64, 128, 8, 2), (64, 32, 256, 8, 3), (64, 32, 512, 8, 2)),
        _tiles((64, 64, 64, 4, 2), (64, 64, 128, 8, 2), (64, 32, 256, 8, 2), (64, 32, 64, 8, 3)),
    ),
    "keys": (_tiles((32, 32, 64, 4, 3)),) * 3,
    "tail": (_tiles((64, 128, 64, 8, 3)),) * 3,
    "attended": (_tiles((64, 64, 64, 8, 3)),) * 3,
    "weight": (_tiles((64, 64, 64, 8, 3)), _tiles((64, 32, 64, 8, 3)), _tiles((64, 32, 64, 8, 3))),
}

# The gradients of query and key take float32 copies of float16 blocks in their last products, which need space.
_FLOAT16 = (
    _tiles((64, 64, 64, 8, 2), (64, 32, 128, 8, 2), (64, 32, 64, 8, 2), (64, 32, 64, 8, 2)),
    _tiles((64, 32, 64, 8, 2), (64, 32, 128, 8, 2), (64, 32, 64, 8, 2), (32, 32, 64, 8, 2)),
    _tiles((64, 32, 64, 8, 2), (64, 32, 128, 8, 2), (64, 32, 64, 8, 2), (32, 32, 64, 8, 2)),
)

_FLOAT32 = _tiles((32, 32, 64, 4, 2), (32, 32, 64, 8, 2), (32, 32, 64, 8, 2), (32, 32, 64, 8, 2))
_FLOAT32_TAIL_GRADIENT = _tiles((16, 16, 64, 8, 2))


def tile(kernel: str, dtype: torch.dtype, width: int = 512) -> Tile:
    """The tile of a kernel (a key of the table, the gradients by what they differentiate) at a width."""
    architecture = launch.architecture()
    if architecture == launch.INTERPRETER:
        return INTERPRETED
    column = _COLUMN[architecture]
    tiles = _TILES[kernel][column]
    if dtype == torch.float32:
        tiles = _FLOAT32_TAIL_GRADIENT if kernel in ("attended", "weight") else _FLOAT32
    elif dtype == torch.float16 and kernel in ("query", "key"):
        tiles = _FLOAT16[column]
    return tiles[min(sum(width > bound for bound in (64, 128, 256)), len(tiles) - 1)]


def padded(width: int) -> int:
    """The power of two, at least 16, that holds `width` channels."""
    return max(16, triton.next_power_of_2(width))


def slice_width(width: int) -> int:
    """The number of channels, of `width`, that one program accumulates; a power of two."""
    return min(WIDEST_SLICE, padded(width))


def step(tile: Tile, width: int, whole: bool = False) -> int:
    """The number of channels, of `width`, that a product takes at once."""
    return padded(width) if whole else min(tile.channels, _CHUNK, padded(width))


def split(programs: int, steps: int) -> tuple[int, int]:
    """The parts of a loop of `steps`, so that with `programs` programs it fills the GPU, and the steps in each."""
    parts = max(1, min(steps, _PROGRAMS[launch.architecture()] // max(programs, 1)))
    per_part = triton.cdiv(steps, parts)
    return triton.cdiv(steps, per_part), per_part
