"""The synthetic scenes: a data set of rendered shapes with expressions that each refer to one object."""

from __future__ import annotations

import operator
from functools import lru_cache
from random import Random

import numpy as np
import torch
from torch import Tensor

from ..types import Sample
from .generation import MIXTURE, Scene, SceneExpression, generate_scene
from .grammar import WORDS, Form
from .grounding import Interpreter
from .rendering import COLOURS, MAX_OBJECTS, SHAPES, SceneObject, render

__all__ = ["COLOURS", "MIXTURE", "SHAPES", "SPLITS", "WORDS", "ScenesDataset"]

SPLITS: dict[str, int] = {"train": 0, "val": 1, "test": 2}
SMALLEST_SIZE = 64
MOST_EXPRESSIONS = 12


class ScenesDataset:
    """Coloured shapes, rendered on demand, with expressions that each refer to exactly one object.

    A scene has 4 to 6 objects that share shapes, colours, sizes and textures. Its expressions name an object by
    its attributes ("small red circle"), its place ("top square"), a relation ("star left of the blue square") or
    by counting ("second circle from the left"), with the probabilities of `MIXTURE`. Every expression is verified
    by `cmsa_fast.data.scenes.grounding.Interpreter`.

    Item i depends only on i and on the arguments other than `scenes`; scene s has the items from
    s * expressions_per_scene on. Layouts and expressions do not depend on `size`.

    Args:
        scenes: Number of scenes, at least 1.
        seed: Any non-negative integer. Different seeds and different splits give unrelated scenes.
        split: One of `SPLITS`.
        size: Side of the images in pixels, at least 64.
        expressions_per_scene: 1 to 12 expressions per scene, all different, spread over the objects as evenly as
            possible.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range.
    """

    def __init__(
        self, scenes: int, *, seed: int = 0, split: str = "train", size: int = 128, expressions_per_scene: int = 4
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

    def __len__(self) -> int:
        """Number of expressions."""
        return self.scenes * self.expressions_per_scene

    def __getitem__(self, index: int) -> Sample:
        """Returns the item at `index`; negative indices count from the end.

        Returns:
            Sample with the image uint8 `[3, size, size]`, the mask bool `[size, size]`, image_id = number of the
            scene, a ref_id for every object of every scene, sent_id = index, and kind = a key of `MIXTURE`.

        Raises:
            TypeError: `index` is not an integer.
            IndexError: `index` is out of range.
        """
        index, number, expression = self._expression(index)
        scene = (self.seed, self.split, number, self.expressions_per_scene)
        image, labels = _pixels(*scene, self.size)
        return Sample(
            image=image.clone(),
            mask=labels == expression.target + 1,
            expression=expression.text,
            image_id=number,
            ref_id=number * MAX_OBJECTS + expression.target,
            sent_id=index,
            kind=expression.form.kind,
        )

    def expressions(self) -> list[str]:
        """Returns the expression of every item, in order, without rendering."""
        return [self._expression(index)[2].text for index in range(len(self))]

    def image_ids(self) -> list[int]:
        """Returns the number of the scene of every item, in order."""
        return [number for number in range(self.scenes) for _ in range(self.expressions_per_scene)]

    def kinds(self) -> list[str]:
        """Returns the kind of every expression, in order, without rendering."""
        return [self.form(index).kind for index in range(len(self))]

    def form(self, index: int) -> Form:
        """Returns the form of an expression; `words_of` writes it, without an initial "the"."""
        return self._expression(index)[2].form

    def layout(self, index: int) -> tuple[SceneObject, ...]:
        """Returns the objects of the scene of an item."""
        return self._scene(self._expression(index)[1]).layout

    def target(self, index: int) -> int:
        """Returns the position in `layout(index)` of the object that an expression refers to."""
        return self._expression(index)[2].target

    def order_sensitive(self, index: int) -> bool:
        """Whether the words of an expression, reordered, refer to another object of the scene.

        A model that ignores word order cannot distinguish the two expressions.
        """
        _, number, expression = self._expression(index)
        return Interpreter(self._scene(number).layout).order_sensitive(expression.form)

    def _expression(self, index: int) -> tuple[int, int, SceneExpression]:
        """The non-negative index, the number of the scene and the expression of an item."""
        try:
            position = range(len(self))[operator.index(index)]
        except IndexError:
            raise IndexError(f"index {index} is outside a data set of {len(self)} items.") from None
        number, slot = divmod(position, self.expressions_per_scene)
        return position, number, self._scene(number).expressions[slot]

    def _scene(self, number: int) -> Scene:
        return _scene(self.seed, self.split, number, self.expressions_per_scene)


@lru_cache(maxsize=2048)  # some 10 MB
def _scene(seed: int, split: str, number: int, expressions: int) -> Scene:
    return generate_scene(Random(_entropy(seed, split, number, 0)), expressions)


@lru_cache(maxsize=8)
def _pixels(seed: int, split: str, number: int, expressions: int, size: int) -> tuple[Tensor, Tensor]:
    """Image, uint8 `[3, size, size]`, and labels, uint8 `[size, size]`, of a scene."""
    generator = np.random.Generator(np.random.PCG64(_entropy(seed, split, number, 1)))
    image, labels = render(_scene(seed, split, number, expressions).layout, size, generator)
    channels_first = np.ascontiguousarray(image.transpose(2, 0, 1))
    return torch.from_numpy(channels_first), torch.from_numpy(labels)


def _entropy(seed: int, split: str, number: int, purpose: int) -> int:
    key = (SPLITS[split], number, purpose)
    state = np.random.SeedSequence(seed, spawn_key=key).generate_state(4)
    return int.from_bytes(state.astype("<u4").tobytes(), "little")


def _check_int(name: str, value: object, least: int, most: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, not {value!r}.")
    if value < least or (most is not None and value > most):
        expected = f"at least {least}" if most is None else f"between {least} and {most}"
        raise ValueError(f"{name} must be {expected}, not {value}.")
