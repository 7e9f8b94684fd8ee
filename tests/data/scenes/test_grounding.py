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
    r"(.+) (on the (?:left|right)|at the (?:top|bottom)|in the middle"
    r"|in the (?:top|bottom) (?:left|right) corner)"
)
_BEFORE = re.compile(r"((?:top|bottom) (?:left|right)|\w+) (.+)")
_EXTREMES = ("top", "bottom", "highest", "lowest", "leftmost", "rightmost", "left", "right")
_ADJECTIVES = [("small", "little", "large", "big"), TEXTURES, tuple(COLOURS)]


def read_phrase(text: str) -> Phrase | None:
    *adjectives, noun = text.split()
    if noun not in (*SHAPES, "object", "thing", "shape"):
        return None
    positions = []
    for word in adjectives:
        position = next((number for number, words in enumerate(_ADJECTIVES) if word in words), None)
        if position is None:
            return None
        positions.append(position)
    return Phrase(tuple(adjectives), noun) if positions == sorted(set(positions)) else None


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
    if match := _AFTER.fullmatch(text):
        target = read_phrase(match[1])
        return Place(target, match[2]) if target else None
    if match := _BEFORE.fullmatch(text):
        target = read_phrase(match[2])
        known = match[1] in _EXTREMES or " " in match[1]
        return Place(target, match[1]) if target and known else None
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
                return [
                    i for i, d in offsets.items() if away @ d > 0 and away @ d > abs(away[::-1] @ d)
                ]

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
            form = read(sample.expression)
            assert form == dataset.form(index), sample.expression
            assert form is not None
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
        meant = set()
        for order in set(itertools.permutations(words)):
            reading = read(" ".join(order))
            if reading is not None:
                meant.add(interpreter.refer(reading))
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


def thing(
    words: str, x: float, y: float, *, radius: float | None = None, texture: str = "plain"
) -> SceneObject:
    """An object from, say, "small red star"."""
    size, colour, shape = words.split()
    return SceneObject(
        shape, colour, size, texture, x, y, radius or SIZES[size][0], 0.0, (0.0, 0.0, 0.0)
    )


def refer(text: str, *layout: SceneObject) -> int | None:
    form = read(text)
    assert form is not None, text
    return Interpreter(layout).refer(form)


