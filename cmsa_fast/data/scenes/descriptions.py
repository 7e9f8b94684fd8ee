"""The ways to describe the objects of one drawn scene: which attributes tell which objects apart.

A description is a set of attributes of an object, as bits: `SIZE`, `TEXTURE`, `COLOUR` and `NOUN`
(the shape's name; without it the noun is a generic one). A set of objects is kept as bits as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from .grammar import BESIDE, GENERIC_NOUNS, RELATIONS, SIZE_WORDS, Phrase
from .grounding import Interpreter
from .rendering import SceneObject, pick

SIZE, TEXTURE, COLOUR, NOUN = 1, 2, 4, 8
ADJECTIVES = SIZE | TEXTURE | COLOUR
_NAMES = ("size", "texture", "colour", "shape")
_COUNT = tuple((bits & ADJECTIVES).bit_count() for bits in range(16))
USUAL_SIZE_WORD_SHARE = 0.7  # "small", "large"; else "little", "big"
MOST_ADJECTIVES = 3  # of both phrases of an order-sensitive relation together

# The relations that differ in more than their words, each with all its words.
_SYNONYMS: dict[str, list[str]] = {BESIDE: [BESIDE]}
for _relation, _direction in RELATIONS.items():
    _same = next(word for word, direction in RELATIONS.items() if direction == _direction)
    _SYNONYMS.setdefault(_same, []).append(_relation)
DISTINCT_RELATIONS = tuple(_SYNONYMS)


@dataclass(frozen=True)
class RelationChoice:
    """A relation between two described objects, to be put into words."""

    relation: str
    target_bits: int
    anchor: int
    anchor_bits: int


class Descriptions:
    """Descriptions of the objects of one layout.

    Args:
        layout: the objects.

    Attributes:
        fits: for object i and description bits, `fits[i][bits]` are the objects that the
            description of object i fits, as bits.
    """

    def __init__(self, layout: Sequence[SceneObject]) -> None:
        self._layout = layout
        everyone = (1 << len(layout)) - 1
        sharing: dict[str, int] = defaultdict(int)  # the names of two attributes never coincide
        for i, item in enumerate(layout):
            for name in _NAMES:
                sharing[getattr(item, name)] |= 1 << i
        self._numbers = {value: number for number, value in enumerate(sharing)}
        self.fits: list[list[int]] = []
        for item in layout:
            fits = [everyone] * 16
            for bits in range(1, 16):
                lowest = bits & -bits
                value = getattr(item, _NAMES[lowest.bit_length() - 1])
                fits[bits] = fits[bits ^ lowest] & sharing[value]
            self.fits.append(fits)

    def least(self, target: int, *, generic: bool) -> list[int]:
        """Descriptions that fit the target alone, with no adjective to spare.

        With a generic noun where asked for and possible, else with the shape's name.
        """
        fits = self.fits[target]
        only = 1 << target
        for noun in (0, NOUN) if generic else (NOUN,):
            found = [
                bits
                for bits in range(noun, noun + 8)
                if fits[bits] == only
                and all(fits[bits & ~bit] != only for bit in (1, 2, 4) if bits & bit)
            ]
            if found:
                return found
        return []

    def shared(self, target: int, fewest: int, *, generic: bool) -> list[int]:
        """Descriptions with up to two adjectives that fit at least `fewest` objects.

        Those with fewer adjectives stand in the list more often.
        """
        noun = 0 if generic else NOUN
        fits = self.fits[target]
        return [
            bits
            for bits in range(noun, noun + 8)
            if fits[bits].bit_count() >= fewest
            for _ in range((4, 2, 1, 0)[_COUNT[bits]])
        ]

    def phrase(self, target: int, bits: int, random: Random) -> Phrase:
        """The description in words, with a random choice among words of one meaning."""
        item = self._layout[target]
        adjectives = []
        if bits & SIZE:
            usual, other = SIZE_WORDS[item.size]
            adjectives.append(usual if random.random() < USUAL_SIZE_WORD_SHARE else other)
        if bits & TEXTURE:
            adjectives.append(item.texture)
        if bits & COLOUR:
            adjectives.append(item.colour)
        noun = item.shape if bits & NOUN else pick(random, GENERIC_NOUNS)
        return Phrase(tuple(adjectives), noun)

    def order_sensitive_relations(
        self, interpreter: Interpreter, *, generic: bool
    ) -> list[list[RelationChoice]]:
        """For every object, the relations whose words also make one that means another object.

        All relations that identify their target are sorted by their bag of attributes; a bag with
        two targets holds expressions of which each is the other with its words in another order.

        Args:
            interpreter: of the same layout.
            generic: whether generic nouns are used too.
        """
        tried = [bits for bits in range(0 if generic else NOUN, 16) if _COUNT[bits] < 3]
        weights = [self._bags(item) for item in self._layout]
        bags: dict[tuple[str, int], list[tuple[int, int, int, int]]] = defaultdict(list)
        for anchor, anchor_fits in enumerate(self.fits):
            names = [bits for bits in tried if anchor_fits[bits] == 1 << anchor]
            if not names:
                continue
            for relation in DISTINCT_RELATIONS:
                clear, possible = interpreter.related_to(relation, anchor)
                for target, fits in enumerate(self.fits):
                    if not clear >> target & 1:
                        continue
                    for bits in tried:
                        if fits[bits] & possible != 1 << target:
                            continue
                        for name in names:
                            if _COUNT[bits] + _COUNT[name] <= MOST_ADJECTIVES:
                                bag = weights[target][bits] + weights[anchor][name]
                                bags[relation, bag].append((target, bits, anchor, name))
        found: list[list[RelationChoice]] = [[] for _ in self._layout]
        for (relation, _), members in bags.items():
            if any(member[0] != members[0][0] for member in members):
                for target, bits, anchor, name in members:
                    found[target].append(RelationChoice(relation, bits, anchor, name))
        return found

    def _bags(self, item: SceneObject) -> list[int]:
        """For each description of an object a number; sums of two say which attributes went in."""
        one = [1 << 2 * self._numbers[getattr(item, name)] for name in _NAMES]
        return [sum(one[i] for i in range(4) if bits >> i & 1) for bits in range(16)]


def synonym(relation: str, random: Random) -> str:
    """One of the ways to say a relation: "right of" or "to the right of"."""
    return pick(random, _SYNONYMS[relation])
