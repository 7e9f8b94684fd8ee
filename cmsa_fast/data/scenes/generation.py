"""Finds the expressions of a drawn scene: what is said, of which object, in which mixture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from .descriptions import ADJECTIVES, DISTINCT_RELATIONS, Descriptions, RelationChoice, synonym
from .grammar import (
    BESIDE,
    CORNERS,
    EXTREMES,
    HALVES,
    MIDDLE,
    RANKS,
    SIDES,
    Attribute,
    Form,
    Ordinal,
    Place,
    Relation,
    words_of,
)
from .grounding import Interpreter
from .rendering import SceneObject, draw_layout, pick, shuffled

# Probability of each kind of expression; a scene is redrawn until the kinds drawn for it can be said.
MIXTURE: dict[str, float] = {"attribute": 0.39, "place": 0.28, "relation": 0.22, "ordinal": 0.11}
# Share of relation expressions that are order-sensitive by intent; others may be so by chance.
ORDER_SENSITIVE_SHARE = 0.3
# Share of relation expressions whose target's phrase alone must fit more than one object; the rest
# are free in this.
RELATION_NEEDED_SHARE = 0.7
# Share of the layouts whose order-sensitive relations are directions where there are any; else
# "next to", being true both ways, would be most of them.
DIRECTION_SHARE = 0.9
# Sorts of place words, each with the share of place expressions that try it.
PLACES: tuple[tuple[tuple[str, ...], float], ...] = (
    (tuple(EXTREMES), 0.3),
    (tuple(HALVES), 0.3),
    (tuple(CORNERS), 0.3),
    ((MIDDLE,), 0.1),
)
GENERIC_SHARE = 0.2  # share of phrases that try a generic noun ("object") before the shape's name
SPARE_ADJECTIVE_SHARE = (
    0.5  # share of attribute expressions that try one adjective more than needed
)
ARTICLE_SHARE = 0.25  # share of expressions that begin with "the"
_SPREAD_TRIES = 24  # layouts tried before the expressions need not spread evenly over the objects
_TRIES = 4000  # layouts tried in all; the worst scene of thousands takes a few dozen


@dataclass(frozen=True)
class Told:
    """An expression, what it means, and the object it means."""

    text: str
    form: Form
    target: int


@dataclass(frozen=True)
class Scene:
    """A layout and the expressions told of it."""

    layout: tuple[SceneObject, ...]
    told: tuple[Told, ...]


def draw_scene(random: Random, count: int) -> Scene:
    """Draws the kinds of `count` expressions, then layouts until all of them can be said in one."""
    wishes = [_wish(random) for _ in range(count)]
    # What is hardest to say goes first, so that a layout that cannot do is left early.
    order = sorted(range(count), key=lambda slot: wishes[slot].rarity)
    for attempt in range(_TRIES):
        teller = _Teller(random, draw_layout(random), spread=attempt < _SPREAD_TRIES)
        told: dict[int, Told] = {}
        for slot in order:
            found = teller.tell(wishes[slot])
            if found is None:
                break
            told[slot] = found
        else:
            return Scene(teller.layout, tuple(told[slot] for slot in range(count)))
    raise RuntimeError(f"No layout in {_TRIES} could carry the {count} expressions drawn for it.")


@dataclass(frozen=True)
class _Wish:
    """The sort of expression that a scene shall have."""

    kind: str
    order_sensitive: bool
    needed: bool

    @property
    def rarity(self) -> int:
        if self.order_sensitive:
            return 0
        return ("ordinal", "relation", "place", "attribute").index(self.kind) + 1


def _wish(random: Random) -> _Wish:
    share = random.random()
    kind = "attribute"
    for kind, probability in MIXTURE.items():  # noqa: B007
        share -= probability
        if share < 0:
            break
    relation = kind == "relation"
    ordered = random.random() < ORDER_SENSITIVE_SHARE
    needed = random.random() < RELATION_NEEDED_SHARE
    return _Wish(kind, relation and ordered, relation and needed)


def _without_beside(choices: list[list[RelationChoice]]) -> list[list[RelationChoice]]:
    """The choices of every object without "next to", or all of them where that leaves none."""
    others = [[choice for choice in own if choice.relation != BESIDE] for own in choices]
    return others if any(others) else choices


class _Teller:
    """Finds expressions for the objects of one layout; an `Interpreter` judges every one of them."""

    def __init__(self, random: Random, layout: tuple[SceneObject, ...], *, spread: bool) -> None:
        self.layout = layout
        self._random = random
        self._spread = spread
        self._interpreter = Interpreter(layout)
        self._descriptions = Descriptions(layout)
        self._ordered: list[list[RelationChoice]] | None = None
        self._uses = [0] * len(layout)
        self._said: set[str] = set()

    def tell(self, wish: _Wish) -> Told | None:
        """A new expression of the sort wished for, or None where this layout has none at hand."""
        targets = shuffled(self._random, range(len(self.layout)))
        if self._spread:
            fewest = min(self._uses)
            targets = [target for target in targets if self._uses[target] == fewest]
        for target in targets:
            for form in self._forms(wish, target):
                words = words_of(form)
                if words in self._said or self._interpreter.refer(form) != target:
                    continue
                if wish.order_sensitive and not self._interpreter.order_sensitive(form):
                    continue
                self._said.add(words)
                self._uses[target] += 1
                article = "the " if self._random.random() < ARTICLE_SHARE else ""
                return Told(article + words, form, target)
        return None

    def _forms(self, wish: _Wish, target: int) -> Iterator[Form]:
        """Forms that may mean the target, to be judged."""
        match wish.kind:
            case "attribute":
                return self._attributes(target)
            case "place":
                return self._places(target)
            case "relation":
                return self._relations(target, wish)
            case _:
                return self._ordinals(target)

    def _attributes(self, target: int) -> Iterator[Form]:
        least = self._descriptions.least(target, generic=self._generic())
        for bits in shuffled(self._random, [bits for bits in least if bits & ADJECTIVES]):
            spare = [bit for bit in (1, 2, 4) if not bits & bit]
            if spare and self._random.random() < SPARE_ADJECTIVE_SHARE:
                bits |= pick(self._random, spare)
            yield Attribute(self._descriptions.phrase(target, bits, self._random))

    def _places(self, target: int) -> Iterator[Form]:
        share = self._random.random()
        terms: Sequence[str] = ()
        for terms, probability in PLACES:  # noqa: B007
            share -= probability
            if share < 0:
                break
        for bits in self._some(self._descriptions.shared(target, 2, generic=self._generic()), 2):
            phrase = self._descriptions.phrase(target, bits, self._random)
            for term in shuffled(self._random, terms):
                yield Place(phrase, term)

    def _relations(self, target: int, wish: _Wish) -> Iterator[Form]:
        fewest = 2 if wish.needed else 1
        find = self._word_orders if wish.order_sensitive else self._plain_relations
        for choice in find(target, fewest):
            yield Relation(
                self._descriptions.phrase(target, choice.target_bits, self._random),
                synonym(choice.relation, self._random),
                self._descriptions.phrase(choice.anchor, choice.anchor_bits, self._random),
            )

    def _plain_relations(self, target: int, fewest: int) -> Iterator[RelationChoice]:
        phrases = self._descriptions.shared(target, fewest, generic=self._generic())
        for anchor in shuffled(self._random, range(len(self.layout))):
            true = [
                relation
                for relation in DISTINCT_RELATIONS
                if self._interpreter.related_to(relation, anchor)[0] >> target & 1
            ]
            names = self._descriptions.least(anchor, generic=self._generic())
            if phrases and true and names:
                for _ in range(2):
                    yield RelationChoice(
                        pick(self._random, true),
                        pick(self._random, phrases),
                        anchor,
                        pick(self._random, names),
                    )

    def _word_orders(self, target: int, fewest: int) -> Iterator[RelationChoice]:
        if self._ordered is None:
            self._ordered = self._descriptions.order_sensitive_relations(
                self._interpreter, generic=self._generic()
            )
            if self._random.random() < DIRECTION_SHARE:
                self._ordered = _without_beside(self._ordered)
        for choice in shuffled(self._random, self._ordered[target]):
            if self._descriptions.fits[target][choice.target_bits].bit_count() >= fewest:
                yield choice

    def _ordinals(self, target: int) -> Iterator[Form]:
        for bits in self._some(self._descriptions.shared(target, 3, generic=self._generic()), 2):
            count = self._descriptions.fits[target][bits].bit_count()
            phrase = self._descriptions.phrase(target, bits, self._random)
            for side in shuffled(self._random, tuple(SIDES)):
                for rank, number in RANKS.items():
                    # The last in a row is the "bottom" one, not the third from the top.
                    if number < count:
                        yield Ordinal(phrase, rank, side)

    def _generic(self) -> bool:
        return self._random.random() < GENERIC_SHARE

    def _some(self, items: list[int], most: int) -> Iterator[int]:
        for _ in range(most if items else 0):
            yield pick(self._random, items)
