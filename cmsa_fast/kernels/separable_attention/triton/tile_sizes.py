"""Tile sizes of the separable kernels; `python -m benchmarks.compile_report` reports the resources they use."""

import torch

from ...triton.launch import INTERPRETED, Tile, architecture, arithmetic

# Tokens whose Z falls below take the direct form; see `cmsa_fast.kernels.separable_attention.mean_softmax`.
FLOOR = {torch.float32: 2.0**-60, torch.float64: 2.0**-500}

# Architectures whose programs have less than 227 KiB of shared memory.
_SMALL = (80, 86, 89, 120)

# For each kernel the tiles of "half", "tf32" and "ieee" arithmetic.
_TILES = {
    "prepare": ((128, 64, 64, 8, 1),) * 3,
    "ratio": ((16, 16, 16, 4, 1),) * 3,
    "words": ((64, 64, 64, 4, 3), (64, 64, 32, 4, 3), (32, 64, 32, 8, 2)),
    "logits": ((128, 256, 64, 8, 3), (128, 128, 32, 8, 3), (64, 64, 32, 8, 2)),
    "values": ((128, 32, 256, 8, 3), (64, 64, 128, 8, 2), (64, 32, 64, 8, 2)),
    "gradients": ((128, 256, 64, 8, 3), (128, 128, 32, 8, 3), (64, 64, 32, 8, 2)),
    "weights": ((64, 64, 16, 8, 3), (32, 64, 16, 4, 2), (16, 64, 16, 4, 2)),
    "products": ((128, 64, 256, 8, 3), (128, 32, 128, 8, 3), (64, 32, 64, 8, 2)),
    "word_products": ((16, 64, 64, 4, 3), (16, 32, 64, 4, 3), (16, 32, 64, 4, 2)),
    "direct": ((16, 32, 64, 4, 2), (16, 32, 32, 4, 2), (16, 32, 32, 4, 2)),
    "level_tail": ((256, 128, 64, 8, 3), (64, 128, 32, 8, 3), (64, 64, 32, 4, 2)),
}
# Where shared memory is small. Rows of "level_tail" are output channels, keys are places.
_SMALL_TILES = {
    "words": ((64, 64, 64, 8, 3),),
    "logits": ((128, 128, 64, 8, 2), (128, 64, 32, 8, 2)),
    "values": ((64, 64, 128, 8, 2),),
    "gradients": ((128, 64, 64, 8, 2), (64, 64, 32, 8, 2)),
    "weights": ((32, 32, 16, 4, 2), (32, 32, 16, 4, 2)),
    "products": ((128, 64, 128, 8, 2), (64, 32, 128, 8, 2)),
    "level_tail": ((128, 128, 64, 8, 3),),
}
# The factors of float16 are float32 and take more registers.
_FLOAT16_TILES = {"logits": (128, 128, 64, 8, 3), "gradients": (128, 128, 64, 8, 3), "weights": (32, 64, 16, 4, 2)}


def tile_of(kernel: str, dtype: torch.dtype) -> Tile:
    """The tile of a kernel on the current architecture."""
    on = architecture()
    if not on:
        return INTERPRETED
    column = ("half", "tf32", "ieee").index(arithmetic(dtype))
    small = _SMALL_TILES.get(kernel, ()) if on in _SMALL else ()
    if column < len(small):
        return Tile(*small[column])
    if dtype == torch.float16 and kernel in _FLOAT16_TILES:
        return Tile(*_FLOAT16_TILES[kernel])
    return Tile(*_TILES[kernel][column])


def channel_block(channels: int, most: int) -> int:
    """The most channels, a power of two up to `most`, that divide the padded width."""
    while channels % most:
        most //= 2
    return most
