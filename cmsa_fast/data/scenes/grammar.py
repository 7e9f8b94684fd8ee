"""The grammar of the synthetic scenes: words, and the forms (parse trees) of expressions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from .rendering import COLOURS, SHAPES, TEXTURES

GENERIC_NOUNS = ("object", "thing", "shape")
SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
# Attribute and value that a word stands for. Generic nouns stand for none.
MEANING: dict[str, tuple[str, str]] = {
    **{shape: ("shape", shape) for shape in SHAPES},
    **{colour: ("colour", colour) for colour in COLOURS},
    **{texture: ("texture", texture) for texture in TEXTURES},
    **{word: ("size", size) for size, words in SIZE_WORDS.items() for word in words},
}

# A direction is a pair of weights of x and y; the object furthest in that direction has the largest sum.
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
ADJECTIVES = ("size", "texture", "colour")  # in the order in which they are written


@dataclass(frozen=True)
class Phrase:
    """A noun with its adjectives: "small red circle"."""

    adjectives: tuple[str, ...]
    noun: str

    def words(self) -> str:
        return " ".join((*self.adjectives, self.noun))


@dataclass(frozen=True)
class Attribute:
    """Names an object by its attributes: "small red circle"."""

    target: Phrase
    kind = "attribute"


@dataclass(frozen=True)
class Place:
    """Names an object by its position in the image: "top square", "circle on the left"."""

    target: Phrase
    place: str
    kind = "place"


@dataclass(frozen=True)
class Relation:
    """Names an object by its position relative to another one: "star left of the blue square"."""

    target: Phrase
    relation: str
    anchor: Phrase
    kind = "relation"


@dataclass(frozen=True)
class Ordinal:
    """Names an object by counting: "second circle from the left"."""

    target: Phrase
    rank: str
    side: str
    kind = "ordinal"


Form = Attribute | Place | Relation | Ordinal


def words_of(form: Form) -> str:
    """Writes a form as an expression in lower case without punctuation."""
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
    """Yields all other forms of the grammar whose expressions are permutations of the same words.

    Only relations have any: the two nouns may be exchanged and each adjective may belong to either noun, as long
    as no noun has two adjectives of one attribute. The words of the other kinds have only one valid order.
    """
    if not isinstance(form, Relation):
        return
    splits: list[tuple[tuple[str, str], ...]] = []
    for attribute in ADJECTIVES:
        first, second = (
            next((word for word in phrase.adjectives if MEANING[word][0] == attribute), "")
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
