"""Mirroring a sample together with its words.

Mirroring an image alone makes data wrong: "left" and "right" are the most frequent words of RefCOCO
that say where something is, and in the mirror "left man" is the other man. Image, mask and expression
must turn together.
"""

from __future__ import annotations

import re
from dataclasses import replace

from .types import Sample

# The first alternative uses up words that only contain the letters, so that the second finds directions
# everywhere else: alone ("left"), in compounds ("leftmost", "left-most", "lefthand") and in the glued
# words of real data ("bottomright", "theleft", "rightside").
_DIRECTIONS = re.compile(
    r"\b(?:alright|aright|birthright|bright|cleft|copyright|downright|forthright|fright|leftover|"
    r"outright|playwright|righteous|rightful|rightly|upright|wright)"
    r"|(left|right)",
    re.IGNORECASE,
)
_OPPOSITE = {"left": "right", "right": "left"}


def swap_left_right(expression: str) -> str:
    """Exchange the English words left and right in an expression.

    Parts of longer words count too ("leftmost", "left-most", "lefthand", "bottomright"), but not words that
    name no side ("bright", "upright", "leftover"). Capitals are kept. The rule looks at words, not at
    meaning: it also turns "right behind the car" into "left behind the car", and misspellings
    ("rigth") stay.

    Args:
        expression: The expression as written.

    Returns:
        The expression about the mirrored image; an expression without such words comes back unchanged.

    Raises:
        TypeError: `expression` is no string.
    """
    if not isinstance(expression, str):
        raise TypeError(f"expression must be a str, but it is a {type(expression).__name__}.")
    return _DIRECTIONS.sub(_swapped, expression)


def _swapped(match: re.Match[str]) -> str:
    word = match.group()
    if match.group(1) is None:
        return word
    opposite = _OPPOSITE[word.lower()]
    if word.isupper():
        return opposite.upper()
    return opposite.capitalize() if word[0].isupper() else opposite


def horizontal_flip(sample: Sample) -> Sample:
    """Mirror a sample left to right: image, mask and the expression's left and right.

    Every sample is mirrored, whatever its expression says. Samples of one image that go into one batch must
    be mirrored all or none, since a batch holds an image once; `Collate` refuses a mixture.

    Args:
        sample: Any sample; it is left as it is.

    Returns:
        A new sample with mirrored copies and the same numbers.
    """
    return replace(
        sample,
        image=sample.image.flip(-1),
        mask=sample.mask.flip(-1),
        expression=swap_left_right(sample.expression),
    )
