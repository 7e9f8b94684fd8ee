"""Generates scenes: a layout and expressions of the requested mixture, each referring to exactly one object."""

from __future__ import annotations

from collections.abc import Iterator
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
from .rendering import SceneObject, drawn, generate_layout, pick, shuffled

# Probability of each kind of expression; layouts are generated until one allows the kinds that were drawn.
MIXTURE: dict[str, float] = {"attribute": 0.39, "place": 0.28, "relation": 0.22, "ordinal": 0.11}
# Fraction of relations that are required to be order-sensitive; others may be so by chance.
ORDER_SENSITIVE_FRACTION = 0.3
# Fraction of relations whose target's phrase alone must fit more than one object.
RELATION_NEEDED_FRACTION = 0.7
# Fraction of layouts in which order-sensitive relations exclude "next to" where others exist; it is symmetric,
# so it would otherwise be most of them.
DIRECTION_FRACTION = 0.9
# Groups of place words, each with the probability that a place expression tries it.
PLACES: dict[tuple[str, ...], float] = {
    tuple(EXTREMES): 0.3,
    tuple(HALVES): 0.3,
    tuple(CORNERS): 0.3,
    (MIDDLE,): 0.1,
}
GENERIC_FRACTION = 0.2  # of phrases try a generic noun ("object") before the shape's name
EXTRA_ADJECTIVE_FRACTION = 0.5  # of attribute expressions try one adjective more than needed
ARTICLE_FRACTION = 0.25  # of expressions begin with "the"
_EVEN_TRIES = 24  # layouts for which the expressions must be spread evenly over the objects
_TRIES = 4000  # layouts in all; among thousands of scenes the worst needed a few dozen


@dataclass(frozen=True)
class SceneExpression:
    """An expression, its form, and the index of the object that it refers to."""

    text: str
    form: Form
    target: int


@dataclass(frozen=True)
class Scene:
    """A layout and its expressions."""

    layout: tuple[SceneObject, ...]
    expressions: tuple[SceneExpression, ...]


def generate_scene(random: Random, count: int) -> Scene:
    """Draws the kinds of `count` expressions, then generates layouts until one allows all of them."""
    requests = [_draw_request(random) for _ in range(count)]
    # The rarest kinds first, so that an unsuitable layout is rejected early.
    order = sorted(range(count), key=lambda slot: requests[slot].rarity)
    for attempt in range(_TRIES):
        is_even = attempt < _EVEN_TRIES
        generator = _ExpressionGenerator(random, generate_layout(random), is_even)
        expressions: dict[int, SceneExpression] = {}
        for slot in order:
            expression = generator.generate(requests[slot])
            if expression is None:
                break
            expressions[slot] = expression
        else:
            return Scene(generator.layout, tuple(expressions[slot] for slot in range(count)))
    raise RuntimeError(f"None of {_TRIES} layouts allows the {count} kinds of expressions drawn.")


@dataclass(frozen=True)
class _Request:
    """The kind of an expression to generate."""

    kind: str
    is_order_sensitive: bool
    is_relation_needed: bool

    @property
    def rarity(self) -> int:
        if self.is_order_sensitive:
            return 0
        return ("ordinal", "relation", "place", "attribute").index(self.kind) + 1


def _draw_request(random: Random) -> _Request:
    kind = drawn(random, MIXTURE)
    relation = kind == "relation"
    ordered = random.random() < ORDER_SENSITIVE_FRACTION
    needed = random.random() < RELATION_NEEDED_FRACTION
    return _Request(kind, relation and ordered, relation and needed)


