"""The types that readers and data sets exchange: `Record` on disk, `Sample` in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import located


class ImageSource(Protocol):
    """Where the pixels of an image come from; hashable, comparable and picklable."""

    @property
    def name(self) -> str:
        """The image's name, for messages."""

    def read(self, *, apply_orientation: bool) -> Tensor:
        """uint8 `[3, H, W]`, RGB, with the errors of `cmsa_fast.data.images.read_image`."""


@runtime_checkable
class EmbeddedImage(ImageSource, Protocol):
    """An encoded image inside a larger file."""

    @property
    def file_name(self) -> str:
        """The name of the image."""

    def read_bytes(self) -> bytes:
        """The encoded image."""


class ObjectMask(Protocol):
    """The mask of one object before decoding, such as `cmsa_fast.data.masks.MaskSource`."""

    @property
    def is_empty(self) -> bool:
        """Whether the mask is known to be empty without decoding it."""

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width where the mask itself states them, else None."""

    @property
    def dropped(self) -> int:
        """Number of degenerate parts that were left out."""

    def decode(self, height: int, width: int) -> Tensor:
        """bool `[height, width]`; ValueError if the mask has another size."""


@dataclass(frozen=True, slots=True)
class Record:
    """Expressions that refer to the same objects of one image.

    Attributes:
        image: The image.
        size: Height and width of the image in pixels if the files state them, else None.
        objects: The objects that the expressions refer to; the target mask is their union. Empty if the
            expressions refer to nothing in this image, whose target mask is then empty.
        expressions: `(sent_id, expression)` in the order of the files.
        image_id: Number of the image in the data set.
        ref_id: Number of the reference in the data set.
        split: Name of the split in the files.
        where: File and record that hold the objects, for messages.
        ignored: Regions that no metric counts; empty if every pixel counts.
        kind: Kind of the expressions, under which metrics are also reported; empty if they have none.
    """

    image: ImageSource
    size: tuple[int, int] | None
    objects: tuple[ObjectMask, ...]
    expressions: tuple[tuple[int, str], ...]
    image_id: int
    ref_id: int
    split: str
    where: str
    ignored: tuple[ObjectMask, ...] = ()
    kind: str = ""

    @property
    def names_nothing(self) -> bool:
        """Whether the expressions refer to nothing in the image."""
        return not self.objects

    @property
    def has_lost_mask(self) -> bool:
        """Whether the record has objects and all of their masks are empty."""
        return bool(self.objects) and all(one.is_empty for one in self.objects)

    @property
    def mask_size(self) -> tuple[int, int] | None:
        """Height and width that the masks require of the image, None if unknown."""
        sizes = (one.size for one in (*self.objects, *self.ignored) if one.size is not None)
        return next(sizes, self.size)

    def mask(self, height: int, width: int) -> Tensor:
        """Decodes the union of the objects, bool `[height, width]`.

        ValueError, which names file and record, if a mask does not fit the image, likewise FileNotFoundError.
        """
        return self._union(self.objects, height, width)

    def ignore(self, height: int, width: int) -> Tensor | None:
        """Decodes the union of the ignored regions as `mask` does; None if every pixel counts."""
        return self._union(self.ignored, height, width) if self.ignored else None

    def _union(self, parts: Sequence[ObjectMask], height: int, width: int) -> Tensor:
        union = torch.zeros(height, width, dtype=torch.bool)
        for one in parts:
            with located(self.where):
                union |= one.decode(height, width)
        return union


@dataclass(frozen=True, eq=False)
class RecordColumns:
    """What opening a data set needs of its records, as columns."""

    image_ids: NDArray[np.int64]  # [records]
    names_nothing: NDArray[np.bool_]  # [records]
    has_lost_mask: NDArray[np.bool_]  # [records]
    degenerate_parts: NDArray[np.int64]  # [records]; a shared object's count at its first record
    lengths: NDArray[np.int64]  # [records], number of expressions of each
    sent_ids: NDArray[np.int64]  # [expressions]
    expressions: list[str]  # of all records in order

    @classmethod
    def from_records(cls, records: Sequence[Record]) -> RecordColumns:
        """Collects the columns of a list of records."""
        seen: set[int] = set()
        parts = np.zeros(len(records), np.int64)
        for i, record in enumerate(records):
            for one in record.objects:
                if one.dropped and id(one) not in seen:
                    seen.add(id(one))
                    parts[i] += one.dropped
        entries = [entry for record in records for entry in record.expressions]
        return cls(
            image_ids=np.array([record.image_id for record in records], np.int64),
            names_nothing=np.array([record.names_nothing for record in records], bool),
            has_lost_mask=np.array([record.has_lost_mask for record in records], bool),
            degenerate_parts=parts,
            lengths=np.array([len(record.expressions) for record in records], np.int64),
            sent_ids=np.array([sent_id for sent_id, _ in entries], np.int64),
            expressions=[expression for _, expression in entries],
        )


@runtime_checkable
class ColumnarRecords(Protocol):
    """Records that give their columns without being decoded one by one."""

    def columns(self) -> RecordColumns:
        """The columns of all records."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One referring expression with its image and its target mask.

    Samples compare by identity.

    Attributes:
        image: uint8 `[3, H, W]`, RGB, at the image's own size. Samples of one image may share this
            memory: clone it before writing to it.
        mask: bool `[H, W]`, True inside the referred objects.
        expression: The expression as written in the files.
        image_id: Number of the image in the data set.
        ref_id: Number of the reference in the data set.
        sent_id: Number of the expression in the data set.
        kind: Kind of expression if the data set states it (such as "attribute" or "place"), else empty.
        names_nothing: Whether the expression refers to nothing in the image. A mask may also be empty
            because all parts of the object are degenerate.
        ignore: bool `[H, W]`, True where no metric counts the pixel; None if every pixel counts.
    """

    image: Tensor
    mask: Tensor
    expression: str
    image_id: int
    ref_id: int
    sent_id: int
    kind: str = ""
    names_nothing: bool = False
    ignore: Tensor | None = None


class ReferringDataset(Protocol):
    """A map-style data set with one item per expression."""

    def __len__(self) -> int:
        """Number of expressions."""

    def __getitem__(self, index: int) -> Sample:
        """The item at `index`."""

    def expressions(self) -> list[str]:
        """The expression of every item in order, without loading an image."""

    def image_ids(self) -> list[int]:
        """The image number of every item in order, without loading an image."""
