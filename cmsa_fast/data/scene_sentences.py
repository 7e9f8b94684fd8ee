"""The grammar of the drawn scenes: forms, their words, and what they mean in a layout.

A form is the meaning of a sentence as a small tree; `words_of` says it, `refer` finds the one
object it means. `refer` knows words and coordinates only, nothing of how a sentence was come by,
and answers None as soon as a second object
could be meant: all place words have a margin between what is clearly so and what is clearly not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from cmsa_fast.data.scene_drawing import COLOURS, SHAPES, TEXTURES, SceneObject

Layout = Sequence[SceneObject]

GENERIC_NOUNS = ("object", "thing", "shape")
SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
# What a word says of an object: the attribute's name and its value. Generic nouns say nothing.
MEANING: dict[str, tuple[str, str]] = {
    **{shape: ("shape", shape) for shape in SHAPES},
    **{colour: ("colour", colour) for colour in COLOURS},
    **{texture: ("texture", texture) for texture in TEXTURES},
    **{word: ("size", size) for size, words in SIZE_WORDS.items() for word in words},
}

# Directions point away from the centre: (x, y) weights under which the object furthest that way has
# the largest sum.
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

# Margins, as shares of the picture's side.
EXTREME_LEAD = 0.08  # "top": the centre leads every other by this, and the outer edge leads too
HALF_INSIDE, HALF_OUTSIDE = (
    0.08,
    0.0,
)  # "on the left": one this far beyond the midline, the others not beyond it
CORNER_INSIDE, CORNER_LEAD = 0.05, 0.2  # beyond both midlines; lead in the sum of both coordinates
MIDDLE_INSIDE, MIDDLE_OUTSIDE = 0.13, 0.24  # distance of the centre from the picture's centre
RELATION_LEAD = 0.1  # "left of": so far to the left ...
RELATION_SLANT = 0.6  # ... and the offset up or down at most this share of it
RELATION_NOT = (
    0.02,
    2.5,
)  # clearly not "left of": less far to the left, or so much further up or down than left
BESIDE_GAP, BESIDE_NOT = 0.06, 0.14  # "next to": gap between the circles that hold the two objects
RANK_LEAD = 0.06  # "second from the left": every other one differs by this along the axis


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
    """An object by its place in the picture: "top square", "ring on the left"."""

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


def refer(form: Form, layout: Layout) -> int | None:
    """The index of the one object that the form means in the layout.

    None where no object is meant or more than one could be: where a second object also fits, or is
    so near to fitting that an observer might take it, or where the object itself fits only just.
    Rules, with the margins of this module:

    - a phrase fits the objects that have every attribute it names;
    - "top", "leftmost", ...: the centre is `EXTREME_LEAD` further that way than that of every other
      fitting object, and
      so far as an outer edge is nearer to that side it is the same object's;
    - "left", "on the left", ...: the only fitting object in that half, `HALF_INSIDE` beyond the
      midline;
    - "bottom right", ...: beyond both midlines by `CORNER_INSIDE` and `CORNER_LEAD` ahead in the
      sum of both coordinates;
    - "in the middle": within `MIDDLE_INSIDE` of the picture's centre, all others further than
      `MIDDLE_OUTSIDE`;
    - "left of", "above", ...: by `RELATION_LEAD` and at most `RELATION_SLANT` as far off to the
      side; every other fitting
      object is clearly not (`RELATION_NOT`). The anchor's phrase alone must fit exactly one object;
    - "next to": a gap of at most `BESIDE_GAP`, all others at least `BESIDE_NOT` away;
    - "second ... from the left": counted by centres, every other one `RANK_LEAD` away from the
      object along that axis.
    """
    fitting = _fitting(form.target, layout)
    match form:
        case Attribute():
            return _only(fitting)
        case Place(place=place):
            return _at_place(place, fitting, layout)
        case Relation(relation=relation, anchor=phrase):
            anchor = _only(_fitting(phrase, layout))
            if anchor is None:
                return None
            verdicts = {
                i: related(relation, layout[i], layout[anchor]) for i in fitting if i != anchor
            }
            possible = [i for i, verdict in verdicts.items() if verdict is not False]
            found = _only(possible)
            return found if found is not None and verdicts[found] else None
        case Ordinal(rank=rank, side=side):
            return _counted(RANKS[rank], SIDES[side], fitting, layout)


def related(relation: str, item: SceneObject, anchor: SceneObject) -> bool | None:
    """Whether an object stands in a relation: clearly (True), clearly not (False) or neither."""
    dx, dy = item.x - anchor.x, item.y - anchor.y
    if relation == BESIDE:
        gap = (dx * dx + dy * dy) ** 0.5 - item.reach - anchor.reach
        return True if gap <= BESIDE_GAP else False if gap >= BESIDE_NOT else None
    x, y = RELATIONS[relation]
    lead, aside = x * dx + y * dy, abs(y * dx) + abs(x * dy)
    if lead >= RELATION_LEAD and aside <= RELATION_SLANT * lead:
        return True
    least, slant = RELATION_NOT
    return False if lead <= least or aside >= slant * lead else None


def other_readings(form: Form) -> Iterator[Form]:
    """Every other form of the grammar whose sentence has the same words, each as often.

    Only a relation has any: its two nouns may change places and each adjective may go to either of
    them, as long as none gets two of a sort. The other kinds have one noun, and a bag of their
    words leaves one way to say them.
    """
    if not isinstance(form, Relation):
        return
    adjectives = (*form.target.adjectives, *form.anchor.adjectives)
    nouns = (form.target.noun, form.anchor.noun)
    for first, second in (nouns, nouns[::-1]):
        for sides in product((0, 1), repeat=len(adjectives)):
            split: tuple[list[str], list[str]] = ([], [])
            for word, side in zip(adjectives, sides, strict=True):
                split[side].append(word)
            if any(len({MEANING[w][0] for w in part}) < len(part) for part in split):
                continue
            target, anchor = (tuple(sorted(part, key=_adjective_order)) for part in split)
            reading = Relation(Phrase(target, first), form.relation, Phrase(anchor, second))
            if reading != form:
                yield reading


def order_sensitive(form: Form, layout: Layout) -> bool:
    """Whether the same words in another order mean another object of the layout.

    True where one of `other_readings` means exactly one object by `refer`, and not the one that the
    form means.
    """
    meant = refer(form, layout)
    return any(
        found is not None and found != meant
        for found in (refer(reading, layout) for reading in other_readings(form))
    )


def _adjective_order(word: str) -> int:
    return ("size", "texture", "colour").index(MEANING[word][0])


def _fitting(phrase: Phrase, layout: Layout) -> list[int]:
    words = (*phrase.adjectives, phrase.noun)
    wanted = [MEANING[word] for word in words if word not in GENERIC_NOUNS]
    return [
        i
        for i, item in enumerate(layout)
        if all(getattr(item, attribute) == value for attribute, value in wanted)
    ]


def _only(indices: Sequence[int]) -> int | None:
    return indices[0] if len(indices) == 1 else None


def _at_place(place: str, fitting: list[int], layout: Layout) -> int | None:
    if place in EXTREMES:
        return _furthest(EXTREMES[place], fitting, layout, EXTREME_LEAD, edges=True)
    if place in HALVES:
        x, y = HALVES[place]
        beyond = {i: x * (layout[i].x - 0.5) + y * (layout[i].y - 0.5) for i in fitting}
        found = _only([i for i in fitting if beyond[i] > HALF_OUTSIDE])
        return found if found is not None and beyond[found] >= HALF_INSIDE else None
    if place in CORNERS:
        x, y = CORNERS[place]
        found = _furthest((x, y), fitting, layout, CORNER_LEAD)
        if found is None:
            return None
        beyond_x, beyond_y = x * (layout[found].x - 0.5), y * (layout[found].y - 0.5)
        return found if min(beyond_x, beyond_y) >= CORNER_INSIDE else None
    distance = {i: ((layout[i].x - 0.5) ** 2 + (layout[i].y - 0.5) ** 2) ** 0.5 for i in fitting}
    found = _only([i for i in fitting if distance[i] < MIDDLE_OUTSIDE])
    return found if found is not None and distance[found] <= MIDDLE_INSIDE else None


def _furthest(
    direction: tuple[int, int],
    fitting: list[int],
    layout: Layout,
    lead: float,
    *,
    edges: bool = False,
) -> int | None:
    if not fitting:
        return None
    x, y = direction
    along = {i: x * layout[i].x + y * layout[i].y for i in fitting}
    best = max(fitting, key=along.__getitem__)
    for i in fitting:
        if i == best:
            continue
        if along[best] - along[i] < lead:
            return None
        if edges and along[i] + layout[i].reach > along[best] + layout[best].reach:
            return None
    return best


def _counted(
    rank: int, direction: tuple[int, int], fitting: list[int], layout: Layout
) -> int | None:
    if len(fitting) < rank:
        return None
    x, y = direction
    along = {i: x * layout[i].x + y * layout[i].y for i in fitting}
    found = sorted(fitting, key=along.__getitem__, reverse=True)[rank - 1]
    clear = all(abs(along[i] - along[found]) >= RANK_LEAD for i in fitting if i != found)
    return found if clear else None
