"""Random layouts of the synthetic scenes, and their rendering to an image and a label map.

A layout does not depend on the image size: lengths are fractions of the image's side, x points right and y
points down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from random import Random
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
_Item = TypeVar("_Item")

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 38, 38),
    "yellow": (246, 224, 52),
    "green": (44, 160, 66),
    "blue": (40, 84, 222),
    "white": (242, 242, 242),
}
# Radius. The ranges are far apart so that "small" and "large" are unambiguous.
SIZES: dict[str, tuple[float, float]] = {"small": (0.098, 0.112), "large": (0.155, 0.185)}
TEXTURES: tuple[str, ...] = ("plain", "striped", "dotted")
MIN_OBJECTS, MAX_OBJECTS = 4, 6
MAX_LARGE = {4: 3, 5: 3, 6: 2}  # by the number of objects; more would not fit
GAP = 0.03  # smallest distance between the bounding circles of two objects
BORDER = 0.015  # smallest distance between a bounding circle and the image's edge

_TRIANGLE = tuple(math.radians(angle) for angle in (90, 210, 330))


def _circle(x: Array, y: Array) -> Array:
    return np.hypot(x, y) - 1.0


def _square(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - 0.85


def _triangle(x: Array, y: Array) -> Array:
    sides = [math.cos(angle) * x + math.sin(angle) * y for angle in _TRIANGLE]
    return np.maximum(np.maximum(sides[0], sides[1]), sides[2]) - 0.6


def _star(x: Array, y: Array) -> Array:
    # Folded into a tenth of a turn, all ten edges are the line from a tip (0, outer) to the next notch.
    outer, notch, tenth = 1.22, 0.55, math.pi / 5
    turn = np.arctan2(x, -y)
    turn = np.abs(turn - 2 * tenth * np.round(turn / (2 * tenth)))
    radius = np.hypot(x, y)
    across, up = radius * np.sin(turn), radius * np.cos(turn)
    edge_x, edge_y = notch * math.sin(tenth), notch * math.cos(tenth) - outer
    return (edge_x * (up - outer) - edge_y * across) / math.hypot(edge_x, edge_y)


def _cross(x: Array, y: Array) -> Array:
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - 1.05, y - 0.37), np.maximum(y - 1.05, x - 0.37))


# At radius 1: signed distance to the outline, negative inside, and radius of the bounding circle.
_SHAPES: dict[str, tuple[Callable[[Array, Array], Array], float]] = {
    "circle": (_circle, 1.0),
    "square": (_square, 1.21),
    "triangle": (_triangle, 1.2),
    "star": (_star, 1.22),
    "cross": (_cross, 1.12),
}
SHAPES: tuple[str, ...] = tuple(_SHAPES)


@dataclass(frozen=True)
class SceneObject:
    """One object of a layout: its shape, colour, size and texture, its centre and nominal radius."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    y: float
    radius: float
    turn: float  # rotation in radians, small enough that the shape keeps its name
    tone: tuple[float, float, float]  # RGB, close to `COLOURS[colour]`

    @property
    def reach(self) -> float:
        """Radius of the bounding circle."""
        return self.radius * _SHAPES[self.shape][1]


def pick(random: Random, items: Sequence[_Item]) -> _Item:
    """Returns a random item; uses only `Random.random`, whose results never change between versions."""
    return items[int(random.random() * len(items))]


def shuffled(random: Random, items: Sequence[_Item]) -> list[_Item]:
    """Returns the items in random order; uses only `Random.random`."""
    pairs = [(random.random(), item) for item in items]
    return [item for _, item in sorted(pairs, key=itemgetter(0))]


def drawn(random: Random, probabilities: Mapping[_Item, float]) -> _Item:
    """Returns a random key, given the probability of each; uses only `Random.random`."""
    remaining = random.random()
    for item, probability in probabilities.items():  # noqa: B007
        remaining -= probability
        if remaining < 0:
            break
    return item


def generate_layout(random: Random) -> tuple[SceneObject, ...]:
    """Generates 4 to 6 objects that do not overlap and share most of their attributes.

    A scene uses few shapes, colours and textures, so that a single word rarely identifies an object.
    """
    count = MIN_OBJECTS + int(random.random() * (MAX_OBJECTS - MIN_OBJECTS + 1))
    shapes = shuffled(random, SHAPES)[: pick(random, (2, 2, 3))]
    colours = shuffled(random, tuple(COLOURS))[: pick(random, (3, 4, 5))]
    textures = shuffled(random, TEXTURES)[: pick(random, (1, 1, 1, 2, 3))]
    while True:
        large = 0
        attributes = []
        for _ in range(count):
            big = large < MAX_LARGE[count] and random.random() < 0.5
            large += big
            size = "large" if big else "small"
            low, high = SIZES[size]
            radius = low + (high - low) * random.random()
            shape, colour = pick(random, shapes), pick(random, colours)
            attributes.append((radius, shape, colour, size, pick(random, textures)))
        attributes.sort(reverse=True)  # the largest first, because they are the hardest to place
        placed = _place(random, attributes)
        if placed is not None:
            return tuple(placed)


