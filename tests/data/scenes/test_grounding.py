"""Tests of the interpreter of scene expressions, against rendered masks and hand-made layouts."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from numpy.typing import NDArray

from cmsa_fast.data.scenes.dataset import ScenesDataset
from cmsa_fast.data.scenes.grammar import (
    Attribute,
    Form,
    Ordinal,
    Phrase,
    Place,
    Relation,
    other_readings,
    words_of,
)
from cmsa_fast.data.scenes.grounding import Interpreter
from cmsa_fast.data.scenes.rendering import COLOURS, SHAPES, SIZES, TEXTURES, SceneObject, render

# An independent parser of the grammar, and an interpreter that uses the masks of a rendered scene.
_RELATION = re.compile(
    r"(.+?) (to the left of|left of|to the right of|right of|above|below|under|next to) the (.+)"
)
_ORDINAL = re.compile(r"(second|third|fourth) (.+) from the (left|right|top|bottom)")
_AFTER = re.compile(
    r"(?P<target>.+) (?P<place>on the (left|right)|at the (top|bottom)|in the middle"
    r"|in the (top|bottom) (left|right) corner)"
)
_BEFORE = re.compile(
    r"(?P<place>(top|bottom)( (left|right))?|highest|lowest|leftmost|rightmost|left|right) (?P<target>.+)"
)
_PHRASE = re.compile(
    rf"((small|little|large|big) )?(({'|'.join(TEXTURES)}) )?(({'|'.join(COLOURS)}) )?"
    rf"({'|'.join(SHAPES)}|object|thing|shape)"
)


def read_phrase(text: str) -> Phrase | None:
    *adjectives, noun = text.split()
    return Phrase(tuple(adjectives), noun) if _PHRASE.fullmatch(text) else None


def read(text: str) -> Form | None:
    """Parses an expression; None if it does not belong to the grammar."""
    text = text.removeprefix("the ")
    if match := _RELATION.fullmatch(text):
        target, anchor = read_phrase(match[1]), read_phrase(match[3])
        return Relation(target, match[2], anchor) if target and anchor else None
    if match := _ORDINAL.fullmatch(text):
        target = read_phrase(match[2])
        return Ordinal(target, match[1], match[3]) if target else None
    if phrase := read_phrase(text):
        return Attribute(phrase)
    if match := _AFTER.fullmatch(text) or _BEFORE.fullmatch(text):
        target = read_phrase(match["target"])
        return Place(target, match["place"]) if target else None
    return None


class PixelInterpreter:
    """Resolves forms in the masks of one rendered scene, without margins."""

    def __init__(self, layout: tuple[SceneObject, ...], labels: NDArray[np.uint8]) -> None:
        self.layout = layout
        self.pixels = [np.argwhere(labels == i + 1)[:, ::-1] + 0.5 for i in range(len(layout))]
        self.centres = [points.mean(0) / len(labels) for points in self.pixels]

    def fits(self, phrase: Phrase) -> list[int]:
        found = []
        for i, item in enumerate(self.layout):
            size = {"small": ("small", "little"), "large": ("large", "big")}[item.size]
            words = {*size, item.texture, item.colour, item.shape, "object", "thing", "shape"}
            if {*phrase.adjectives, phrase.noun} <= words:
                found.append(i)
        return found

    def means(self, form: Form) -> list[int]:
        fits = self.fits(form.target)
        match form:
            case Attribute():
                return fits
            case Place(place="in the middle"):
                return [min(fits, key=lambda i: float(np.hypot(*(self.centres[i] - 0.5))))]
            case Place(place=place):
                away = self.direction(place)
                return [max(fits, key=lambda i: float(away @ self.centres[i]))]
            case Ordinal(rank=rank, side=side):
                away = self.direction(side)
                row = sorted(fits, key=lambda i: -float(away @ self.centres[i]))
                return [row[("first", "second", "third", "fourth").index(rank)]]
            case Relation(relation="next to", anchor=phrase):
                (anchor,) = self.fits(phrase)
                others = [i for i in fits if i != anchor]
                return [min(others, key=lambda i: self.gap(i, anchor))]
            case Relation(relation=relation, anchor=phrase):
                (anchor,) = self.fits(phrase)
                away = self.direction(relation)
                offsets = {i: self.centres[i] - self.centres[anchor] for i in fits}
                return [i for i, d in offsets.items() if away @ d > 0 and away @ d > abs(away[::-1] @ d)]

    def gap(self, first: int, second: int) -> float:
        offsets = self.pixels[first][:, None] - self.pixels[second][None]
        return float(np.hypot(offsets[..., 0], offsets[..., 1]).min())

    def direction(self, words: str) -> NDArray[np.float64]:
        away = np.zeros(2)
        for word in words.split():
            away += {
                **dict.fromkeys(("left", "leftmost"), (-1, 0)),
                **dict.fromkeys(("right", "rightmost"), (1, 0)),
                **dict.fromkeys(("top", "highest", "above"), (0, -1)),
                **dict.fromkeys(("bottom", "lowest", "below", "under"), (0, 1)),
            }.get(word, (0, 0))
        return away


def test_expressions_are_parsed_back_and_fit_only_their_mask() -> None:
    dataset = ScenesDataset(250, seed=21, size=96)
    for scene in range(250):
        layout = dataset.layout(4 * scene)
        _, labels = render(layout, 96, np.random.default_rng(0))
        reader = PixelInterpreter(layout, labels)
        for index in range(4 * scene, 4 * scene + 4):
            sample = dataset[index]
            form = form_of(sample.expression)
            assert form == dataset.form(index), sample.expression
            assert sample.kind == form.kind
            (meant,) = reader.means(form)
            assert np.array_equal(sample.mask.numpy(), labels == meant + 1), sample.expression
            assert Interpreter(layout).refer(form) == dataset.target(index) == meant


def test_order_sensitive_agrees_with_all_permutations() -> None:
    dataset = ScenesDataset(140, seed=22)
    seen = {True: 0, False: 0}
    for index in range(len(dataset)):
        form = dataset.form(index)
        words = words_of(form).split()
        if not isinstance(form, Relation) or len(words) > 7:
            continue
        interpreter = Interpreter(dataset.layout(index))
        readings = {read(" ".join(order)) for order in set(itertools.permutations(words))}
        meant = {interpreter.refer(reading) for reading in readings if reading is not None}
        expected = bool(meant - {None, dataset.target(index)})
        assert dataset.order_sensitive(index) == expected, " ".join(words)
        seen[expected] += 1
    assert min(seen.values()) >= 8


def test_other_kinds_have_one_valid_order() -> None:
    dataset = ScenesDataset(120, seed=23)
    tried = 0
    for index in range(len(dataset)):
        form = dataset.form(index)
        words = words_of(form).split()
        if not isinstance(form, Relation) and len(words) <= 6:
            readings = {read(" ".join(order)) for order in itertools.permutations(words)}
            assert readings - {None} == {form}, words
            tried += 1
    assert tried > 200


def make_layout(text: str) -> tuple[SceneObject, ...]:
    """Objects from "size colour shape x y [radius] [texture]", separated by semicolons."""
    layout = []
    for part in text.split("; "):
        size, colour, shape, x, y, *rest = part.split()
        texture = rest.pop() if rest and rest[-1] in TEXTURES else "plain"
        radius = float(rest[0]) if rest else SIZES[size][0]
        item = (shape, colour, size, texture, float(x), float(y), radius, 0.0, (0.0, 0.0, 0.0))
        layout.append(SceneObject(*item))
    return tuple(layout)


def form_of(text: str) -> Form:
    form = read(text)
    assert form is not None
    return form


STARS = "small red star .2 .3; small blue star .8 {}; small blue circle .5 .1"
CIRCLES = "small red circle {}; small red circle {}"
RELATION = "small red star {} {}; small blue square .5 .5"
CANDIDATES = "small red star .2 .5; small blue square .5 .5; small red star {} {}"
ANCHORS = "small red star .2 .5; small blue square .5 .5; small red square .8 .2"
BESIDE = "small red circle {} .5; small blue circle .5 .5; small red circle .5 {}"
ROW = "small red circle .7 .5; small red circle .1 .5; small red circle .3 .5; small red circle .9 .5"
THREE = "small red circle .1 .2; small red circle .4 .2; small red circle .9 .2"
ATTRIBUTES = "small red star .2 .2; large red star .8 .2 striped; small red circle .5 .8 dotted"
CORNER = "bottom right circle | circle in the bottom right corner"
LEFT_OF = "star left of the square | star to the left of the blue thing"
# Expressions (alternatives separated by "|"), a layout and the object they refer to.
MARGINS: list[tuple[str, str, int | None]] = [
    # The lead of an extreme over all others, by centres and by edges.
    ("top star | highest star", STARS.format(0.379), None),
    ("top star | highest star", STARS.format(0.381), 0),
    ("top object | highest object", STARS.format(0.379), 2),
    ("lowest circle", "small red circle .3 .3; large red circle .7 .39", 1),
    ("top circle", CIRCLES.format(".3 .3", ".7 .39"), 0),
    ("top circle", "small red circle .3 .3; large red circle .7 .39 .194", None),
    # The distance to the midline, with no other object in the half.
    ("left circle | circle on the left", CIRCLES.format(".41 .3", ".51 .6"), 0),
    ("left circle | circle on the left", CIRCLES.format(".43 .3", ".51 .6"), None),
    ("left circle | circle on the left", CIRCLES.format(".1 .3", ".49 .6"), None),
    ("left circle | circle on the left", "small red circle .51 .6", None),
    # The distance to both midlines, and the lead over others.
    (CORNER, CIRCLES.format(".8 .8", ".8 .59"), 0),
    (CORNER, CIRCLES.format(".8 .8", ".8 .61"), None),
    (CORNER, CIRCLES.format(".59 .9", ".2 .2"), None),
    # The distance to the centre of the image.
    ("circle in the middle", CIRCLES.format(".5 .38", ".5 .75"), 0),
    ("circle in the middle", CIRCLES.format(".5 .38", ".5 .73"), None),
    ("circle in the middle", CIRCLES.format(".5 .36", ".5 .75"), None),
    # The distance and the slant of a relation.
    ("star left of the square", RELATION.format(0.41, 0.5), None),
    ("star left of the square", RELATION.format(0.39, 0.5), 0),
    (LEFT_OF, RELATION.format(0.3, 0.61), 0),
    (LEFT_OF, RELATION.format(0.3, 0.63), None),
    ("star left of the square", RELATION.format(0.6, 0.5), None),
    # Another candidate for the target of a relation.
    ("star left of the square", CANDIDATES.format(0.49, 0.4), 0),
    ("star left of the square", CANDIDATES.format(0.47, 0.44), None),
    ("star left of the square", CANDIDATES.format(0.4, 0.24), 0),
    ("star left of the square", CANDIDATES.format(0.4, 0.26), None),
    ("star left of the square", CANDIDATES.format(0.3, 0.3), None),
    ("star left of the square", CANDIDATES.format(0.7, 0.4), 0),
    # The anchor must be unique.
    ("star left of the square | star left of the circle", ANCHORS, None),
    ("star left of the blue square", ANCHORS, 0),
    # The gap between the bounding circles, whose radii add up to .196.
    ("red circle next to the blue circle", BESIDE.format(0.736, 0.164), 0),
    ("red circle next to the blue circle", BESIDE.format(0.756, 0.164), None),
    ("red circle next to the blue circle", BESIDE.format(0.736, 0.184), None),
    ("red circle next to the blue circle", BESIDE.format(0.756, 0.184), None),
    # The distance to all others along the axis, by centres and by edges.
    ("second circle from the left", ROW, 2),
    ("third circle from the left | second circle from the right", ROW, 0),
    ("second circle from the left", "small red circle .7 .5", None),
    ("second circle from the left", f"{ROW}; small red circle .36 .8", None),
    ("third circle from the top", ROW, None),
    ("second circle from the left", THREE, 1),
    ("second circle from the left", f"{THREE}; large red circle .475 .8 .184", None),
    ("small red star | little star", ATTRIBUTES, 0),
    ("big thing | striped object", ATTRIBUTES, 1),
    ("dotted red circle", ATTRIBUTES, 2),
    ("red star | blue star", ATTRIBUTES, None),
]


@pytest.mark.parametrize(("text", "layout", "target"), MARGINS)
def test_margins(text: str, layout: str, target: int | None) -> None:
    interpreter = Interpreter(make_layout(layout))
    for alternative in text.split(" | "):
        assert interpreter.refer(form_of(alternative)) == target, alternative


SQUARES = "small red square .2 .5; small blue star .5 .5; small blue square .8 .5"
FOUR = "small red star .2 .2; small blue circle .5 .2; small blue star .2 .8; small red circle .5 .8"
PAIR = "small red star .4 .5; small red circle .63 .5"


@pytest.mark.parametrize(
    ("text", "layout", "is_sensitive"),
    [
        ("star left of the blue square", SQUARES, True),  # "square left of the blue star"
        ("star left of the blue square", SQUARES.partition("; ")[2], False),
        ("red star left of the blue circle", FOUR, True),  # "blue star left of the red circle"
        ("star next to the circle", PAIR, True),
        ("star left of the circle", PAIR, False),
    ],
)
def test_order_sensitive(text: str, layout: str, is_sensitive: bool) -> None:
    form, interpreter = form_of(text), Interpreter(make_layout(layout))
    assert interpreter.refer(form) is not None
    assert interpreter.order_sensitive(form) == is_sensitive


def test_other_readings_have_the_same_words() -> None:
    form = form_of("small red star left of the large circle")
    readings = [words_of(reading) for reading in other_readings(form)]
    words = sorted(words_of(form).split())
    assert all(sorted(reading.split()) == words for reading in readings)
    assert len(set(readings)) == len(readings) == 7
    assert words_of(form) not in readings
    assert "large circle left of the small red star" in readings
    assert "large red star left of the small circle" in readings
