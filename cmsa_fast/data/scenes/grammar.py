"""The grammar of the drawn scenes: its forms, their words, and what one word means.

A form is the meaning of an expression as a small tree; `words_of` says it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from .rendering import COLOURS, SHAPES, TEXTURES

GENERIC_NOUNS = ("object", "thing", "shape")
SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
# What a word says of an object: the attribute's name and its value. Generic nouns say nothing.
MEANING: dict[str, tuple[str, str]] = {
    **{shape: ("shape", shape) for shape in SHAPES},
    **{colour: ("colour", colour) for colour in COLOURS},
    **{texture: ("texture", texture) for texture in TEXTURES},
    **{word: ("size", size) for size, words in SIZE_WORDS.items() for word in words},
}

# A direction is a pair of weights for x and y: the object furthest that way has the largest sum.
EXTREMES = {
    "top": (0, -1),
    "bottom": (0, 1),
    "highest": (0, -1),
    "lowest": (0, 1),
    "leftmost": (-1, 0),
    "rightmost": (1, 0),
}
HALVES = {
    "left": (-1, 0),
    "right": (1, 0),
    "on the left": (-1, 0),
    "on the right": (1, 0),
    "at the top": (0, -1),
    "at the bottom": (0, 1),
}
CORNERS = {
    f"{first}{vertical} {side}{last}": (x, y)
    for vertical, y in (("top", -1), ("bottom", 1))
    for side, x in (("left", -1), ("right", 1))
    for first, last in (("", ""), ("in the ", " corner"))
}
MIDDLE = "in the middle"
RELATIONS = {
    "left of": (-1, 0),
    "to the left of": (-1, 0),
    "right of": (1, 0),
    "to the right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
    "under": (0, 1),
}
BESIDE = "next to"
RANKS = {"second": 2, "third": 3, "fourth": 4}
SIDES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}

WORDS: tuple[str, ...] = tuple(
    sorted(
        {
            word
            for term in (
                "the from",
                *MEANING,
                *GENERIC_NOUNS,
                *EXTREMES,
                *HALVES,
                *CORNERS,
                MIDDLE,
                *RELATIONS,
                BESIDE,
                *RANKS,
                *SIDES,
            )
            for word in term.split()
        }
    )
)
ADJECTIVE_SORTS = ("size", "texture", "colour")  # in the order in which they are said


@dataclass(frozen=True)
class Phrase:
    """A noun with its adjectives: "small red circle"."""

    adjectives: tuple[str, ...]
    noun: str

    def words(self) -> str:
        return " ".join((*self.adjectives, self.noun))


@dataclass(frozen=True)
class Attribute:
    """An object by its own look: "small red circle"."""

    target: Phrase
    kind = "attribute"


@dataclass(frozen=True)
class Place:
    """An object by its place in the image: "top square", "ring on the left"."""

    target: Phrase
    place: str
    kind = "place"


@dataclass(frozen=True)
class Relation:
    """An object by its place relative to another one: "star left of the blue square"."""

    target: Phrase
    relation: str
    anchor: Phrase
    kind = "relation"


@dataclass(frozen=True)
class Ordinal:
    """An object by counting: "second circle from the left"."""

    target: Phrase
    rank: str
    side: str
    kind = "ordinal"


Form = Attribute | Place | Relation | Ordinal


def words_of(form: Form) -> str:
    """The form in words: lower case, single blanks, no punctuation."""
    target = form.target.words()
    match form:
        case Attribute():
            return target
        case Place(place=place):
            after = place == MIDDLE or place.split()[0] in ("on", "at", "in")
            return f"{target} {place}" if after else f"{place} {target}"
        case Relation(relation=relation, anchor=anchor):
            return f"{target} {relation} the {anchor.words()}"
        case Ordinal(rank=rank, side=side):
            return f"{rank} {target} from the {side}"


def other_readings(form: Form) -> Iterator[Form]:
    """Every other form of the grammar whose expression has the same words, each as often.

    Only a relation has any: its two nouns may change places and each adjective may go to either of
    them, as long as none gets two of a sort. The other kinds have one noun, and a bag of their
    words leaves one way to say them.
    """
    if not isinstance(form, Relation):
        return
    splits: list[tuple[tuple[str, str], ...]] = []
    for sort in ADJECTIVE_SORTS:
        first, second = (
            next((word for word in phrase.adjectives if MEANING[word][0] == sort), "")
            for phrase in (form.target, form.anchor)
        )
        if first != second:
            splits.append(((first, second), (second, first)))
        elif first:
            splits.append(((first, second),))
    nouns = (form.target.noun, form.anchor.noun)
    for target_noun, anchor_noun in (nouns, nouns[::-1]):
        for split in product(*splits):
            target = Phrase(tuple(pair[0] for pair in split if pair[0]), target_noun)
            anchor = Phrase(tuple(pair[1] for pair in split if pair[1]), anchor_noun)
            if target != form.target or anchor != form.anchor:
                yield Relation(target, form.relation, anchor)
