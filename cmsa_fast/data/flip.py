"""Mirroring a sample together with its words.

Mirroring a picture alone makes data wrong: "left" and "right" are the most frequent words of RefCOCO
that say where something is, and in the mirror "left man" is the other man. Picture, mask and sentence
must turn together.
"""

from __future__ import annotations

import re
from dataclasses import replace

from .sample import Sample

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


def swap_left_right(sentence: str) -> str:
    """Exchange the English words left and right in a sentence.

    Parts of longer words count too ("leftmost", "left-most", "lefthand", "bottomright"), but not words that
    name no side ("bright", "upright", "leftover"). Capitals are kept. The rule looks at words, not at
    meaning: it also turns "right behind the car" into "left behind the car", and misspellings
    ("rigth") stay.

    Args:
        sentence: The sentence as written.

    Returns:
        The sentence about the mirrored picture; a sentence without such words comes back unchanged.

    Raises:
        TypeError: `sentence` is no string.
    """
    if not isinstance(sentence, str):
        raise TypeError(f"sentence must be a str, but it is a {type(sentence).__name__}.")
    return _DIRECTIONS.sub(_swapped, sentence)


def _swapped(match: re.Match[str]) -> str:
    word = match.group()
    if match.group(1) is None:
        return word
    opposite = _OPPOSITE[word.lower()]
    if word.isupper():
        return opposite.upper()
    return opposite.capitalize() if word[0].isupper() else opposite


def horizontal_flip(sample: Sample) -> Sample:
    """Mirror a sample left to right: picture, mask and the sentence's left and right.

    Every sample is mirrored, whatever its sentence says. Samples of one picture that go into one batch must
    be mirrored all or none, since a batch holds a picture once; `Collate` refuses a mixture.

    Args:
        sample: Any sample; it is left as it is.

    Returns:
        A new sample with mirrored copies and the same numbers.
    """
    return replace(
        sample,
        image=sample.image.flip(-1),
        mask=sample.mask.flip(-1),
        sentence=swap_left_right(sample.sentence),
    )
