"""Sizes of the operations, and the cases on which correctness is checked, as plain data."""

from typing import Any

WIDTH = 512
# Tokens of the published code: 40 x 40 places times 20 words, and the keys after its 2 x 2 x 2 max-pooling.
QUERIES, KEYS = 32000, 4000

Size = dict[str, int]


def size_name(size: Size) -> str:
    return ", ".join(f"{name} {value}" for name, value in size.items())


def separable_size(places: int, words: int, batch: int, width: int = WIDTH) -> Size:
    return {"places": places, "words": words, "batch": batch, "width": width}


def joint_size(width: int, batch: int, queries: int = QUERIES, keys: int = KEYS) -> Size:
    return {"queries": queries, "keys": keys, "batch": batch, "width": width}


def tail_size(batch: int, places: int = 1600, words: int = 20, width: int = WIDTH, channels: int = WIDTH) -> Size:
    size = separable_size(places, words, batch, width)
    return {**size, "channels": channels}


def level_size(visual: int, batch: int, places: int = 1600, width: int = WIDTH, language: int = 1000) -> Size:
    size = {"places": places, "batch": batch, "width": width}
    return {**size, "visual": visual, "language": language}


def _variants(size: Size, *options: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"size": size, **one} for one in ({}, *options)]


_STEEP: tuple[dict[str, Any], ...] = tuple({"spread": by, "seeds": 10} for by in (4.0, 30.0))
_STRIDED = {"strided": True}

# operation -> lists of cases that compile to the same kernels. `correctness.draw_cases` explains a case's options.
CASES: dict[str, tuple[list[dict[str, Any]], ...]] = {
    "separable": (
        _variants(separable_size(100, 7, 3, 64), {"spread": 1.0, "seeds": 10}, *_STEEP, _STRIDED),
        [{"size": separable_size(100, 20, 5, 64), "images": 2}],
        [{"size": separable_size(*size, 2, 33)} for size in ((67, 5), (1, 4), (37, 1))],
        *([{"size": separable_size(100, 7, 2, width)}] for width in (128, 256)),
        [{"size": separable_size(65, 64, 2, 64)}],
        [{"size": separable_size(131, 20, 2, 512)}],
    ),
    "joint": (
        _variants(joint_size(64, 3, 301, 203), *_STEEP, _STRIDED),
        [{"size": joint_size(33, 2, *counts)} for counts in ((77, 131), (5, 1))],
        *([{"size": joint_size(width, 2, 301, 203)}] for width in (128, 256, 512)),
    ),
    "tail": (
        _variants(tail_size(3, 67, 7, 33, 45), _STRIDED),
        [{"size": tail_size(2, 100)}],
    ),
    "level": (
        [
            *_variants(level_size(21, 3, 67, 33, 18), _STRIDED),
            {"size": level_size(21, 5, 67, 33, 18), "images": 2},
        ],
        [{"size": level_size(512, 2, 100)}],
    ),
}
TINY_CASES = {
    "separable": ([{"size": separable_size(9, 3, 2, 8)}],),
    "joint": ([{"size": joint_size(8, 2, 9, 7)}],),
    "tail": ([{"size": tail_size(2, 5, 3, 8, 4)}],),
    "level": ([{"size": level_size(3, 2, 5, 8, 4)}],),
}


def case_name(case: dict[str, Any]) -> str:
    """The size and the options that are set."""
    rest = [f"{name} {case[name]}" for name in ("spread", "images") if name in case]
    rest += [name for name in ("strided", "full") if case.get(name)]
    return "; ".join([size_name(case["size"]), *rest])
