"""Tile sizes of the separable kernels; `python -m benchmarks.compile_report` reports the resources they use."""

import torch

from ...triton.launch import INTERPRETED, Tile, architecture, arithmetic

# Tokens whose Z falls below take the direct form; see `cmsa_fast.kernels.separable_attention.mean_softmax`.
FLOOR = {torch.float32: 2.0**-60, torch.float64: 2.0**-500}

# Architectures whose programs have less than 227 KiB of shared memory.
_SMALL = (80, 86, 89, 120)

# kernel -> arithmetic -> tile. The factors of float16 are float32, so some of its tiles are smaller.
_TILES = {
    "prepare": dict.fromkeys(("half", "tf32", "ieee"), Tile(128, 64, 64, 8, 1)),
    "ratio": dict.fromkeys(("half", "tf32", "ieee"), Tile(16, 16, 16, 4, 1)),
    "words": {
        "half": Tile(64, 64, 64, 4, 3),
        "tf32": Tile(64, 64, 32, 4, 3),
        "ieee": Tile(32, 64, 32, 4, 2),
    },
    "logits": {
        "half": Tile(128, 256, 64, 8, 3),
        "float16": Tile(128, 128, 64, 8, 3),
        "tf32": Tile(128, 128, 32, 8, 3),
        "ieee": Tile(64, 64, 32, 8, 2),
    },
    "values": {
        "half": Tile(128, 32, 256, 8, 3),
        "tf32": Tile(64, 64, 128, 8, 2),
        "ieee": Tile(64, 32, 64, 8, 2),
    },
    "gradients": {
        "half": Tile(128, 256, 64, 8, 3),
        "float16": Tile(128, 128, 64, 8, 3),
        "tf32": Tile(128, 128, 32, 8, 3),
        "ieee": Tile(64, 64, 32, 8, 2),
    },
    "weights": {
        "half": Tile(64, 64, 16, 4, 3),
        "float16": Tile(32, 64, 16, 4, 2),
        "tf32": Tile(32, 64, 16, 4, 2),
        "ieee": Tile(16, 64, 16, 4, 2),
    },
    "products": {
        "half": Tile(128, 64, 256, 8, 3),
        "tf32": Tile(128, 32, 128, 8, 3),
        "ieee": Tile(64, 32, 64, 8, 2),
    },
    "word_products": {
        "half": Tile(16, 64, 64, 4, 3),
        "tf32": Tile(16, 32, 64, 4, 3),
        "ieee": Tile(16, 32, 64, 4, 2),
    },
    # Rows are output channels and keys places. It fits the smallest architecture.
    "level_tail": {
        "half": Tile(128, 128, 64, 8, 3),
        "tf32": Tile(64, 128, 32, 8, 3),
        "ieee": Tile(64, 64, 32, 4, 2),
    },
    "direct": {
        "half": Tile(16, 32, 64, 4, 2),
        "tf32": Tile(16, 32, 32, 4, 2),
        "ieee": Tile(16, 32, 32, 4, 2),
    },
}
# What a kernel takes where shared memory is small.
_SMALL_TILES = {
    "logits": {"half": Tile(128, 128, 64, 8, 2), "tf32": Tile(128, 64, 32, 8, 2)},
    "values": {"half": Tile(64, 64, 128, 8, 2)},
    "gradients": {"half": Tile(128, 64, 64, 8, 2), "tf32": Tile(64, 64, 32, 8, 2)},
    "products": {"half": Tile(128, 64, 128, 8, 2), "tf32": Tile(64, 32, 128, 8, 2)},
}


def tile_of(kernel: str, dtype: torch.dtype) -> Tile:
    """The tile of a kernel on the current architecture."""
    on = architecture()
    if not on:
        return INTERPRETED
    kind = arithmetic(dtype)
    if on in _SMALL and kind in _SMALL_TILES.get(kernel, {}):
        return _SMALL_TILES[kernel][kind]
    if dtype == torch.float16:
        return _TILES[kernel].get("float16", _TILES[kernel][kind])
    return _TILES[kernel][kind]


def channel_block(channels: int, most: int) -> int:
    """The most channels, a power of two up to `most`, that divide the padded width."""
    while channels % most:
        most //= 2
    return most
