"""Data sets as `cmsa-fast data convert` writes them: quick to open, and nothing in them runs code."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, zeros
from torch import bool as torch_bool

from ...errors import ErrorCollector
from ...images import ImageFile, image_file
from ...masks import parse_segmentation
from ...source import Reading, Source
from ...types import Record
from ..garbage import paused_collection
from ..refer import is_in_split, missing_split
from ..refer_layout import existing_folder
from .arrays import Arrays, decode_text, divide, read_arrays
from .description import Description, SplitEntry, read_description

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class MaskTable:
    """The masks of a split, as they lie in its file.

    Attributes:
        runs: uint8, COCO's compressed run lengths end to end.
        starts: int64 `[masks + 1]`: mask i is `runs[starts[i] : starts[i + 1]]`.
        sizes: int32 `[masks, 2]`, height and width; -1 where a mask is empty and has none.
        dropped: int64 `[masks]`, number of parts left out because they enclose nothing.
    """

    runs: NDArray[np.uint8]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int32]
    dropped: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class ConvertedMask:
    """One mask of a table; its bytes are looked at when it is drawn.

    Attributes:
        table: The masks of its split.
        place: Its place among them.
    """

    table: MaskTable
    place: int

    @property
    def is_empty(self) -> bool:
        """Whether nothing of the mask was left when it was converted."""
        return bool(self.table.starts[self.place] == self.table.starts[self.place + 1])

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width at which it was drawn, None where it never was."""
        height, width = self.table.sizes[self.place].tolist()
        return None if height < 0 else (height, width)

    @property
    def dropped(self) -> int:
        """Number of parts left out because they enclose nothing."""
        return int(self.table.dropped[self.place])

    def decode(self, height: int, width: int) -> Tensor:
        """Draws the mask.

        Args:
            height: The image's height in pixels.
            width: The image's width in pixels.

        Returns:
            bool `[height, width]`; all False where the mask is empty.

        Raises:
            ValueError: The mask is for another size, or its bytes are no run lengths of that size.
        """
        if self.is_empty:
            return zeros(height, width, dtype=torch_bool)
        start, end = self.table.starts[self.place : self.place + 2]
        counts = self.table.runs[start:end].tobytes()
        return parse_segmentation({"size": self.size, "counts": counts}).decode(height, width)


@paused_collection()
def read_converted(source: Source, split: str | None, errors: ErrorCollector) -> Reading:
    """Reads a converted data set (`cmsa_fast.data.source.read_records`).

    The root is its folder, or the folder around it with `name` naming it. Splits are matched as the
    original's form does it. What was chosen at the conversion (`text`, `split_by`) cannot be chosen
    again: another value is an error. Images are looked for where they were at the conversion, or
    in `image_folder`. Records that the conversion left out are counted in the log.
    """
    folder = source.root / source.name if source.name else source.root
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}, where a converted data set should be"
        )
    description = read_description(folder)
    _check_choices(source, description, folder)
    matches = is_in_split if description.origin.get("form") == "refer" else str.__eq__
    chosen = {
        name: entry
        for name, entry in description.splits.items()
        if split is None or matches(name, split)
    }
    if not any(entry.references for entry in chosen.values()):
        recorded = (
            name for name, entry in description.splits.items() for _ in repeat(0, entry.references)
        )
        raise ValueError(missing_split(split, folder, recorded))
    if description.errors:
        _logger.warning(
            "%s lacks %d records that could not be used when it was converted",
            folder,
            len(description.errors),
        )
    ordered: list[tuple[int, Record]] = []
    for name, entry in chosen.items():
        ordered += _read_split(source, folder, description, name, entry)
    if len(chosen) > 1:
        ordered.sort(key=lambda pair: pair[0])
    return Reading(
        [record for _, record in ordered], description.title, description.published_expressions
    )


def _check_choices(source: Source, description: Description, folder: Path) -> None:
    for choice in ("text", "split_by"):
        stored, asked = description.origin.get(choice, ""), getattr(source, choice)
        if stored and asked and stored != asked:
            raise ValueError(
                f"{folder} was converted with {choice}={stored!r} and has nothing else: ask for "
                f"that, not for {asked!r}, or convert the original anew"
            )


def _read_split(
    source: Source, folder: Path, description: Description, split: str, entry: SplitEntry
) -> Iterator[tuple[int, Record]]:
    """Each record with its place among the records of all splits."""
    arrays = read_arrays(folder, entry, len(description.image_folders))
    path = folder / entry.file
    try:
        images = _read_images(source, folder, description, arrays)
        texts = [decode_text(text) for text in divide(arrays["text"], arrays["text_starts"])]
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    expressions = list(zip(arrays["sent_id"].tolist(), texts, strict=True))
    table = MaskTable(
        *(arrays[key] for key in ("mask", "mask_starts", "mask_size", "mask_dropped"))
    )
    masks = [ConvertedMask(table, place) for place in range(entry.masks)]
    objects = [masks[place] for place in arrays["objects"].tolist()]
    expression_starts = arrays["expressions_starts"].tolist()
    object_starts = arrays["objects_starts"].tolist()
    columns = (arrays[key].tolist() for key in ("order", "size", "picture", "image_id", "ref_id"))
    for i, (order, size, image, image_id, ref_id) in enumerate(zip(*columns, strict=True)):
        yield (
            order,
            Record(
                image=images[image],
                size=None if size[0] < 0 else (size[0], size[1]),
                objects=tuple(objects[object_starts[i] : object_starts[i + 1]]),
                expressions=tuple(expressions[expression_starts[i] : expression_starts[i + 1]]),
                image_id=image_id,
                ref_id=ref_id,
                split=split,
                where=f"{path}: record {i}",
            ),
        )


def _read_images(
    source: Source, folder: Path, description: Description, arrays: Arrays
) -> list[ImageFile]:
    used = np.unique(arrays["image_folders"]).tolist()
    if source.image_folder is None:
        folders = {place: description.image_folders[place].find(folder) for place in used}
    else:
        folders = dict.fromkeys(used, (existing_folder(source.image_folder),))
    names = divide(arrays["image_name"], arrays["image_name_starts"])
    places = arrays["image_folders"].tolist()
    return [
        image_file(folders[place], decode_text(name))
        for place, name in zip(places, names, strict=True)
    ]
