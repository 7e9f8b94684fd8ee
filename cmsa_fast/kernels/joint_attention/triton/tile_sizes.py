"""Tile sizes of the kernels of the joint attention and of its tail, by architecture, dtype and width.

Every tile was compiled for its architectures: it fits their shared memory, and at widths that are multiples of 16
no thread spills more than 256 bytes of registers.
"""

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

# Architectures by shared memory per program: 227 KiB, 163 KiB, 99 KiB.
_LARGE, _MIDDLE, _SMALL = (90, 100), (80,), (86, 89, 120)

_Tiles = tuple[Tile, Tile, Tile, Tile]  # for widths up to 64, 128, 256 and 512
_BOUNDS = (64, 128, 256)


def _by_architecture(large: _Tiles, middle: _Tiles, small: _Tiles) -> dict[int, _Tiles]:
    groups = ((_LARGE, large), (_MIDDLE, middle), (_SMALL, small))
    return {architecture: tiles for group, tiles in groups for architecture in group}


_FORWARD = _by_architecture(
    large=(
        Tile(rows=128, keys=64, channels=64, warps=4, stages=3),
        Tile(rows=128, keys=64, channels=128, warps=8, stages=3),
        Tile(rows=128, keys=64, channels=256, warps=8, stages=2),
        Tile(rows=64, keys=32, channels=512, warps=8, stages=2),
    ),
    middle=(
        Tile(rows=128, keys=64, channels=64, warps=8, stages=3),
        Tile(rows=128, keys=64, channels=128, warps=8, stages=3),
        Tile(rows=64, keys=32, channels=256, warps=8, stages=3),
        Tile(rows=64, keys=32, channels=512, warps=8, stages=2),
    ),
    small=(
        Tile(rows=128, keys=64, channels=64, warps=8, stages=2),
        Tile(rows=128, keys=32, channels=128, warps=8, stages=2),
        Tile(rows=64, keys=32, channels=256, warps=8, stages=2),
        Tile(rows=64, keys=64, channels=64, warps=8, stages=3),
    ),
)

_BACKWARD_DQ = _by_architecture(
    large=(
        Tile(rows=64, keys=64, channels=64, warps=4, stages=3),
        Tile(rows=128, keys=64, channels=128, warps=8, stages=3),
        Tile(rows=128, keys=32, channels=256, warps=8, stages=2),
        Tile(rows=64, keys=64, channels=64, warps=8, stages=3),
    ),
    middle=(
        Tile(rows=64, keys=64, channels=64, warps=4, stages=2),
        Tile(rows=64, keys=64, channels=128, warps=8, stages=2),
        Tile(rows=64, keys=32, channels=256, warps=8, stages=2),
        Tile(rows=64, keys=64, channels=64, warps=8, stages=3),
    ),
    small=(
        Tile(rows=64, keys=64, channels=64, warps=4, stages=2),
        Tile(rows=64, keys=64, channels=128, warps=8, stages=2),
        Tile(rows=64, keys=64, channels=64, warps=8, stages=3),
        Tile(rows=64, keys=32, channels=64, warps=8, stages=3),
    ),
)

_BACKWARD_DK = _by_architecture(
    large=(
        Tile(rows=64, keys=64, channels=64, warps=4, stages=3),
        Tile(rows=64, keys=128, channels=128, warps=8, stages=3),
        Tile(rows=64, keys=64, channels=256, warps=8, stages=2),
        Tile(rows=64, keys=64, channels=64, warps=8, stages=3),
    ),
    middle=(
        Tile(rows=64, keys=64, channels=64, warps=4, stages=2),
        Tile(rows=64, keys=64, channels=128, warps=8, stages=2),
        Tile(rows=32, keys=64, channels=256, warps=8, stages=2),
        Tile(rows=64, keys=64, channels=64, warps=8, stages=3),
    ),
    small=(
        Tile(rows=64, keys=64, channels=64, warps=4, stages=2),
        Tile(rows=64, keys=64, channels=128, warps=8, stages=2),
        Tile(rows=64, keys=64, channels=64, warps=8, stages=3),
        Tile(rows=32, keys=64, channels=64, warps=8, stages=3),
    ),
)

_BACKWARD_DV = _by_architecture(
    large=(
        Tile(rows=64, keys=64, channels=64, warps=4, stages=3),
        Tile(rows=64, keys=128, channels=128, warps=8, stages=3),
        Tile(rows=64, keys=64, channels=256, warps=8, stages=2),
        Tile(rows=32, keys=64, channels=512, warps=8, stages=2),
    ),
    middle=(
        Tile(rows=64, keys=64, channels=64, warps=4, stages=2),
        Tile(rows=64, keys=64, channels=128, warps=8, stages=2),
        Tile(rows=32, keys=64, channels=256, warps=8, stages=3),
        Tile(rows=32, keys=64, channels=512, warps=8, stages=2),
    ),
    small=(
        Tile(rows=64, keys=64, channels=64, warps=4, stages=2),
        Tile(rows=64, keys=64, channels=128, warps=8, stages=2),
        Tile(rows=32, keys=64, channels=256, warps=8, stages=2),
        Tile(rows=32, keys=64, channels=64, warps=8, stages=3),
    ),
)

