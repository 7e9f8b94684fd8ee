"""Resolves expressions of the synthetic scenes: which object, if exactly one, a form refers to.

The interpreter verifies every generated expression. It uses only words and coordinates, independently of
generation.py, and keeps a margin between positions that clearly fit a word and those that clearly do not, so
that an expression is never ambiguous.
"""

from __future__ import annotations

from collections.abc import Sequence

from .grammar import (
    BESIDE,
    CORNERS,
    EXTREMES,
    GENERIC_NOUNS,
    HALVES,
    MEANING,
    RANKS,
    RELATIONS,
    SIDES,
    Attribute,
    Form,
    Ordinal,
    Phrase,
    Place,
    Relation,
    other_readings,
)
from .rendering import MAX_OBJECTS, SceneObject

# Margins, as fractions of the image's side.
EXTREME_LEAD = 0.08  # "top": lead of the centre over the centres of all others
HALF_INSIDE = 0.08  # "on the left": distance of the centre beyond the midline
CORNER_INSIDE = 0.1  # "bottom right": distance of the centre beyond both midlines
CORNER_LEAD = 0.2  # and lead over all others in the sum of both coordinates
MIDDLE_INSIDE = 0.13  # "in the middle": largest distance of the centre from the image's centre
MIDDLE_OUTSIDE = 0.24  # and smallest distance of all others
RELATION_LEAD = 0.1  # "left of": distance to the left
RELATION_SLANT = 0.6  # and largest vertical offset, as a fraction of that distance
RELATION_NOT = 2.5  # clearly not "left of": vertical offset at least this multiple of the distance
BESIDE_GAP = 0.05  # "next to": largest gap between the bounding circles
BESIDE_NOT = 0.13  # clearly not "next to": smallest gap
RANK_LEAD = 0.07  # "second from the left": distance of all others along the axis

_MEMBERS = tuple(tuple(i for i in range(MAX_OBJECTS) if bits >> i & 1) for bits in range(1 << MAX_OBJECTS))


