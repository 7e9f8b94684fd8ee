"""Tile sizes of the separable kernels; `python -m benchmarks.compile_report` reports the resources they use."""

import torch

from ...triton.launch import INTERPRETED, Tile, arithmetic

# Rows whose Z falls below take the direct form; see `cmsa_fast.kernels.separable_attention.mean_softmax`.
FLOOR = {torch.float32: 2.0**-60, torch.float64: 2.0**-500}

_WIDTHS = (128, 256, 512)

# With more words than this their factors take the room of half an accumulator.
_FEW_WORDS = 32

# What a kernel takes with more words than that, where narrower slices are no help.
_MANY_WORDS = {("word_logits", "ieee"): Tile(16, 32, 64, 8, 2)}

# kernel -> arithmetic -> a tile for widths up to each of _WIDTHS; beyond the last, its slice is repeated.
_TILES = {
    "word_factor": {
        "half": (Tile(16, 64, 64, 4, 3),) * 3,
        "tf32": (Tile(16, 64, 32, 4, 3),) * 3,
        "ieee": (Tile(16, 64, 32, 4, 2),) * 3,
    },
    "word_logits": {
        "half": (Tile(16, 32, 64, 4, 2),) * 3,
        "tf32": (Tile(16, 32, 64, 4, 2),) * 3,
        "ieee": (Tile(16, 32, 64, 4, 2),) * 3,
    },
    # Nothing wide is accumulated: larger blocks read less.
    "separable_statistics": {
        "half": (Tile(64, 64, 64, 8, 3),) * 3,
        "tf32": (Tile(64, 32, 32, 4, 3),) * 3,
        "ieee": (Tile(32, 32, 32, 4, 2),) * 3,
    },
    "separable_rows": {
        "half": (Tile(64, 32, 64, 8, 2),) * 3,
        "tf32": (Tile(32, 32, 32, 4, 2),) * 3,
        "ieee": (Tile(32, 32, 32, 8, 2),) * 3,
    },
    # The tiled plan's kernels read the products and accumulate little.
    "tiled_weights": {
        "half": (Tile(32, 64, 64, 8, 3),) * 3,
        "tf32": (Tile(32, 64, 32, 8, 2),) * 3,
        "ieee": (Tile(16, 64, 32, 4, 2),) * 3,
    },
    "tiled_gradients": {
        "half": (Tile(32, 64, 64, 8, 2),) * 3,
        "tf32": (Tile(32, 64, 32, 8, 2),) * 3,
        "ieee": (Tile(16, 64, 32, 8, 2),) * 3,
    },
    "tiled_word_logits": {
        "half": (Tile(64, 64, 64, 8, 2),) * 3,
        "tf32": (Tile(32, 64, 32, 8, 2),) * 3,
        "ieee": (Tile(32, 32, 32, 8, 2),) * 3,
    },
    # A [rows, width] accumulator in float32 takes half the registers at width 512 with 8 warps.
    "separable_mean": {
        "half": (Tile(64, 64, 64, 8, 3), Tile(64, 64, 64, 8, 2), Tile(64, 32, 64, 8, 2)),
        "tf32": (Tile(64, 32, 32, 8, 2, 128),) * 3,
        "ieee": (Tile(32, 32, 32, 8, 2, 128),) * 3,
    },
    # Narrower chunks than elsewhere leave registers for two more products.
    "separable_query": {
        "half": (Tile(64, 32, 64, 8, 2), Tile(64, 32, 64, 8, 2), Tile(64, 32, 32, 8, 2)),
        # Gradients of logits leave the range of float16, so what they multiply is widened to float32.
        "float16": (Tile(64, 32, 32, 8, 2, 256),) * 3,
        "tf32": (Tile(64, 32, 32, 8, 2, 128),) * 3,
        "ieee": (Tile(32, 32, 32, 8, 2, 128),) * 3,
    },
    # Here keys are what a program owns and rows what it walks over.
    "separable_values": {
        "half": (Tile(64, 64, 64, 8, 2), Tile(64, 64, 64, 8, 2), Tile(64, 32, 64, 8, 2)),
        "tf32": (Tile(32, 64, 32, 8, 2, 128),) * 3,
        "ieee": (Tile(32, 32, 32, 8, 2, 128),) * 3,
    },
    "separable_keys": {
        "half": (Tile(64, 32, 64, 8, 2),) * 3,
        "float16": (Tile(64, 32, 32, 8, 2, 256),) * 3,
        "tf32": (Tile(32, 32, 32, 8, 2, 128),) * 3,
        "ieee": (Tile(32, 32, 32, 8, 2, 128),) * 3,
    },
}

# What a kernel takes instead where it walks over several expressions of an image, which costs registers.
_GROUPED = {
    "separable_query": {
        "half": (Tile(64, 32, 64, 8, 2), Tile(32, 32, 32, 8, 2), Tile(32, 32, 32, 8, 2)),
        "float16": (Tile(32, 32, 32, 8, 2, 256),) * 3,
    },
}


def separable_tile(
    kernel: str,
    width: int,
    dtype: torch.dtype,
    architecture: int,
    words: int = 0,
    *,
    grouped: bool = False,
) -> Tile:
    """The tile of a kernel at this width, on an architecture of `launch.ARCHITECTURES` or in the interpreter."""
    if not architecture:
        return INTERPRETED
    of_kernel = {**_TILES[kernel], **(_GROUPED.get(kernel, {}) if grouped else {})}
    kind = "float16" if dtype == torch.float16 and "float16" in of_kernel else arithmetic(dtype)
    tiles = of_kernel[kind]
    tile = next((tile for tile, most in zip(tiles, _WIDTHS, strict=True) if width <= most), tiles[-1])
    if words > _FEW_WORDS:
        tile = _MANY_WORDS.get((kernel, kind), tile)
        tile = tile._replace(slice=min(tile.slice, 256))
    return tile