# dQ and dK take float32 copies of float16 blocks in their last products, which need the space.
_BACKWARD_FLOAT16: _Tiles = (
    Tile(rows=64, keys=64, channels=64, warps=8, stages=2),
    Tile(rows=64, keys=32, channels=128, warps=8, stages=2),
    Tile(rows=64, keys=32, channels=64, warps=8, stages=2),
    Tile(rows=64, keys=32, channels=64, warps=8, stages=2),
)

_FLOAT32: _Tiles = (
    Tile(rows=32, keys=32, channels=64, warps=4, stages=2),
    Tile(rows=32, keys=32, channels=64, warps=8, stages=2),
    Tile(rows=32, keys=32, channels=64, warps=8, stages=2),
    Tile(rows=32, keys=32, channels=64, warps=8, stages=2),
)

_FLOAT64 = Tile(rows=16, keys=16, channels=16, warps=8, stages=1)

_PREPROCESS = Tile(rows=64, keys=64, channels=64, warps=4, stages=2)

_TAIL = Tile(rows=64, keys=128, channels=64, warps=8, stages=3)
_TAIL_BACKWARD_ATTENDED = Tile(rows=64, keys=64, channels=64, warps=8, stages=3)
_TAIL_BACKWARD_FLOAT32 = Tile(rows=16, keys=16, channels=64, warps=8, stages=2)
_TAIL_BACKWARD_WEIGHT = Tile(rows=32, keys=64, channels=64, warps=8, stages=3)


def forward_tile(dtype: torch.dtype, width: int, value_width: int) -> Tile:
    """The tile of the forward pass at queries of `width` and values of `value_width` channels."""
    return _tile(_FORWARD, dtype, width, value_width)


def backward_dq_tile(dtype: torch.dtype, width: int, value_width: int) -> Tile:
    """The tile of dQ."""
    return _tile(_BACKWARD_DQ, dtype, width, value_width, _BACKWARD_FLOAT16)


def backward_dk_tile(dtype: torch.dtype, width: int, value_width: int) -> Tile:
    """The tile of dK."""
    return _tile(_BACKWARD_DK, dtype, width, value_width, _BACKWARD_FLOAT16)


def backward_dv_tile(dtype: torch.dtype, width: int, value_width: int) -> Tile:
    """The tile of dV."""
    return _tile(_BACKWARD_DV, dtype, width, value_width)


def preprocess_tile(dtype: torch.dtype) -> Tile:
    """The tile of the backward preprocessing, which takes its channels from the tile of dQ."""
    return _one_tile(_PREPROCESS, dtype)


def tail_tile(dtype: torch.dtype) -> Tile:
    """The tile of the tail's forward pass: rows are places, keys are output channels."""
    return _one_tile(_TAIL, dtype)


def tail_backward_attended_tile(dtype: torch.dtype) -> Tile:
    """The tile of the gradient of the tail's attended values."""
    if dtype == torch.float32 and not launch.interpreted():
        return _TAIL_BACKWARD_FLOAT32
    return _one_tile(_TAIL_BACKWARD_ATTENDED, dtype)


def tail_backward_weight_tile(dtype: torch.dtype) -> Tile:
    """The tile of the gradient of the tail's weight."""
    if dtype == torch.float32 and not launch.interpreted():
        return _TAIL_BACKWARD_FLOAT32
    if launch.architecture() in _LARGE:
        return _one_tile(_TAIL_BACKWARD_ATTENDED, dtype)
    return _one_tile(_TAIL_BACKWARD_WEIGHT, dtype)


def padded(width: int) -> int:
    """The power of two, at least 16, that holds `width` channels."""
    return max(16, triton.next_power_of_2(width))


def slice_width(width: int) -> int:
    """The number of channels, of `width`, that one program accumulates; a power of two."""
    return min(WIDEST_SLICE, padded(width))


def fits_whole(tile: Tile, *widths: int) -> bool:
    """Whether products over all the widths take one step each, so one side stays loaded between blocks."""
    return all(padded(width) <= tile.channels for width in widths)


def step(tile: Tile, width: int, whole: bool) -> int:
    """The number of channels, of `width`, that a product takes at once."""
    return padded(width) if whole else min(tile.channels, _CHUNK, padded(width))


def splits(programs: int, steps: int) -> int:
    """The number of parts to split a loop of `steps` into, so that with `programs` programs it fills the GPU."""
    return max(1, min(steps, _PROGRAMS[launch.architecture()] // max(programs, 1)))


def _tile(
    table: dict[int, _Tiles],
    dtype: torch.dtype,
    width: int,
    value_width: int,
    float16: _Tiles | None = None,
) -> Tile:
    architecture = launch.architecture()
    if architecture == launch.INTERPRETER:
        return INTERPRETED
    if dtype == torch.float64:
        return _FLOAT64
    tiles = table[architecture]
    if dtype == torch.float32:
        tiles = _FLOAT32
    elif dtype == torch.float16 and float16 is not None:
        tiles = float16
    return tiles[sum(max(width, value_width) > bound for bound in _BOUNDS)]


def _one_tile(tile: Tile, dtype: torch.dtype) -> Tile:
    if launch.architecture() == launch.INTERPRETER:
        return INTERPRETED
    if dtype == torch.float64:
        return _FLOAT64
    return _FLOAT32[-1] if dtype == torch.float32 else tile
