"""Finds descriptions of the objects of a scene: sets of attributes that fit one object or several.

A description is a bit mask of the attributes `SIZE`, `TEXTURE`, `COLOUR` and `NOUN` (the shape's name; without it
the noun is a generic one). A set of objects is a bit mask as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from random import Random
from typing import NamedTuple

from .grammar import BESIDE, GENERIC_NOUNS, RELATIONS, SIZE_WORDS, Phrase
from .grounding import Interpreter
from .rendering import SceneObject, pick

SIZE, TEXTURE, COLOUR, NOUN = 1, 2, 4, 8
ADJECTIVES = SIZE | TEXTURE | COLOUR
_NAMES = ("size", "texture", "colour", "shape")
_COUNT = tuple((bits & ADJECTIVES).bit_count() for bits in range(16))
USUAL_SIZE_WORD_FRACTION = 0.7  # "small", "large"; otherwise "little", "big"
MAX_ADJECTIVES = 3  # in both phrases of an order-sensitive relation

# Relations with distinct meanings, each with all its words.
_SYNONYMS: dict[str, list[str]] = {BESIDE: [BESIDE]}
for _relation, _direction in RELATIONS.items():
    _same = next(word for word, direction in RELATIONS.items() if direction == _direction)
    _SYNONYMS.setdefault(_same, []).append(_relation)
DISTINCT_RELATIONS = tuple(_SYNONYMS)


class RelationChoice(NamedTuple):
    """A relation between two described objects."""

    relation: str
    target_bits: int
    anchor: int
    anchor_bits: int


class Descriptions:
    """Descriptions of the objects of one layout.

    `fits[i][bits]` are the objects, as a bit mask, that have the attributes `bits` of object i.
    """

    def __init__(self, layout: Sequence[SceneObject]) -> None:
        self._layout = layout
        everyone = (1 << len(layout)) - 1
        sharing: dict[str, int] = defaultdict(int)  # values of different attributes never coincide
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

    def minimal(self, target: int, *, generic: bool) -> list[int]:
        """Returns descriptions that fit only the target, without redundant adjectives.

        With `generic`, descriptions with a generic noun are preferred; otherwise they have the shape's name.
        """
        fits = self.fits[target]
        only = 1 << target
        for noun in (0, NOUN) if generic else (NOUN,):
            found = [
                bits
                for bits in range(noun, noun + 8)
                if fits[bits] == only and all(fits[bits & ~bit] != only for bit in (1, 2, 4) if bits & bit)
            ]
            if found:
                return found
        return []

    def ambiguous(self, target: int, minimum: int, *, generic: bool) -> list[int]:
        """Returns descriptions with up to two adjectives that fit at least `minimum` objects.

        Those with fewer adjectives are repeated, so that they are chosen more often.
        """
        noun = 0 if generic else NOUN
        fits = self.fits[target]
        return [
            bits
            for bits in range(noun, noun + 8)
            if fits[bits].bit_count() >= minimum
            for _ in range((4, 2, 1, 0)[_COUNT[bits]])
        ]

    def phrase(self, target: int, bits: int, random: Random) -> Phrase:
        """Writes a description as a phrase, with a random choice among synonyms."""
        item = self._layout[target]
        adjectives = []
        if bits & SIZE:
            usual, other = SIZE_WORDS[item.size]
            adjectives.append(usual if random.random() < USUAL_SIZE_WORD_FRACTION else other)
        if bits & TEXTURE:
            adjectives.append(item.texture)
        if bits & COLOUR:
            adjectives.append(item.colour)
        noun = item.shape if bits & NOUN else pick(random, GENERIC_NOUNS)
        return Phrase(tuple(adjectives), noun)

    def order_sensitive_relations(self, interpreter: Interpreter, *, generic: bool) -> list[list[RelationChoice]]:
        """Returns for every object the relations whose words, reordered, refer to another object.

        All relations that identify their target are grouped by their bag of attributes. The expressions of a
        bag with two targets are reorderings of each other. With `generic`, generic nouns are used too.
        """
        tried = [bits for bits in range(0 if generic else NOUN, 16) if _COUNT[bits] < 3]
        weights = [self._attribute_bags(item) for item in self._layout]
        bags: dict[tuple[str, int], list[tuple[int, RelationChoice]]] = defaultdict(list)
        for anchor, anchor_fits in enumerate(self.fits):
            names = [bits for bits in tried if anchor_fits[bits] == 1 << anchor]
            for relation in DISTINCT_RELATIONS if names else ():
                clear, possible = interpreter.related_to(relation, anchor)
                for target in (i for i in range(len(self.fits)) if clear >> i & 1):
                    fits = self.fits[target]
                    fitting = [bits for bits in tried if fits[bits] & possible == 1 << target]
                    for bits, name in product(fitting, names):
                        if _COUNT[bits] + _COUNT[name] <= MAX_ADJECTIVES:
                            bag = weights[target][bits] + weights[anchor][name]
                            choice = RelationChoice(relation, bits, anchor, name)
                            bags[relation, bag].append((target, choice))
        found: list[list[RelationChoice]] = [[] for _ in self._layout]
        for members in bags.values():
            if len({target for target, _ in members}) > 1:
                for target, choice in members:
                    found[target].append(choice)
        return found

    def _attribute_bags(self, item: SceneObject) -> list[int]:
        """A number for each description; the sum of two numbers identifies the bag of their attributes."""
        one = [1 << 2 * self._numbers[getattr(item, name)] for name in _NAMES]
        return [sum(one[i] for i in range(4) if bits >> i & 1) for bits in range(16)]


def synonym(relation: str, random: Random) -> str:
    """Returns a random synonym of a relation, such as "right of" or "to the right of"."""
    return pick(random, _SYNONYMS[relation])