def _place(random: Random, attributes: list[tuple[float, str, str, str, str]]) -> list[SceneObject] | None:
    placed: list[SceneObject] = []
    for radius, shape, colour, size, texture in attributes:
        reach = radius * _SHAPES[shape][1]
        margin = reach + BORDER
        for _ in range(30):
            x = margin + (1 - 2 * margin) * random.random()
            y = margin + (1 - 2 * margin) * random.random()
            for other in placed:
                dx, dy, apart = x - other.x, y - other.y, reach + other.reach + GAP
                if dx * dx + dy * dy < apart * apart:
                    break
            else:
                break
        else:
            return None
        light = 20 * (random.random() - 0.5)
        red, green, blue = (value + light + 10 * (random.random() - 0.5) for value in COLOURS[colour])
        turn = math.radians(24 * (random.random() - 0.5))
        placed.append(SceneObject(shape, colour, size, texture, x, y, radius, turn, (red, green, blue)))
    return placed


def render(
    layout: Sequence[SceneObject], size: int, random: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Renders a layout, anti-aliased, on a textured background.

    Returns:
        The image, uint8 `[size, size, 3]`, RGB, and the labels, uint8 `[size, size]`: 0 for the background
        and k + 1 where object k covers at least half of the pixel (the pixel's centre is inside its outline).
    """
    canvas = _background(size, random)
    labels = np.zeros((size, size), np.uint8)
    for number, item in enumerate(layout, 1):
        reach = item.reach * size + 1.0
        left, top = max(int(item.x * size - reach), 0), max(int(item.y * size - reach), 0)
        right = min(math.ceil(item.x * size + reach), size)
        bottom = min(math.ceil(item.y * size + reach), size)
        window = (slice(top, bottom), slice(left, right))
        x = np.arange(left, right, dtype=np.float32)[None] + np.float32(0.5 - item.x * size)
        y = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - item.y * size)
        cosine, sine = math.cos(item.turn), math.sin(item.turn)
        radius = item.radius * size
        across, down = (cosine * x + sine * y) / radius, (cosine * y - sine * x) / radius
        distance = _SHAPES[item.shape][0](across, down) * radius  # pixels
        coverage = np.clip(0.5 - distance, 0.0, 1.0)[..., None]
        fill = _fill(item, x, y, distance, size, random)
        canvas[window] += coverage * (fill - canvas[window])
        labels[window][distance <= 0] = number
    canvas += random.standard_normal((size, size, 1), np.float32) * 2.5  # noise
    return np.clip(canvas, 0, 255).round().astype(np.uint8), labels


def _fill(item: SceneObject, x: Array, y: Array, distance: Array, size: int, random: np.random.Generator) -> Array:
    """Colours of the object at x, y, `[h, w, 3]`, given the signed distance to its outline."""
    tone = np.array(item.tone, np.float32)
    if item.texture == "plain":
        return np.broadcast_to(tone, (1, 1, 3))
    second = tone * 0.42 if tone.mean() > 70 else tone + (255 - tone) * 0.6
    period = max(0.05 * size, 4.0)
    angle = random.uniform(0, math.pi)
    along = (math.cos(angle) * x + math.sin(angle) * y) / period
    if item.texture == "striped":
        edge = (0.25 - np.abs(along - np.floor(along) - 0.5)) * period
    else:
        beside = (math.cos(angle) * y - math.sin(angle) * x) / period
        along, beside = along - np.round(along), beside - np.round(beside)
        edge = (0.33 - np.hypot(along, beside)) * period
    # A rim in the object's own colour keeps its outline visible on a similar background.
    edge = np.minimum(edge, -distance - 0.01 * size)
    return tone + np.clip(0.5 + edge, 0.0, 1.0)[..., None] * (second - tone)


def _background(size: int, random: np.random.Generator) -> Array:
    """A background of low saturation, float32 `[size, size, 3]`: two similar tones in one of four patterns."""
    first, second = _muted_colour(random), _muted_colour(random)
    second = first + 0.45 * (second - first)
    x = np.arange(size, dtype=np.float32)[None] / size
    y = np.arange(size, dtype=np.float32)[:, None] / size
    angle = random.uniform(0, 2 * math.pi)
    along = math.cos(angle) * (x - 0.5) + math.sin(angle) * (y - 0.5)
    beside = math.cos(angle) * (y - 0.5) - math.sin(angle) * (x - 0.5)
    frequency = 2 * math.pi * random.uniform(2.5, 7.0)
    match random.integers(4):
        case 0:
            blend = 0.5 + along
        case 1:
            blend = 0.5 + 0.5 * np.tanh(3 * np.sin(frequency * along))
        case 2:
            blend = 0.5 + 0.5 * np.tanh(4 * np.sin(frequency * along) * np.sin(frequency * beside))
        case _:
            cells = random.random((8, 8), np.float32)
            place = np.linspace(0, 6.999, size, dtype=np.float32)
            low, share = place.astype(np.int64), (place % 1).astype(np.float32)
            rows = cells[low] * (1 - share[:, None]) + cells[low + 1] * share[:, None]
            blend = rows[:, low] * (1 - share) + rows[:, low + 1] * share
    return (first + blend[..., None] * (second - first)).astype(np.float32)


def _muted_colour(random: np.random.Generator) -> Array:
    """A colour of low saturation and medium brightness, float32 `[3]`."""
    hue = random.random() + np.array([0, 1 / 3, 2 / 3])
    wheel = np.cos(2 * math.pi * hue) * 255 * random.uniform(0.02, 0.11)
    return (random.uniform(95, 165) + wheel).astype(np.float32)