class Interpreter:
    """Resolves forms in one layout of at most `MAX_OBJECTS` objects."""

    def __init__(self, layout: Sequence[SceneObject]) -> None:
        self._layout = layout
        # Sets of objects are bit masks: bit i is object i.
        self._named: dict[str, int] = {}
        self._related: dict[tuple[str, int], tuple[int, int]] = {}

    def refer(self, form: Form) -> int | None:
        """Returns the index of the object that the form refers to.

        The rules, with the margins of this module:

        - a phrase fits the objects that have all attributes it names;
        - "top", "leftmost", ...: the centre is `EXTREME_LEAD` further in that direction than the centres of all
          other fitting objects, and none of their edges is further;
        - "left", "on the left", ...: the only fitting object with its centre in that half, at least
          `HALF_INSIDE` beyond the midline;
        - "bottom right", ...: beyond both midlines by `CORNER_INSIDE`, and `CORNER_LEAD` ahead of all other
          fitting objects in the sum of both coordinates;
        - "in the middle": within `MIDDLE_INSIDE` of the image's centre, all other fitting objects further away
          than `MIDDLE_OUTSIDE`;
        - "left of", "above", ...: by at least `RELATION_LEAD`, with a sideways offset of at most `RELATION_SLANT`
          of that distance; all other fitting objects clearly not (`RELATION_NOT`). The anchor's phrase must fit
          exactly one object;
        - "next to": a gap of at most `BESIDE_GAP`, and at least `BESIDE_NOT` for all other fitting objects;
        - "second ... from the left": counted by centres; all other fitting objects are `RANK_LEAD` away along the
          axis, and on the same side when counted by edges.

        Returns:
            None if no object fits, or if another object fits or nearly fits.
        """
        fitting = self._fitting(form.target)
        match form:
            case Attribute():
                return _only(fitting)
            case Place(place=place):
                return self._at_place(place, _MEMBERS[fitting])
            case Relation(relation=relation, anchor=phrase):
                anchor = _only(self._fitting(phrase))
                if anchor is None:
                    return None
                clear, possible = self.related_to(relation, anchor)
                found = _only(fitting & possible)
                return found if found is not None and clear >> found & 1 else None
            case Ordinal(rank=rank, side=side):
                return self._counted(RANKS[rank], SIDES[side], _MEMBERS[fitting])

    def order_sensitive(self, form: Form) -> bool:
        """Whether the same words in another order refer to another object.

        True if `refer` resolves one of `other_readings` to an object other than the form's own.
        """
        target = self.refer(form)
        others = (self.refer(reading) for reading in other_readings(form))
        return any(other is not None and other != target for other in others)

    def _fitting(self, phrase: Phrase) -> int:
        fitting = self._all_named(phrase.noun)
        for word in phrase.adjectives:
            fitting &= self._all_named(word)
        return fitting

    def _all_named(self, word: str) -> int:
        named = self._named.get(word)
        if named is None:
            attribute, value = MEANING.get(word, ("", ""))
            named = sum(
                1 << i
                for i, item in enumerate(self._layout)
                if word in GENERIC_NOUNS or getattr(item, attribute) == value
            )
            self._named[word] = named
        return named

    def related_to(self, relation: str, anchor: int) -> tuple[int, int]:
        """Bit masks of the objects for which the relation clearly holds, and of those for which it may hold."""
        sets = self._related.get((relation, anchor))
        if sets is None:
            clear = possible = 0
            for i, item in enumerate(self._layout):
                verdict = i != anchor and related(relation, item, self._layout[anchor])
                clear |= (verdict is True) << i
                possible |= (verdict is not False) << i
            sets = self._related[relation, anchor] = clear, possible
        return sets

    def _at_place(self, place: str, fitting: Sequence[int]) -> int | None:
        layout = self._layout
        if place in EXTREMES:
            return self._furthest(EXTREMES[place], fitting, EXTREME_LEAD, edges=True)
        if place in HALVES:
            x, y = HALVES[place]
            beyond = {i: x * (layout[i].x - 0.5) + y * (layout[i].y - 0.5) for i in fitting}
            inside = [i for i in fitting if beyond[i] > 0]
            return inside[0] if len(inside) == 1 and beyond[inside[0]] >= HALF_INSIDE else None
        if place in CORNERS:
            x, y = CORNERS[place]
            found = self._furthest((x, y), fitting, CORNER_LEAD)
            if found is None:
                return None
            least = min(x * (layout[found].x - 0.5), y * (layout[found].y - 0.5))
            return found if least >= CORNER_INSIDE else None
        away = {i: ((layout[i].x - 0.5) ** 2 + (layout[i].y - 0.5) ** 2) ** 0.5 for i in fitting}
        inside = [i for i in fitting if away[i] < MIDDLE_OUTSIDE]
        return inside[0] if len(inside) == 1 and away[inside[0]] <= MIDDLE_INSIDE else None

    def _furthest(
        self, direction: tuple[int, int], fitting: Sequence[int], lead: float, *, edges: bool = False
    ) -> int | None:
        if not fitting:
            return None
        along = self._along(direction, fitting)
        best = max(fitting, key=along.__getitem__)
        for i in fitting:
            if i != best and along[best] - along[i] < lead:
                return None
            if edges and along[i] + self._layout[i].reach > along[best] + self._layout[best].reach:
                return None
        return best

    def _counted(self, rank: int, direction: tuple[int, int], fitting: Sequence[int]) -> int | None:
        if len(fitting) < rank:
            return None
        along = self._along(direction, fitting)
        found = sorted(fitting, key=along.__getitem__, reverse=True)[rank - 1]
        for i in fitting:
            lead = along[i] - along[found]
            edge_lead = lead + self._layout[i].reach - self._layout[found].reach
            if i != found and (abs(lead) < RANK_LEAD or lead * edge_lead <= 0):
                return None
        return found

    def _along(self, direction: tuple[int, int], fitting: Sequence[int]) -> dict[int, float]:
        x, y = direction
        return {i: x * self._layout[i].x + y * self._layout[i].y for i in fitting}


def related(relation: str, item: SceneObject, anchor: SceneObject) -> bool | None:
    """Whether a relation clearly holds (True), clearly does not hold (False), or neither (None)."""
    dx, dy = item.x - anchor.x, item.y - anchor.y
    if relation == BESIDE:
        gap = (dx * dx + dy * dy) ** 0.5 - item.reach - anchor.reach
        return True if gap <= BESIDE_GAP else False if gap >= BESIDE_NOT else None
    x, y = RELATIONS[relation]
    lead, aside = x * dx + y * dy, abs(y * dx) + abs(x * dy)
    if lead >= RELATION_LEAD and aside <= RELATION_SLANT * lead:
        return True
    return False if aside >= RELATION_NOT * lead else None


def _only(bits: int) -> int | None:
    return bits.bit_length() - 1 if bits and not bits & (bits - 1) else None
