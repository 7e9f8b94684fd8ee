"""A referring data set without files: drawn scenes, expressions true of exactly one object."""

from __future__ import annotations

from collections import OrderedDict
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..types import Sample
from .generation import MIXTURE, Scene, Told, draw_scene
from .grammar import WORDS, Form
from .grounding import Interpreter
from .rendering import COLOURS, MOST_OBJECTS, SHAPES, SceneObject, paint

__all__ = ["COLOURS", "MIXTURE", "SHAPES", "SPLITS", "WORDS", "ScenesDataset"]

SPLITS: dict[str, int] = {"train": 0, "val": 1, "test": 2}
SMALLEST_SIZE = 64
MOST_EXPRESSIONS = 12


class ScenesDataset:
    """Coloured shapes, drawn on demand, with expressions that each mean exactly one object.

    A scene has 4 to 6 objects that share shapes, colours, sizes and textures; its expressions name an
    object by its attributes ("small red circle"), its place ("top square"), a relation ("star left
    of the blue square") or by counting ("second circle from the left"), in the shares of `MIXTURE`.
    Every expression has passed `cmsa_fast.data.scenes.grounding.Interpreter`, which finds the object
    from words and coordinates alone and leaves a margin to every other reading.

    Item i depends on i and on the arguments other than `scenes`, on nothing else; scene s holds the
    items from s * expressions_per_scene on. Layouts and expressions are the same at every `size`.

    Args:
        scenes: number of scenes, at least 1.
        seed: any non-negative integer. Different seeds and different splits give unrelated scenes.
        split: one of `SPLITS`.
        size: side of the images in pixels, at least 64.
        expressions_per_scene: 1 to 12 expressions a scene, all different, spread over the objects as
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
        expressions_per_scene: int = 4,
    ) -> None:
        _check_int("scenes", scenes, 1)
        _check_int("seed", seed, 0)
        _check_int("size", size, SMALLEST_SIZE)
        _check_int("expressions_per_scene", expressions_per_scene, 1, MOST_EXPRESSIONS)
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}.")
        self.scenes = scenes
        self.seed = seed
        self.split = split
        self.size = size
        self.expressions_per_scene = expressions_per_scene
        self._planned = _Recent(64)
        self._painted = _Recent(8)

    def __len__(self) -> int:
        """Number of expressions."""
        return self.scenes * self.expressions_per_scene

    def __getitem__(self, index: int) -> Sample:
        """The item at `index`, which counts from the end where it is negative.

        Returns:
            image uint8 [3, size, size], mask bool [size, size], the expression, image_id = the
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
            expression=told.text,
            image_id=number,
            ref_id=number * MOST_OBJECTS + told.target,
            sent_id=index,
            kind=told.form.kind,
        )

    def expressions(self) -> list[str]:
        """The expression of every item, in order; nothing is painted."""
        return [told.text for number in range(self.scenes) for told in self._plan(number).told]

    def image_ids(self) -> list[int]:
        """The scene's number of every item, in order; nothing is drawn."""
        return [number for number in range(self.scenes) for _ in range(self.expressions_per_scene)]

    def kinds(self) -> list[str]:
        """The kind of every item, in order; nothing is painted."""
        return [told.form.kind for n in range(self.scenes) for told in self._plan(n).told]

    def form(self, index: int) -> Form:
        """What the expression at `index` means; `words_of` says it, apart from a "the" in front."""
        return self._find(index)[2].form

    def layout(self, index: int) -> tuple[SceneObject, ...]:
        """The objects of the scene of the item at `index`; its target is number `target(index)`."""
        return self._plan(self._find(index)[1]).layout

    def target(self, index: int) -> int:
        """The number, in `layout(index)`, of the object that the expression at `index` means."""
        return self._find(index)[2].target

    def order_sensitive(self, index: int) -> bool:
        """Whether the words of the expression at `index`, reordered, mean another of its objects.

        A model that sees the words as a bag cannot tell the two apart.
        """
        _, number, told = self._find(index)
        return Interpreter(self._plan(number).layout).order_sensitive(told.form)

    def __getstate__(self) -> dict[str, Any]:
        """Pickles the arguments without the scenes kept at hand."""
        return {**self.__dict__, "_planned": _Recent(64), "_painted": _Recent(8)}

    def _find(self, index: int) -> tuple[int, int, Told]:
        try:
            position = range(len(self))[index]
        except TypeError:
            raise TypeError(f"index must be an integer, not {type(index).__name__}.") from None
        except IndexError:
            raise IndexError(f"index {index} is outside a data set of {len(self)} items.") from None
        if not isinstance(position, int):
            raise TypeError("index must be an integer, not a slice.")
        number, slot = divmod(position, self.expressions_per_scene)
        return position, number, self._plan(number).told[slot]

    def _plan(self, number: int) -> Scene:
        scene = self._planned.get(number)
        if scene is None:
            scene = draw_scene(Random(self._entropy(number, 0)), self.expressions_per_scene)
            self._planned.put(number, scene)
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
