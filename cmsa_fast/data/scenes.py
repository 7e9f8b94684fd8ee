"""A referring data set without files: drawn scenes, sentences true of exactly one object."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmsa_fast.data.sample import Sample
from cmsa_fast.data.scene_drawing import (
    COLOURS,
    MOST_OBJECTS,
    SHAPES,
    SceneObject,
    draw_layout,
    paint,
    pick,
    shuffled,
)
from cmsa_fast.data.scene_sentences import (
    BESIDE,
    CORNERS,
    EXTREMES,
    GENERIC_NOUNS,
    HALVES,
    MEANING,
    MIDDLE,
    RANKS,
    RELATIONS,
    SIDES,
    SIZE_WORDS,
    Attribute,
    Form,
    Ordinal,
    Phrase,
    Place,
    Relation,
    order_sensitive,
    refer,
    related,
    words_of,
)

__all__ = ["COLOURS", "MIXTURE", "SHAPES", "SPLITS", "WORDS", "ScenesDataset"]

# Probability of each kind of sentence; a scene is redrawn until the kinds drawn for it can be said.
MIXTURE: dict[str, float] = {"attribute": 0.38, "place": 0.28, "relation": 0.22, "ordinal": 0.12}
# Share of relation sentences that are order-sensitive by intent; others may be so by chance.
ORDER_SENSITIVE_SHARE = 0.4
# Share of relation sentences whose target's phrase alone must fit more than one object; the rest
# are free in this.
RELATION_NEEDED_SHARE = 0.85
GENERIC_SHARE = 0.2  # share of phrases that try a generic noun ("object") before the shape's name
SPARE_ADJECTIVE_SHARE = 0.3  # share of attribute sentences that try one adjective more than needed
ARTICLE_SHARE = 0.25  # share of sentences that begin with "the"
SPLITS: dict[str, int] = {"train": 0, "val": 1, "test": 2}
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

SMALLEST_SIZE = 64
MOST_SENTENCES = 12
_STRICT_TRIES = (
    24  # layouts tried with the sentences spread evenly over the objects before that is given up
)
_TRIES = 4000
_SHAPE, _ADJECTIVES = 8, 7  # bits of a description: size 1, texture 2, colour 4, shape 8


@dataclass(frozen=True)
class _Told:
    """A sentence, what it means, and the object it means."""

    text: str
    form: Form
    target: int


@dataclass(frozen=True)
class _Scene:
    layout: tuple[SceneObject, ...]
    told: tuple[_Told, ...]


class ScenesDataset:
    """Coloured shapes, drawn on demand, with sentences that each mean exactly one object.

    A scene has 4 to 7 objects that share shapes, colours, sizes and textures; its sentences name an
    object by its attributes ("small red circle"), its place ("top square"), a relation ("star left
    of the blue square") or by counting
    ("second circle from the left"), in the shares of `MIXTURE`. Every sentence is accepted by
    `cmsa_fast.data.scene_sentences.refer` alone, which finds the object from words and coordinates
    and leaves a margin to every other reading. Item i depends on its arguments and i, on nothing
    else; scene s holds the items s * sentences_per_scene and following. The layouts and sentences
    do not depend on `size`.

    Args:
        scenes: number of scenes, at least 1.
        seed: any non-negative integer. Different seeds and different splits give unrelated scenes.
        split: one of `SPLITS`.
        size: side of the pictures in pixels, at least 64.
        sentences_per_scene: 1 to 12 sentences a scene, all different, spread over the objects as
            evenly as can be said.

    Raises:
        TypeError: an argument is of another type.
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        scenes: int,
        *,
        seed: int = 0,
        split: str = "train",
        size: int = 128,
        sentences_per_scene: int = 4,
    ) -> None:
        _check_int("scenes", scenes, 1)
        _check_int("seed", seed, 0)
        _check_int("size", size, SMALLEST_SIZE)
        _check_int("sentences_per_scene", sentences_per_scene, 1, MOST_SENTENCES)
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}.")
        self.scenes = scenes
        self.seed = seed
        self.split = split
        self.size = size
        self.sentences_per_scene = sentences_per_scene
        self._told = _Recent(64)
        self._painted = _Recent(8)

    def __len__(self) -> int:
        """Number of sentences."""
        return self.scenes * self.sentences_per_scene

    def __getitem__(self, index: int) -> Sample:
        """The item at `index`, which counts from the end where it is negative.

        Returns:
            image uint8 [3, size, size], mask bool [size, size], the sentence, image_id = the
            scene's number, ref_id = a number of its own for every object of every scene, sent_id =
            the index, kind = a key of `MIXTURE`.

        Raises:
            TypeError: index is not an integer.
            IndexError: index is out of range.
        """
        index, number, told = self._find(index)
        image, labels = self._pixels(number)
        return Sample(
            image=image.clone(),
            mask=labels == told.target + 1,
            sentence=told.text,
            image_id=number,
            ref_id=number * MOST_OBJECTS + told.target,
            sent_id=index,
            kind=told.form.kind,
        )

    def sentences(self) -> list[str]:
        """The sentence of every item, in order; nothing is painted."""
        return [told.text for number in range(self.scenes) for told in self._plan(number).told]

    def image_ids(self) -> list[int]:
        """The scene's number of every item, in order; nothing is drawn."""
        return [number for number in range(self.scenes) for _ in range(self.sentences_per_scene)]

    def kinds(self) -> list[str]:
        """The kind of every item, in order; nothing is painted."""
        return [told.form.kind for n in range(self.scenes) for told in self._plan(n).told]

    def form(self, index: int) -> Form:
        """What the sentence at `index` means; `words_of` says it, apart from a "the" in front."""
        return self._find(index)[2].form

    def layout(self, index: int) -> tuple[SceneObject, ...]:
        """The objects of the scene of the item at `index`; its target is number `target(index)`."""
        return self._plan(self._find(index)[1]).layout

    def target(self, index: int) -> int:
        """The number, in `layout(index)`, of the object that the sentence at `index` means."""
        return self._find(index)[2].target

    def order_sensitive(self, index: int) -> bool:
        """Whether the words of the sentence at `index`, reordered, mean another object of its scene.

        A model that sees the words as a bag cannot tell the two apart.
        """
        _, number, told = self._find(index)
        return order_sensitive(told.form, self._plan(number).layout)

    def __getstate__(self) -> dict[str, Any]:
        """Pickles the arguments without the scenes kept at hand."""
        return {**self.__dict__, "_told": _Recent(64), "_painted": _Recent(8)}

    def _find(self, index: int) -> tuple[int, int, _Told]:
        try:
            position = range(len(self))[index]
        except TypeError:
            raise TypeError(f"index must be an integer, not {type(index).__name__}.") from None
        except IndexError:
            raise IndexError(f"index {index} is outside a data set of {len(self)} items.") from None
        if not isinstance(position, int):
            raise TypeError("index must be an integer, not a slice.")
        number, slot = divmod(position, self.sentences_per_scene)
        return position, number, self._plan(number).told[slot]

    def _plan(self, number: int) -> _Scene:
        scene = self._told.get(number)
        if scene is None:
            scene = _draw_scene(Random(self._entropy(number, 0)), self.sentences_per_scene)
            self._told.put(number, scene)
        return scene

    def _pixels(self, number: int) -> tuple[Tensor, Tensor]:
        pixels = self._painted.get(number)
        if pixels is None:
            generator = np.random.Generator(np.random.PCG64(self._entropy(number, 1)))
            image, labels = paint(self._plan(number).layout, self.size, generator)
            planes = np.ascontiguousarray(image.transpose(2, 0, 1))
            pixels = torch.from_numpy(planes), torch.from_numpy(labels)
            self._painted.put(number, pixels)
        return pixels

    def _entropy(self, number: int, purpose: int) -> int:
        key = (SPLITS[self.split], number, purpose)
        state = np.random.SeedSequence(self.seed, spawn_key=key).generate_state(4)
        return int.from_bytes(state.astype("<u4").tobytes(), "little")