class TestMargins:
    @pytest.mark.parametrize(("lead", "found"), [(0.079, None), (0.081, 0)])
    @pytest.mark.parametrize("words", ["top", "highest"])
    def test_top(self, words: str, lead: float, found: int | None) -> None:
        first, second = thing("small red star", 0.2, 0.3), thing("small blue star", 0.8, 0.3 + lead)
        other = thing("small blue circle", 0.5, 0.1)
        assert refer(f"{words} star", first, second, other) == found
        assert refer(f"{words} object", first, second, other) == 2

    def test_extreme_is_ambiguous_if_another_edge_is_further(self) -> None:
        small, large = thing("small red circle", 0.3, 0.3), thing("large red circle", 0.7, 0.39)
        assert refer("lowest circle", small, large) == 1
        assert refer("top circle", small, thing("small red circle", 0.7, 0.39)) == 0
        assert (
            refer("top circle", small, thing("large red circle", 0.7, 0.39, radius=0.194)) is None
        )

    @pytest.mark.parametrize("place", ["left {}", "{} on the left"])
    def test_half(self, place: str) -> None:
        text = place.format("circle")
        left, right = thing("small red circle", 0.41, 0.3), thing("small red circle", 0.51, 0.6)
        assert refer(text, left, right) == 0
        assert refer(text, thing("small red circle", 0.43, 0.3), right) is None
        assert (
            refer(text, thing("small red circle", 0.1, 0.3), thing("small red circle", 0.49, 0.6))
            is None
        )
        assert refer(text, right) is None

    @pytest.mark.parametrize("place", ["bottom right {}", "{} in the bottom right corner"])
    def test_corner(self, place: str) -> None:
        text = place.format("circle")
        corner = thing("small red circle", 0.8, 0.8)
        assert refer(text, corner, thing("small red circle", 0.8, 0.59)) == 0
        assert refer(text, corner, thing("small red circle", 0.8, 0.61)) is None
        assert (
            refer(text, thing("small red circle", 0.59, 0.9), thing("small red circle", 0.2, 0.2))
            is None
        )

    def test_middle(self) -> None:
        middle, away = thing("small red circle", 0.5, 0.38), thing("small red circle", 0.5, 0.75)
        assert refer("circle in the middle", middle, away) == 0
        assert refer("circle in the middle", middle, thing("small red circle", 0.5, 0.73)) is None
        assert refer("circle in the middle", thing("small red circle", 0.5, 0.36), away) is None

    @pytest.mark.parametrize(
        ("x", "y", "found"),
        [(0.41, 0.5, None), (0.39, 0.5, 0), (0.3, 0.61, 0), (0.3, 0.63, None), (0.6, 0.5, None)],
    )
    def test_relation(self, x: float, y: float, found: int | None) -> None:
        layout = thing("small red star", x, y), thing("small blue square", 0.5, 0.5)
        assert refer("star left of the square", *layout) == found
        assert refer("star to the left of the blue thing", *layout) == found

    @pytest.mark.parametrize(
        ("x", "y", "found"),
        [
            (0.49, 0.4, 0),
            (0.47, 0.44, None),
            (0.4, 0.24, 0),
            (0.4, 0.26, None),
            (0.3, 0.3, None),
            (0.7, 0.4, 0),
        ],
    )
    def test_relation_with_a_second_candidate(self, x: float, y: float, found: int | None) -> None:
        first, anchor = thing("small red star", 0.2, 0.5), thing("small blue square", 0.5, 0.5)
        assert (
            refer("star left of the square", first, anchor, thing("small red star", x, y)) == found
        )

    def test_anchor_must_be_unique(self) -> None:
        star, blue = thing("small red star", 0.2, 0.5), thing("small blue square", 0.5, 0.5)
        red = thing("small red square", 0.8, 0.2)
        assert refer("star left of the square", star, blue, red) is None
        assert refer("star left of the blue square", star, blue, red) == 0
        assert refer("star left of the circle", star, blue, red) is None

    @pytest.mark.parametrize(("gap", "found"), [(0.04, 0), (0.06, None)])
    @pytest.mark.parametrize(("other", "clear"), [(0.12, False), (0.14, True)])
    def test_next_to(self, gap: float, found: int | None, other: float, clear: bool) -> None:
        anchor = thing("small blue circle", 0.5, 0.5)
        reach = 2 * anchor.reach
        near = thing("small red circle", 0.5 + reach + gap, 0.5)
        far = thing("small red circle", 0.5, 0.5 - reach - other)
        answer = refer("red circle next to the blue circle", near, anchor, far)
        assert answer == (found if clear else None)

    def test_counting(self) -> None:
        row = [thing("small red circle", x, 0.5) for x in (0.7, 0.1, 0.3, 0.9)]
        assert refer("second circle from the left", *row) == 2
        assert refer("third circle from the left", *row) == 0
        assert refer("second circle from the right", *row) == 0
        assert refer("second circle from the left", row[0]) is None
        assert (
            refer("second circle from the left", *row, thing("small red circle", 0.36, 0.8)) is None
        )
        assert refer("third circle from the top", *row) is None

    def test_counting_by_centres_and_edges_must_agree(self) -> None:
        first, third = thing("small red circle", 0.1, 0.2), thing("small red circle", 0.9, 0.2)
        second = thing("small red circle", 0.4, 0.2)
        near = thing("large red circle", 0.475, 0.8, radius=0.184)
        assert refer("second circle from the left", first, second, third) == 1
        assert refer("second circle from the left", first, second, third, near) is None

    def test_attributes(self) -> None:
        layout = (
            thing("small red star", 0.2, 0.2),
            thing("large red star", 0.8, 0.2, texture="striped"),
            thing("small red circle", 0.5, 0.8, texture="dotted"),
        )
        assert refer("small red star", *layout) == 0
        assert refer("little star", *layout) == 0
        assert refer("big thing", *layout) == 1
        assert refer("striped object", *layout) == 1
        assert refer("dotted red circle", *layout) == 2
        assert refer("red star", *layout) is None
        assert refer("blue star", *layout) is None


class TestOrder:
    def sensitive(self, text: str, *layout: SceneObject) -> bool:
        form = read(text)
        assert form is not None
        assert Interpreter(layout).refer(form) is not None
        return Interpreter(layout).order_sensitive(form)

    def test_exchanged_nouns(self) -> None:
        row = (
            thing("small red square", 0.2, 0.5),
            thing("small blue star", 0.5, 0.5),
            thing("small blue square", 0.8, 0.5),
        )
        assert self.sensitive("star left of the blue square", *row)
        # Without the square on the left there is no "square left of the blue star".
        assert not self.sensitive("star left of the blue square", *row[1:])

    def test_exchanged_adjectives(self) -> None:
        layout = (
            thing("small red star", 0.2, 0.2),
            thing("small blue circle", 0.5, 0.2),
            thing("small blue star", 0.2, 0.8),
            thing("small red circle", 0.5, 0.8),
        )
        assert self.sensitive("red star left of the blue circle", *layout)

    def test_next_to_is_symmetric(self) -> None:
        layout = thing("small red star", 0.4, 0.5), thing("small red circle", 0.63, 0.5)
        assert self.sensitive("star next to the circle", *layout)
        assert not self.sensitive("star left of the circle", *layout), (
            "the circle is not left of the star"
        )

    def test_other_readings_have_the_same_words(self) -> None:
        form = read("small red star left of the large circle")
        assert form is not None
        readings = [words_of(reading) for reading in other_readings(form)]
        words = sorted(words_of(form).split())
        assert all(sorted(reading.split()) == words for reading in readings)
        assert len(set(readings)) == len(readings) == 7
        assert words_of(form) not in readings
        assert "large circle left of the small red star" in readings
        assert "large red star left of the small circle" in readings
