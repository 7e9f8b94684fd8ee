"""Draws docs/separability.svg: python docs/tools/figure.py."""

from __future__ import annotations

from itertools import product
from math import exp
from pathlib import Path

OUTPUT = Path(__file__).parents[1] / "separability.svg"

# Logits of one query token against 6 places and 4 words.
PLACE_LOGITS = (0.3, 1.9, -0.8, 1.0, -1.5, 0.1)
WORDS = ("the", "left", "red", "cup")
WORD_LOGITS = (-1.0, 1.2, 0.2, 0.8)

CELL_WIDTH, CELL_HEIGHT, GAP = 46, 26, 12


def pairs_softmax() -> dict[tuple[int, int], float]:
    """The softmax over all (place, word) pairs, computed literally."""
    pairs = list(product(range(len(PLACE_LOGITS)), range(len(WORD_LOGITS))))
    numbers = {(p, n): exp(PLACE_LOGITS[p] + WORD_LOGITS[n]) for p, n in pairs}
    total = sum(numbers.values())
    return {pair: number / total for pair, number in numbers.items()}


def softmax(logits: tuple[float, ...]) -> list[float]:
    """The softmax of a list."""
    numbers = [exp(logit) for logit in logits]
    return [number / sum(numbers) for number in numbers]


def draw() -> str:
    """The figure as SVG."""
    rows, columns = range(len(PLACE_LOGITS)), range(len(WORD_LOGITS))
    logits = {(p, n): PLACE_LOGITS[p] + WORD_LOGITS[n] for p in rows for n in columns}
    body = [
        _text(190, 24, "Logits of one token: a sum", bold=True),
        *_grid(40, "L", "M", "+", list(PLACE_LOGITS), list(WORD_LOGITS), logits, low=-2.5, high=3.1, signed=True),
        _text(364, 196, "softmax"),
        _text(364, 214, "over all"),
        _text(364, 232, "24 pairs"),
        '<path d="M334 246 h56 m-9 -6 l9 6 l-9 6" class="line"/>',
        _text(552, 24, "Their softmax: a product", bold=True),
        *_grid(
            402,
            "softmax L",
            "softmax M",
            "×",
            softmax(PLACE_LOGITS),
            softmax(WORD_LOGITS),
            pairs_softmax(),
            low=0,
            high=0.5,
            signed=False,
        ),
        *_areas(),
    ]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 940 330" role="img" font-family="sans-serif">\n'
        "<style>text{font-size:13px;text-anchor:middle;fill:#222}.bold{font-size:15px;font-weight:600}"
        ".small{font-size:12px;fill:#555}.line{fill:none;stroke:#555;stroke-width:1.5}.light{fill:#fff}</style>\n"
        '<rect width="940" height="330" rx="6" fill="#fff"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _grid(
    left: float,
    place_title: str,
    word_title: str,
    sign: str,
    places: list[float],
    words: list[float],
    cells: dict[tuple[int, int], float],
    *,
    low: float,
    high: float,
    signed: bool,
) -> list[str]:
    """A table of pairs with its factor over places at the left and its factor over words above."""
    top = 84
    x0, y0 = left + CELL_WIDTH + GAP + 34, top + CELL_HEIGHT + GAP
    parts = [
        _text(left + 34 + CELL_WIDTH / 2, y0 + 6 * CELL_HEIGHT + 20, place_title, small=True),
        _text(x0 + 2 * CELL_WIDTH, y0 + 6 * CELL_HEIGHT + 20, f"{place_title} {sign} {word_title}", small=True),
        _text(left + 34 + CELL_WIDTH / 2, top + CELL_HEIGHT / 2 + 5, word_title, small=True),
        _text(left + 16, y0 + 3 * CELL_HEIGHT + 4, "place p′", small=True, turned=True),
    ]
    for number, word in enumerate(WORDS):
        parts.append(_text(x0 + (number + 0.5) * CELL_WIDTH, top - 10, word, small=True))
    parts.append(_text(x0 + 2 * CELL_WIDTH, top - 28, "word n′", small=True))
    for n, value in enumerate(words):
        parts += _cell(x0 + n * CELL_WIDTH, top, value, low, high, signed)
    for p, value in enumerate(places):
        parts += _cell(left + 34, y0 + p * CELL_HEIGHT, value, low, high, signed)
    for (p, n), value in cells.items():
        parts += _cell(x0 + n * CELL_WIDTH, y0 + p * CELL_HEIGHT, value, low, high, signed)
    return parts


def _areas() -> list[str]:
    """The attention arrays at 1600 places and 20 words, to scale."""
    side = 170  # of the 32 000 x 32 000 array; that of 1600 x 1600 is a twentieth
    small = side / 20
    x, y = 744, 62
    return [
        _text(x + side / 2, 24, "Weights, to scale", bold=True),
        f'<rect x="{x}" y="{y}" width="{side}" height="{side}" fill="#c9d7ea"/>',
        _text(x + side / 2, y + 70, "all pairs of tokens"),
        _text(x + side / 2, y + 92, "32 000 × 32 000"),
        f'<rect x="{x}" y="{y + side + 20}" width="{small:g}" height="{small:g}" fill="#08306b"/>',
        _text(x + 100, y + side + 30, "mean over the words:"),
        _text(x + 100, y + side + 50, "1600 × 1600"),
    ]


def _cell(x: float, y: float, value: float, low: float, high: float, signed: bool) -> list[str]:
    share = min(max((value - low) / (high - low), 0), 1)
    red, green, blue = (round(247 + share * (dark - 247)) for dark in (8, 48, 107))
    label = f"{value:+.1f}".replace("-", "−") if signed else f"{value:.2f}"
    light = ' class="light"' if share > 0.5 else ""
    return [
        f'<rect x="{x:g}" y="{y:g}" width="{CELL_WIDTH - 2}" height="{CELL_HEIGHT - 2}" '
        f'fill="rgb({red},{green},{blue})"/>',
        f'<text x="{x + CELL_WIDTH / 2 - 1:g}" y="{y + 17:g}"{light}>{label}</text>',
    ]


def _text(x: float, y: float, text: str, *, bold: bool = False, small: bool = False, turned: bool = False) -> str:
    kind = ' class="bold"' if bold else ' class="small"' if small else ""
    turn = f' transform="rotate(-90 {x:g} {y:g})"' if turned else ""
    return f'<text x="{x:g}" y="{y:g}"{kind}{turn}>{text}</text>'


if __name__ == "__main__":
    OUTPUT.write_text(draw(), encoding="utf-8")