class _ExpressionGenerator:
    """Generates expressions for the objects of one layout, each verified by an `Interpreter`."""

    def __init__(self, random: Random, layout: tuple[SceneObject, ...], is_even: bool) -> None:
        self.layout = layout
        self._random = random
        self._is_even = is_even
        self._interpreter = Interpreter(layout)
        self._descriptions = Descriptions(layout)
        self._ordered: list[list[RelationChoice]] | None = None
        self._uses = [0] * len(layout)
        self._texts: set[str] = set()

    def generate(self, request: _Request) -> SceneExpression | None:
        """Returns a new expression of the requested kind, or None if none is found in this layout."""
        targets = shuffled(self._random, range(len(self.layout)))
        if self._is_even:
            fewest = min(self._uses)
            targets = [target for target in targets if self._uses[target] == fewest]
        for target in targets:
            for form in self._forms(request, target):
                words = words_of(form)
                if words in self._texts or self._interpreter.refer(form) != target:
                    continue
                if request.is_order_sensitive and not self._interpreter.order_sensitive(form):
                    continue
                self._texts.add(words)
                self._uses[target] += 1
                article = "the " if self._random.random() < ARTICLE_FRACTION else ""
                return SceneExpression(article + words, form, target)
        return None

    def _forms(self, request: _Request, target: int) -> Iterator[Form]:
        """Forms that may refer to the target, to be verified."""
        match request.kind:
            case "attribute":
                return self._attributes(target)
            case "place":
                return self._places(target)
            case "relation":
                return self._relations(target, request)
            case _:
                return self._ordinals(target)

    def _attributes(self, target: int) -> Iterator[Form]:
        minimal = self._descriptions.minimal(target, generic=self._generic())
        for bits in shuffled(self._random, [bits for bits in minimal if bits & ADJECTIVES]):
            extra = [bit for bit in (1, 2, 4) if not bits & bit]
            if extra and self._random.random() < EXTRA_ADJECTIVE_FRACTION:
                bits |= pick(self._random, extra)
            yield Attribute(self._descriptions.phrase(target, bits, self._random))

    def _places(self, target: int) -> Iterator[Form]:
        terms = drawn(self._random, PLACES)
        for bits in self._some(self._descriptions.ambiguous(target, 2, generic=self._generic()), 2):
            phrase = self._descriptions.phrase(target, bits, self._random)
            for term in shuffled(self._random, terms):
                yield Place(phrase, term)

    def _relations(self, target: int, request: _Request) -> Iterator[Form]:
        minimum = 2 if request.is_relation_needed else 1
        choices = self._plain_relations
        if request.is_order_sensitive:
            choices = self._order_sensitive_relations
        for choice in choices(target, minimum):
            yield Relation(
                self._descriptions.phrase(target, choice.target_bits, self._random),
                synonym(choice.relation, self._random),
                self._descriptions.phrase(choice.anchor, choice.anchor_bits, self._random),
            )

    def _plain_relations(self, target: int, minimum: int) -> Iterator[RelationChoice]:
        phrases = self._descriptions.ambiguous(target, minimum, generic=self._generic())
        for anchor in shuffled(self._random, range(len(self.layout))):
            true = [
                relation
                for relation in DISTINCT_RELATIONS
                if self._interpreter.related_to(relation, anchor)[0] >> target & 1
            ]
            names = self._descriptions.minimal(anchor, generic=self._generic())
            if phrases and true and names:
                for _ in range(2):
                    yield RelationChoice(
                        pick(self._random, true), pick(self._random, phrases), anchor, pick(self._random, names)
                    )

    def _order_sensitive_relations(self, target: int, minimum: int) -> Iterator[RelationChoice]:
        if self._ordered is None:
            self._ordered = self._descriptions.order_sensitive_relations(
                self._interpreter, generic=self._generic()
            )
            if self._random.random() < DIRECTION_FRACTION:
                others = [[choice for choice in own if choice.relation != BESIDE] for own in self._ordered]
                self._ordered = others if any(others) else self._ordered
        for choice in shuffled(self._random, self._ordered[target]):
            if self._descriptions.fits[target][choice.target_bits].bit_count() >= minimum:
                yield choice

    def _ordinals(self, target: int) -> Iterator[Form]:
        for bits in self._some(self._descriptions.ambiguous(target, 3, generic=self._generic()), 2):
            count = self._descriptions.fits[target][bits].bit_count()
            phrase = self._descriptions.phrase(target, bits, self._random)
            for side in shuffled(self._random, tuple(SIDES)):
                for rank, number in RANKS.items():
                    # The last in a row would be called the "bottom" one, not the third from the top.
                    if number < count:
                        yield Ordinal(phrase, rank, side)

    def _generic(self) -> bool:
        return self._random.random() < GENERIC_FRACTION

    def _some(self, items: list[int], most: int) -> Iterator[int]:
        for _ in range(most if items else 0):
            yield pick(self._random, items)
