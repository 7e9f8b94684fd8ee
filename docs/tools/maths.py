"""MkDocs hook: draws the formulas of a page as SVG, so that the site needs neither scripts nor a network.

A formula is written in the subset of LaTeX that matplotlib's mathtext reads, between dollar signs, as GitHub
renders it. The extension `pymdownx.arithmatex` finds the formulas, this hook replaces them.
"""

from __future__ import annotations

import html
import re
from functools import cache
from typing import Any

import matplotlib
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser
from matplotlib.path import Path
from matplotlib.textpath import TextPath

matplotlib.rcParams["mathtext.fontset"] = "cm"

_SIZE = 100  # font size of the drawing
_EM = 91  # what 1 em of the page is in the drawing: the letters are a little smaller than those of sans-serif text
_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[]\s*(?P<latex>.*?)\s*\\[)\]]</(?P=tag)>', re.DOTALL
)
_LETTERS: dict[Any, str] = {
    Path.MOVETO: "M",
    Path.LINETO: "L",
    Path.CURVE3: "Q",
    Path.CURVE4: "C",
    Path.CLOSEPOLY: "Z",
}


def on_page_content(content: str, **_: Any) -> str:
    """Replace every formula of a page by a drawing."""
    return _FORMULA.sub(lambda match: _element(match["tag"], html.unescape(match["latex"])), content)


def _element(tag: str, latex: str) -> str:
    return f'<{tag} class="formula">{draw(" ".join(latex.split()))}</{tag}>'


@cache
def draw(latex: str) -> str:
    """A formula as an SVG element in the colour of the text around it, on its baseline.

    Raises:
        ValueError: mathtext cannot read the formula.
    """
    font = FontProperties(size=_SIZE)
    width, height, depth = MathTextParser("path").parse(f"${latex}$", dpi=72, prop=font)[:3]
    path = TextPath((0, 0), f"${latex}$", size=_SIZE)
    parts = []
    for points, code in path.iter_segments(curves=True, simplify=False):
        numbers = "" if code == Path.CLOSEPOLY else _numbers(points)
        parts.append(_LETTERS[code] + numbers)
    top = height - depth
    return (
        f'<svg role="img" aria-label="{html.escape(latex)}" viewBox="0 {-top:g} {width:g} {height:g}" '
        f'style="width:{width / _EM:.2f}em;height:{height / _EM:.2f}em;vertical-align:{-depth / _EM:.2f}em">'
        f'<path d="{"".join(parts)}" fill="currentColor"/></svg>'
    )


def _numbers(points: Any) -> str:
    """The points of a segment, with y downwards as in SVG."""
    return " ".join(f"{x:.1f} {-y:.1f}" for x, y in points.reshape(-1, 2))