class _Recent:
    """The last few values put in, by number."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[int, Any] = OrderedDict()

    def get(self, number: int) -> Any:
        if number not in self._kept:
            return None
        self._kept.move_to_end(number)
        return self._kept[number]

    def put(self, number: int, value: Any) -> None:
        self._kept[number] = value
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)


def _check_int(name: str, value: object, least: int, most: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, not {value!r}.")
    if value < least or (most is not None and value > most):
        span = f"at least {least}" if most is None else f"between {least} and {most}"
        raise ValueError(f"{name} must be {span}, not {value}.")


def _draw_scene(random: Random, count: int) -> _Scene:
    """Draws the kinds of `count` sentences, then layouts until all of them can be said in one."""
    wishes = [_wish(random) for _ in range(count)]
    # What is hardest to say goes first, so that a layout that cannot do is left early.
    order = sorted(range(count), key=lambda slot: wishes[slot].rarity)
    for attempt in range(_TRIES):
        teller = _Teller(random, draw_layout(random), spread=attempt < _STRICT_TRIES)
        told: dict[int, _Told] = {}
        for slot in order:
            found = teller.tell(wishes[slot])
            if found is None:
                break
            told[slot] = found
        else:
            return _Scene(teller.layout, tuple(told[slot] for slot in range(count)))
    raise RuntimeError(f"No layout in {_TRIES} could carry the {count} sentences drawn for it.")


@dataclass(frozen=True)
class _Wish:
    """The sort of sentence that a scene shall have."""

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


class _Teller:
    """Finds sentences for the objects of one layout; `refer` judges every one of them."""

    def __init__(self, random: Random, layout: tuple[SceneObject, ...], *, spread: bool) -> None:
        self.layout = layout
        self._random = random
        self._spread = spread
        self._uses = [0] * len(layout)
        self._texts: set[str] = set()
        # fits[i][s]: the objects, as bits, that share the attributes s of object i.
        self._fits = [_shared(item, layout) for item in layout]

    def tell(self, wish: _Wish) -> _Told | None:
        """A new sentence of the sort wished for, or None where this layout has none at hand."""
        fewest = min(self._uses)
        targets = shuffled(self._random, range(len(self.layout)))
        if self._spread:
            targets = [target for target in targets if self._uses[target] == fewest]
        for target in targets:
            form = self._form(wish, target)
            if form is None:
                continue
            text = ("the " if self._random.random() < ARTICLE_SHARE else "") + words_of(form)
            if text.removeprefix("the ") in self._texts:
                continue
            self._texts.add(text.removeprefix("the "))
            self._uses[target] += 1
            return _Told(text, form, target)
        return None

    def _form(self, wish: _Wish, target: int) -> Form | None:
        match wish.kind:
            case "attribute":
                return self._attribute(target)
            case "place":
                return self._place(target)
            case "relation":
                return self._relation(target, wish)
            case _:
                return self._ordinal(target)

    def _attribute(self, target: int) -> Form | None:
        least = self._least_descriptions(target, generic=self._random.random() < GENERIC_SHARE)
        least = [bits for bits in least if bits & _ADJECTIVES]
        if not least:
            return None
        bits = pick(self._random, least)
        if self._random.random() < SPARE_ADJECTIVE_SHARE and bits & _ADJECTIVES != _ADJECTIVES:
            bits |= pick(self._random, [bit for bit in (1, 2, 4) if not bits & bit])
        form = Attribute(self._phrase(target, bits))
        return form if refer(form, self.layout) == target else None

    def _place(self, target: int) -> Form | None:
        phrases = self._shared_descriptions(target, 2)
        if not phrases:
            return None
        share = self._random.random()
        terms: list[str]
        if share < 0.5:
            terms = list(EXTREMES)
        elif share < 0.7:
            terms = list(HALVES)
        elif share < 0.9:
            terms = list(CORNERS)
        else:
            terms = [MIDDLE]
        for _ in range(2):
            phrase = self._phrase(target, pick(self._random, phrases))
            for term in shuffled(self._random, terms):
                form = Place(phrase, term)
                if refer(form, self.layout) == target:
                    return form
        return None

    def _relation(self, target: int, wish: _Wish) -> Form | None:
        item = self.layout[target]
        phrases = self._shared_descriptions(target, 2 if wish.needed else 1)
        terms = (*RELATIONS, BESIDE)
        for anchor in shuffled(self._random, range(len(self.layout))):
            if anchor == target or not phrases:
                continue
            names = self._least_descriptions(anchor, generic=self._random.random() < GENERIC_SHARE)
            true = [term for term in terms if related(term, item, self.layout[anchor])]
            if not names or not true:
                continue
            for _ in range(6 if wish.order_sensitive else 2):
                form = Relation(
                    self._phrase(target, pick(self._random, phrases)),
                    pick(self._random, true),
                    self._phrase(anchor, pick(self._random, names)),
                )
                if refer(form, self.layout) != target:
                    continue
                if not wish.order_sensitive or order_sensitive(form, self.layout):
                    return form
        return None

    def _ordinal(self, target: int) -> Form | None:
        phrases = self._shared_descriptions(target, 3)
        if not phrases:
            return None
        bits = pick(self._random, phrases)
        count = self._fits[target][bits].bit_count()
        phrase = self._phrase(target, bits)
        for side in shuffled(self._random, tuple(SIDES)):
            for rank, number in RANKS.items():
                # The last in a row is nobody's "third of three".
                if number < count:
                    form = Ordinal(phrase, rank, side)
                    if refer(form, self.layout) == target:
                        return form
        return None

    def _least_descriptions(self, target: int, *, generic: bool) -> list[int]:
        """Sets of attributes that fit the target alone, with no adjective to spare.

        With a generic noun where asked for and possible, else with the shape's name.
        """
        fits = self._fits[target]
        only = 1 << target
        for noun in (0, _SHAPE) if generic else (_SHAPE,):
            found = [
                bits
                for bits in range(noun, noun + 8)
                if fits[bits] == only
                and all(fits[bits & ~bit] != only for bit in (1, 2, 4) if bits & bit)
            ]
            if found:
                return found
        return []

    def _shared_descriptions(self, target: int, fewest: int) -> list[int]:
        """Sets of up to two attributes, few more often, that fit at least `fewest` objects."""
        noun = 0 if self._random.random() < GENERIC_SHARE else _SHAPE
        fits = self._fits[target]
        return [
            bits
            for bits in range(noun, noun + 8)
            if fits[bits].bit_count() >= fewest
            for _ in range((4, 2, 1, 0)[(bits & _ADJECTIVES).bit_count()])
        ]

    def _phrase(self, target: int, bits: int) -> Phrase:
        item = self.layout[target]
        adjectives = []
        if bits & 1:
            usual, other = SIZE_WORDS[item.size]
            adjectives.append(usual if self._random.random() < 0.7 else other)
        if bits & 2:
            adjectives.append(item.texture)
        if bits & 4:
            adjectives.append(item.colour)
        noun = item.shape if bits & _SHAPE else pick(self._random, GENERIC_NOUNS)
        return Phrase(tuple(adjectives), noun)


def _shared(item: SceneObject, layout: tuple[SceneObject, ...]) -> list[int]:
    everyone = (1 << len(layout)) - 1
    one = [
        sum(1 << i for i, other in enumerate(layout) if getattr(other, name) == getattr(item, name))
        for name in ("size", "texture", "colour", "shape")
    ]
    fits = [everyone] * 16
    for bits in range(1, 16):
        lowest = bits & -bits
        fits[bits] = fits[bits ^ lowest] & one[lowest.bit_length() - 1]
    return fits
