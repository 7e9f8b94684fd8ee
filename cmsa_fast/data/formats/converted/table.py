"""Fills and writes the arrays of one split of a converted data set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from safetensors.numpy import save

from ...types import ObjectMask, Record
from .arrays import encode_text
from .description import SplitEntry
from .image_store import ImageStore

_UNKNOWN = (-1, -1)


class SplitTable:
    """The columns of one split, filled record by record.

    Args:
        store: Gives the images their places.
    """

    def __init__(self, store: ImageStore) -> None:
        self._store = store
        self._rows: list[tuple[int, int, int, int]] = []  # ref_id, image_id, order, image
        self._sizes: list[tuple[int, int]] = []
        self._sent_ids: list[int] = []
        self._texts: list[bytes] = []
        self._expression_counts: list[int] = []
        self._objects: list[int] = []
        self._object_counts: list[int] = []
        self._masks: list[bytes] = []
        self._mask_rows: list[tuple[int, int, int]] = []  # height, width, dropped
        self._mask_places: dict[tuple[int, tuple[int, int]], int] = {}
        self._kept: list[ObjectMask] = []  # an identity stays one as long as its object lives
        self._image_places: dict[tuple[int, str], int] = {}

    @property
    def references(self) -> int:
        """Number of records."""
        return len(self._rows)

    def add(self, order: int, record: Record) -> None:
        """Takes a record as a whole, or raises and takes nothing of it."""
        texts = [encode_text(expression) for _, expression in record.expressions]
        for number in (record.ref_id, record.image_id, *(entry[0] for entry in record.expressions)):
            _check(number, np.int64, "a number", record)
        for size in (record.size, *(one.size for one in record.objects)):
            for side in size or ():
                _check(side, np.int32, "a side", record)
        drawn_at = self._size_to_draw(record)
        new: dict[tuple[int, tuple[int, int]], tuple[ObjectMask, bytes]] = {}
        keys = []
        for one in record.objects:
            size = (one.size or _UNKNOWN) if one.is_empty or drawn_at is None else drawn_at
            keys.append((id(one), size))
            if keys[-1] not in self._mask_places and keys[-1] not in new:
                new[keys[-1]] = (one, b"" if one.is_empty else _draw(one, size, record))
        place = self._store.place(record.image)
        for key, (one, counts) in new.items():
            self._mask_places[key] = len(self._masks)
            self._masks.append(counts)
            self._mask_rows.append((*key[1], one.dropped))
            self._kept.append(one)
        image = self._image_places.setdefault(place, len(self._image_places))
        self._rows.append((record.ref_id, record.image_id, order, image))
        self._sizes.append(record.size or _UNKNOWN)
        self._sent_ids += [sent_id for sent_id, _ in record.expressions]
        self._texts += texts
        self._expression_counts.append(len(texts))
        self._objects += [self._mask_places[key] for key in keys]
        self._object_counts.append(len(keys))

    def write(self, path: Path) -> SplitEntry:
        """Writes the split's file."""
        rows = np.array(self._rows, np.int64)
        mask_rows = np.array(self._mask_rows, np.int64).reshape(-1, 3)
        names = [encode_text(name) for _, name in self._image_places]
        columns = {
            "ref_id": rows[:, 0],
            "image_id": rows[:, 1],
            "order": rows[:, 2],
            "picture": rows[:, 3],
            "size": np.array(self._sizes, np.int32),
            "expressions_starts": _starts(self._expression_counts),
            "objects_starts": _starts(self._object_counts),
            "objects": np.array(self._objects, np.int64),
            "sent_id": np.array(self._sent_ids, np.int64),
            "text": _joined(self._texts),
            "text_starts": _starts(map(len, self._texts)),
            "mask": _joined(self._masks),
            "mask_starts": _starts(map(len, self._masks)),
            "mask_size": mask_rows[:, :2].astype(np.int32),
            "mask_dropped": mask_rows[:, 2],
            "image_name": _joined(names),
            "image_name_starts": _starts(map(len, names)),
            "image_folders": np.array([place for place, _ in self._image_places], np.int64),
        }
        content = save({key: np.ascontiguousarray(value) for key, value in columns.items()})
        path.write_bytes(content)
        return SplitEntry(
            file=path.name,
            sha256=hashlib.sha256(content).hexdigest(),
            references=len(self._rows),
            expressions=len(self._texts),
            masks=len(self._masks),
            images=len(names),
        )

    def _size_to_draw(self, record: Record) -> tuple[int, int] | None:
        if all(one.is_empty for one in record.objects):
            return None
        return record.mask_size or self._store.size(record.image)


def _draw(one: ObjectMask, size: tuple[int, int], record: Record) -> bytes:
    """A mask's pixels as COCO's compressed run lengths."""
    try:
        mask = one.decode(*size)
    except ValueError as error:
        raise ValueError(f"{record.where}: {error}") from error
    pixels: NDArray[Any] = np.asfortranarray(mask.numpy().view(np.uint8))
    counts: bytes = coco_mask.encode(pixels)["counts"]
    return counts


def _check(number: int, dtype: type[np.signedinteger[Any]], what: str, record: Record) -> None:
    limits = np.iinfo(dtype)
    if not limits.min <= number <= limits.max:
        raise ValueError(
            f"{record.where}: {what} of ref_id {record.ref_id} is {number}, which is none of "
            f"{limits.bits} bits"
        )


def _starts(lengths: Iterable[int]) -> NDArray[np.int64]:
    return np.fromiter(accumulate(lengths, initial=0), np.int64)


def _joined(entries: Iterable[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(entries), np.uint8)
