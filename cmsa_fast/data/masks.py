"""Parses and decodes the masks of COCO-style files: polygons and run lengths.

pycocotools rasterises and merges the parts: published results depend on its rule for the pixels that a
polygon covers, and other rasterisers differ on small objects.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from .errors import by

_LONGEST_RUN_CODE = 7  # characters of 5 bits that a 32-bit run length can take
_MOST_PIXELS = 2**31 - 1  # pycocotools counts in 32 bits and does not check


@dataclass(frozen=True, eq=False)
class MaskSource:
    """A checked mask that is not decoded.

    Attributes:
        polygons: float64 `[2 * points]` each, x and y alternating, in pixels.
        runs: Compressed run lengths, each with `size` (height, width) and `counts` (bytes).
        dropped: Number of polygons left out because they enclose no area: fewer than three points, an
            odd number of coordinates, or a coordinate that is not finite.
    """

    polygons: tuple[NDArray[np.float64], ...] = ()
    runs: tuple[Mapping[str, Any], ...] = ()
    dropped: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether no valid part is left."""
        return not self.polygons and not self.runs

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width if the mask itself states them (run lengths), else None."""
        return self.runs[0]["size"] if self.runs else None

    def decode(self, height: int, width: int) -> Tensor:
        """Decodes the union of all parts, bool `[height, width]`; parts may overlap.

        ValueError if the run lengths are for another size, or a polygon reaches more than one whole image
        beyond the image.
        """
        if self.is_empty:
            return torch.zeros(height, width, dtype=torch.bool)
        if self.size not in (None, (height, width)):
            raise ValueError(f"the mask is {by(self.size)} (height x width) and its image {height} x {width}")
        self._check_reach(height, width)
        parts = list(self.runs)
        if self.polygons:
            parts += coco_mask.frPyObjects(list(self.polygons), height, width)
        # decode() of pycocotools relies on a deprecated numpy protocol, and warns.
        runs = _run_lengths(coco_mask.merge(parts)["counts"])
        inside = np.arange(runs.size) % 2 == 1  # runs alternate between outside and inside
        columns = np.repeat(inside, runs).reshape(width, height)
        return torch.from_numpy(np.ascontiguousarray(columns.T))

    def _check_reach(self, height: int, width: int) -> None:
        # Rasterising takes memory in proportion to the outline, inside the image or not.
        for polygon in self.polygons:
            for axis, extent in ((0, width), (1, height)):
                low, high = polygon[axis::2].min(), polygon[axis::2].max()
                if low < -extent or high > 2 * extent:
                    raise ValueError(
                        f"a polygon of the mask spans {'xy'[axis]} = {low:g} to {high:g} in an "
                        f"image of {height} x {width} (height x width)"
                    )


def parse_segmentation(segmentation: object) -> MaskSource:
    """Parses a `segmentation` entry in any of the forms in use, without decoding it.

    The forms are: a list of polygons; one flat polygon `[x1, y1, x2, y2, ...]`; run lengths
    `{"size": [height, width], "counts": ...}`, compressed (text or bytes) or as plain numbers; a list of
    such run lengths (as in RefCLEF). Sequences may be numpy arrays. Degenerate polygons are dropped and
    counted; ValueError for another form, or if run lengths do not add up to their size.
    """
    if isinstance(segmentation, Mapping):
        return MaskSource(runs=(_parse_runs(segmentation),))
    if not _is_sequence(segmentation):
        raise ValueError(
            f"a segmentation must be polygons or run lengths, not a value of type {type(segmentation).__name__}"
        )
    parts = list(segmentation)
    if parts and all(isinstance(part, Mapping) for part in parts):
        runs = tuple(_parse_runs(part) for part in parts)
        sizes = sorted({run["size"] for run in runs})
        if len(sizes) > 1:
            raise ValueError(
                "the parts of a segmentation have different sizes (height x width): "
                + ", ".join(by(size) for size in sizes)
            )
        return MaskSource(runs=runs)
    if parts and all(isinstance(part, Real) for part in parts):
        parts = [parts]
    polygons = [polygon for part in parts if (polygon := _parse_polygon(part)) is not None]
    return MaskSource(polygons=tuple(polygons), dropped=len(parts) - len(polygons))


def _parse_polygon(part: object) -> NDArray[np.float64] | None:
    """The coordinates, or None if they enclose no area."""
    if not _is_sequence(part):
        raise ValueError(f"a part of a segmentation must be a list of coordinates, not {type(part).__name__}")
    numbers = _numbers(part, "iuf", "a polygon of a segmentation must be a flat list of numbers")
    polygon = numbers.astype(np.float64)
    valid = polygon.size >= 6 and polygon.size % 2 == 0 and bool(np.isfinite(polygon).all())
    return polygon if valid else None


def _parse_runs(rle: Mapping[Any, Any]) -> Mapping[str, Any]:
    """Run lengths in the compressed form of pycocotools, checked to cover their size exactly.

    pycocotools does not check: runs that fall short leave uninitialised pixels, and text that ends in the
    middle of a number is read past its end.
    """
    missing = [key for key in ("size", "counts") if key not in rle]
    if missing:
        raise ValueError(f"the run lengths of a segmentation have no {missing[0]!r}")
    size, counts = rle["size"], rle["counts"]
    if not (_is_sequence(size) and len(size) == 2 and all(_is_positive(side) for side in size)):
        raise ValueError(
            f"the size of run lengths must be two positive integers (height, width), not {_short(size)}"
        )
    height, width = int(size[0]), int(size[1])
    if height * width > _MOST_PIXELS:
        raise ValueError("the size of run lengths has more pixels than 32 bits can count")
    if isinstance(counts, str | bytes):
        try:
            compressed = counts.encode("ascii") if isinstance(counts, str) else counts
        except UnicodeEncodeError as error:
            raise ValueError(f"the counts of run lengths are not ASCII: {error}") from error
        runs = _run_lengths(compressed)
    elif _is_sequence(counts):
        compressed = None
        runs = _numbers(counts, "iu", "the counts of run lengths must be a flat list of integers")
        runs = runs.astype(np.int64)
    else:
        raise ValueError(
            f"the counts of run lengths must be text, bytes or a list of integers, not {type(counts).__name__}"
        )
    in_range = ((runs >= 0) & (runs <= height * width)).all()
    if not in_range or int(runs.sum()) != height * width:
        raise ValueError(
            f"the run lengths add up to {int(runs.sum())} pixels with {int((runs < 0).sum())} "
            f"negative ones, where {height} x {width} (height x width) has {height * width}"
        )
    if compressed is None:
        rle = coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)
        compressed = rle["counts"]
    return {"size": (height, width), "counts": compressed}


def _run_lengths(counts: bytes) -> NDArray[np.int64]:
    """Decodes the numbers of COCO's compressed run lengths (`rleFrString` in pycocotools).

    Each number is written in characters of 5 bits, lowest first, offset by 48, with bit 5 set on all but
    its last character and the sign in bit 4 of the last. From the fourth number on, the difference to the
    number two places before is written.
    """
    codes = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    is_last = codes & 32 == 0
    if not codes.size or codes.min() < 0 or codes.max() > 63 or not is_last[-1]:
        raise ValueError("the counts of run lengths are not COCO's compressed form")
    ends = np.flatnonzero(is_last)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > _LONGEST_RUN_CODE:
        raise ValueError("the counts of run lengths hold a number of more than 32 bits")
    shifts = 5 * (np.arange(codes.size) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << shifts, starts)
    runs -= np.where(codes[ends] & 16, 1 << 5 * lengths, 0)
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs


def _numbers(values: Sequence[Any], kinds: str, rule: str) -> NDArray[Any]:
    """A flat array of numbers of numpy's `kinds`; ValueError that quotes the `rule` otherwise."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{rule}: {error}") from error
    if array.ndim != 1 or (array.size and array.dtype.kind not in kinds):
        raise ValueError(f"{rule}, not {array.ndim}-dimensional data of type {array.dtype}")
    return array


def _is_sequence(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)


def _is_positive(side: object) -> bool:
    return isinstance(side, int | np.integer) and not isinstance(side, bool) and bool(side > 0)


def _short(value: object) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # an integer too long to be formatted
        return f"a value of type {type(value).__name__}"
