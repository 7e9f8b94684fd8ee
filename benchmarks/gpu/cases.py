"""Sizes, and the cases on which correctness is measured: plain data."""

from typing import Any

WIDTH = 512
# Tokens of the published code: 40 x 40 places and 20 words, and after its 2 x 2 x 2 max-pooling.
QUERIES, KEYS = 32000, 4000


def size_name(size: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in size.items())


def separable_size(places: int, words: int, batch: int, width: int = WIDTH) -> dict[str, int]:
    return {"places": places, "words": words, "batch": batch, "width": width}


def joint_size(width: int, batch: int) -> dict[str, int]:
    return {"queries": QUERIES, "keys": KEYS, "batch": batch, "width": width}


def tail_size(batch: int) -> dict[str, int]:
    return {
        "places": 1600,
        "words": 20,
        "batch": batch,
        "width": WIDTH,
        "channels": WIDTH,
    }


def level_size(
    visual: int, batch: int, places: int = 1600, width: int = WIDTH, language: int = 1000
) -> dict[str, int]:
    return {
        "places": places,
        "batch": batch,
        "width": width,
        "visual": visual,
        "language": language,
    }


# Each case: its size, then what `correctness.draw_cases` makes of the rest. One list holds what compiles alike.
_SEPARABLE_CASES: tuple[list[dict[str, Any]], ...] = (
    [
        {"size": separable_size(100, 7, 3, 64)},
        {"size": separable_size(100, 7, 3, 64), "spread": 1.0, "seeds": 10},
        {"size": separable_size(100, 7, 3, 64), "spread": 4.0, "seeds": 10},
        {"size": separable_size(100, 7, 3, 64), "spread": 30.0, "seeds": 10},
        {"size": separable_size(100, 7, 3, 64), "strided": True},
    ],
    [{"size": separable_size(100, 20, 5, 64), "pictures": 2}],
    [
        {"size": separable_size(67, 5, 2, 33)},
        {"size": separable_size(1, 4, 2, 33)},
        {"size": separable_size(37, 1, 2, 33)},
    ],
    [{"size": separable_size(100, 7, 2, 128)}],
    [{"size": separable_size(100, 7, 2, 256)}],
    [{"size": separable_size(65, 64, 2, 64)}],
    [{"size": separable_size(131, 20, 2, 512)}],
)
_JOINT_CASES: tuple[list[dict[str, Any]], ...] = (
    [
        {"size": {"queries": 301, "keys": 203, "batch": 3, "width": 64}},
        {
            "size": {"queries": 301, "keys": 203, "batch": 3, "width": 64},
            "spread": 4.0,
            "seeds": 10,
        },
        {
            "size": {"queries": 301, "keys": 203, "batch": 3, "width": 64},
            "spread": 30.0,
            "seeds": 10,
        },
        {"size": {"queries": 301, "keys": 203, "batch": 3, "width": 64}, "strided": True},
    ],
    [
        {"size": {"queries": 77, "keys": 131, "batch": 2, "width": 33}},
        {"size": {"queries": 5, "keys": 1, "batch": 2, "width": 33}},
    ],
    [{"size": {"queries": 301, "keys": 203, "batch": 2, "width": 128}}],
    [{"size": {"queries": 301, "keys": 203, "batch": 2, "width": 256}}],
    [{"size": {"queries": 301, "keys": 203, "batch": 2, "width": 512}}],
)
_TAIL_CASES: tuple[list[dict[str, Any]], ...] = (
    [
        {"size": {"places": 67, "words": 7, "batch": 3, "width": 33, "channels": 45}},
        {
            "size": {"places": 67, "words": 7, "batch": 3, "width": 33, "channels": 45},
            "strided": True,
        },
    ],
    [{"size": {"places": 100, "words": 20, "batch": 2, "width": 512, "channels": 512}}],
)
_LEVEL_CASES: tuple[list[dict[str, Any]], ...] = (
    [
        {"size": level_size(21, 3, 67, 33, 18)},
        {"size": level_size(21, 3, 67, 33, 18), "strided": True},
        {"size": level_size(21, 5, 67, 33, 18), "pictures": 2},
    ],
    [{"size": level_size(512, 2, 100)}],
)
CASES = {
    "separable": _SEPARABLE_CASES,
    "joint": _JOINT_CASES,
    "tail": _TAIL_CASES,
    "level": _LEVEL_CASES,
}

TINY_CASES = {
    "separable": ([{"size": separable_size(9, 3, 2, 8)}],),
    "joint": ([{"size": {"queries": 9, "keys": 7, "batch": 2, "width": 8}}],),
    "tail": ([{"size": {"places": 5, "words": 3, "batch": 2, "width": 8, "channels": 4}}],),
    "level": ([{"size": level_size(3, 2, 5, 8, 4)}],),
}


def case_name(case: dict[str, Any]) -> str:
    """The size, and what is special about it."""
    rest = [f"{name} {case[name]}" for name in ("spread", "pictures") if name in case]
    rest += [name for name in ("strided", "full") if case.get(name)]
    return "; ".join([size_name(case["size"]), *rest])
