"""Sizes of the operations, and the cases on which correctness is checked, as plain data.

Besides its dimensions a size may have "masked" (1: some words or keys are padded), "images" (the number of images
that the expressions of the batch share equally) and "logits" (the standard deviation of the logits).
"""

from typing import Any

WIDTH = 512
# Tokens of the published code: 40 x 40 places times 20 words, and the keys after its 2 x 2 x 2 max-pooling.
QUERIES, KEYS = 32000, 4000

Size = dict[str, int]


def size_name(size: Size) -> str:
    return ", ".join(f"{name} {value}" for name, value in size.items())


def separable_size(places: int, words: int, batch: int, width: int = WIDTH, **options: int) -> Size:
    return {"places": places, "words": words, "batch": batch, "width": width, **options}


def joint_size(width: int, batch: int, queries: int = QUERIES, keys: int = KEYS, **options: int) -> Size:
    return {"queries": queries, "keys": keys, "batch": batch, "width": width, **options}


def tail_size(batch: int, places: int = 1600, words: int = 20, width: int = WIDTH, channels: int = WIDTH) -> Size:
    return separable_size(places, words, batch, width, channels=channels)


def projection_size(
    visual: int, batch: int, places: int = 1600, width: int = WIDTH, language: int = 1000, **options: int
) -> Size:
    size = {"places": places, "batch": batch, "width": width}
    return {**size, "visual": visual, "language": language, **options}


def level_size(
    visual: int, batch: int, places: int = 1600, words: int = 20, width: int = WIDTH, language: int = 1000
) -> Size:
    """`places` is the square of a whole number."""
    return separable_size(places, words, batch, width, visual=visual, language=language)


def model_size(batch: int, pixels: int = 320, words: int = 20, layers: int = 101) -> Size:
    """The width is that of the attention; `layers` those of the ResNet."""
    return {"pixels": pixels, "words": words, "batch": batch, "width": WIDTH, "layers": layers}


def _with(size: Size, *options: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"size": size, **one} for one in ({}, *options)]


_STEEP: tuple[dict[str, Any], ...] = tuple({"logits": logits, "seeds": 10} for logits in (16, 900))
_STRIDED = {"strided": True}

# operation -> lists of cases that compile to the same kernels. `correctness.draw_cases` explains a case's options.
CASES: dict[str, tuple[list[dict[str, Any]], ...]] = {
    "separable": (
        _with(separable_size(100, 7, 3, 64), {"logits": 1, "seeds": 10}, *_STEEP, _STRIDED),
        [{"size": separable_size(100, 20, 5, 64, images=2)}],
        [{"size": separable_size(*size, 2, 33)} for size in ((67, 5), (1, 4), (37, 1))],
        *([{"size": separable_size(100, 7, 2, width)}] for width in (128, 256)),
        [{"size": separable_size(65, 64, 2, 64)}],
        [{"size": separable_size(131, 20, 2, 512)}],
    ),
    "joint": (
        _with(joint_size(64, 3, 301, 203), *_STEEP, _STRIDED),
        [{"size": joint_size(33, 2, *counts)} for counts in ((77, 131), (5, 1))],
        *([{"size": joint_size(width, 2, 301, 203)}] for width in (128, 256, 512)),
    ),
    "tail": (
        _with(tail_size(3, 67, 7, 33, 45), _STRIDED),
        [{"size": tail_size(2, 100)}],
    ),
    "projection": (
        [
            *_with(projection_size(21, 3, 67, 33, 18), _STRIDED),
            {"size": projection_size(21, 5, 67, 33, 18, images=2)},
        ],
        [{"size": projection_size(512, 2, 100)}],
    ),
    "level": (
        [{"size": level_size(21, 3, 49, 7, 33, 18)}],
        [{"size": level_size(512, 2, 100, 7)}],
    ),
}
TINY_CASES = {
    "separable": ([{"size": separable_size(9, 3, 2, 8)}],),
    "joint": ([{"size": joint_size(8, 2, 9, 7)}],),
    "tail": ([{"size": tail_size(2, 5, 3, 8, 4)}],),
    "projection": ([{"size": projection_size(3, 2, 5, 8, 4)}],),
    "level": ([{"size": level_size(3, 2, 4, 3, 8, 4)}],),
}
FULL_CASES = {
    "separable": ([{"size": separable_size(1600, 20, 1), "full": True}],),
    "joint": ([{"size": joint_size(WIDTH, 1), "full": True}],),
    "tail": ([{"size": tail_size(1), "full": True}],),
    "projection": ([{"size": projection_size(2048, 2), "full": True}],),
}


def case_name(case: dict[str, Any]) -> str:
    """The size and the options that are set."""
    rest = [f"logits {case['logits']}"] if "logits" in case else []
    rest += [name for name in ("strided", "full") if case.get(name)]
    return "; ".join([size_name(case["size"]), *rest])
