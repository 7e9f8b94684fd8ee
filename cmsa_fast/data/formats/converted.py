"""Reads the Parquet table that `cmsa-fast data convert` writes.

The table has one row per record and is kept as Arrow columns; a record is decoded when it is used. Opening
and copying to another process therefore take time by the bytes of the table, not by its records.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ErrorCollector
from ..images import image_file
from ..masks import parse_segmentation
from ..source import Reading, Source
from ..types import ImageSource, Record, RecordColumns
from .parquet.files import EncodedImage, open_table
from .refer import is_in_split, missing_split
from .refer_layout import existing_folder

METADATA_KEY = b"cmsa_fast"
VERSION = 3


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


_SIZE = [pa.field("height", pa.int32()), pa.field("width", pa.int32())]
_SENTENCE = pa.struct([_required("sent_id", pa.int64()), _required("sent", pa.string())])
_MASK = pa.struct([_required("counts", pa.binary()), *_SIZE, _required("dropped", pa.int64())])
# `folder` is an index into the metadata's image_folders; null if the bytes of the image are embedded, in
# the column `image` of row `image_row`. Masks are compressed run lengths; empty `counts`: an empty mask.
SCHEMA = pa.schema(
    [
        _required("ref_id", pa.int64()),
        _required("image_id", pa.int64()),
        _required("split", pa.string()),
        *_SIZE,
        _required("file_name", pa.string()),
        pa.field("folder", pa.int32()),
        pa.field("image_row", pa.int64()),
        _required("sentences", pa.list_(_required("element", _SENTENCE))),
        _required("masks", pa.list_(_required("element", _MASK))),
        _required("ignored", pa.list_(_required("element", _MASK))),
        _required("kind", pa.string()),
        pa.field("image", pa.binary()),
    ]
)


@dataclass(frozen=True)
class ImageFolders:
    """Folders of images at the time of the conversion."""

    absolute: tuple[str, ...]
    relative: tuple[str, ...]  # to the converted file, if it was moved together with the images

    @classmethod
    def of(cls, folders: Sequence[Path], base: Path) -> ImageFolders:
        """The paths of folders, absolute and relative to `base`."""
        real = map(os.path.realpath, folders)
        return cls(
            absolute=tuple(map(os.path.abspath, folders)),
            relative=tuple(os.path.relpath(folder, base) for folder in real),
        )

    def find(self, file: Path) -> tuple[Path, ...]:
        """The folders that exist; FileNotFoundError if there is none."""
        for paths in (self.absolute, self.relative):
            found = tuple(path for name in paths if (path := file.parent / name).is_dir())
            if found:
                return found
        raise FileNotFoundError(
            f"the images of {file} are no longer in {' or '.join(self.absolute)}: name their folder as "
            "image_folder"
        )


@dataclass(frozen=True)
class Description:
    """The metadata of a converted data set."""

    title: str
    origin: Mapping[str, str]  # form, root, name, split_by and text of the original
    published_expressions: Mapping[str, int]
    image_folders: tuple[ImageFolders, ...]  # of images that are not embedded
    errors: tuple[str, ...]  # one message for each record that the conversion left out

    def to_json(self) -> str:
        """What `from_json` reads."""
        return json.dumps({**asdict(self), "version": VERSION})

    @classmethod
    def from_json(cls, text: bytes, path: Path) -> Description:
        """Parses the metadata of the file `path`; ValueError if it is damaged or of another version."""
        try:
            content = json.loads(text)
            if content["version"] != VERSION:
                raise ValueError(
                    f"it is of version {content['version']} and this cmsa_fast reads version {VERSION}: "
                    "convert the data set again"
                )
            return cls(
                title=str(content["title"]),
                origin={key: str(value) for key, value in content["origin"].items()},
                published_expressions={key: int(value) for key, value in content["published_expressions"].items()},
                image_folders=tuple(
                    ImageFolders(tuple(map(str, one["absolute"])), tuple(map(str, one["relative"])))
                    for one in content["image_folders"]
                ),
                errors=tuple(map(str, content["errors"])),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} has metadata that cannot be read: {error}") from error


def is_converted(path: Path) -> bool:
    """Whether a Parquet file was written by `cmsa-fast data convert`; ValueError if it is damaged."""
    with open_table(path) as table:
        return METADATA_KEY in (table.metadata.metadata or {})


def read_converted(source: Source, split: str | None, errors: ErrorCollector) -> Reading:
    """Reads a converted data set (`cmsa_fast.data.source.read_records`).

    The root is the file, or a folder with the file `<name>.parquet`; without a name, the folder has one
    Parquet file. Splits are matched as in the original: those of REFER as REFER does, others by their exact
    names. Records that the conversion left out are reported as unusable again.
    """
    path = _find(source)
    with open_table(path) as file:
        metadata = (file.metadata.metadata or {}).get(METADATA_KEY)
        description = None if metadata is None else Description.from_json(metadata, path)
        if description is None or not file.physical_schema.equals(SCHEMA):
            raise ValueError(f"{path} is no converted data set: it was not written by `cmsa-fast data convert`")
        table = file.to_table(columns=[name for name in SCHEMA.names if name != "image"])
        starts = np.cumsum([0, *(group.num_rows for group in file.row_groups)])
    for choice in ("text", "split_by"):
        stored, asked = description.origin.get(choice, ""), getattr(source, choice)
        if stored and asked and stored != asked:
            raise ValueError(
                f"{path} was converted with {choice}={stored!r}: ask for that instead of {asked!r}, or "
                "convert the original again"
            )
    for message in description.errors:
        errors.add(ValueError(f"{message} (left out of {path})"))
    try:
        table.validate(full=True)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    table = table.append_column("row", pa.array(np.arange(table.num_rows)))
    if split is not None:
        names = table["split"].unique().to_pylist()
        is_refer = description.origin.get("form") == "refer"
        wanted = [name for name in names if (is_in_split if is_refer else str.__eq__)(name, split)]
        if not wanted:
            raise ValueError(missing_split(split, path, table["split"].to_pylist()))
        table = table.filter(pc.is_in(table["split"], pa.array(wanted, pa.string())))
    given = None if source.image_folder is None else (existing_folder(source.image_folder),)
    used = set(table["folder"].unique().to_pylist()) - {None}
    folders = {i: given or one.find(path) for i, one in enumerate(description.image_folders) if i in used}
    records = TableRecords(path, table.combine_chunks(), folders, starts, description.origin)
    return Reading(records, description.title, description.published_expressions)


@dataclass(frozen=True, slots=True)
class StoredMask:
    """Compressed run lengths of one mask, which are checked when they are decoded."""

    counts: bytes  # empty if the mask is empty
    size: tuple[int, int] | None  # None if an empty mask has none
    dropped: int

    @property
    def is_empty(self) -> bool:
        return not self.counts

    def decode(self, height: int, width: int) -> Tensor:
        """bool `[height, width]`; ValueError if the mask has another size or is damaged."""
        if self.is_empty:
            return torch.zeros(height, width, dtype=torch.bool)
        return parse_segmentation({"size": self.size, "counts": self.counts}).decode(height, width)


class TableRecords(Sequence[Record]):
    """The rows of a converted table, decoded to a `Record` when they are accessed.

    `table` has no column `image`, and the numbers of its rows in the file as column `row`; `starts` are the
    first row of each row group of the file, and the number of rows.
    """

    def __init__(
        self,
        path: Path,
        table: pa.Table,
        folders: Mapping[int, tuple[Path, ...]],
        starts: NDArray[np.int64],
        origin: Mapping[str, str],
    ) -> None:
        self.origin = origin
        self._path, self._table, self._folders, self._starts = path, table, folders, starts

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = range(len(self))[index]  # IndexError, negative indices
        return self._record(self._table.slice(row, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[Record]:
        for batch in self._table.to_batches(max_chunksize=1024):
            yield from map(self._record, batch.to_pylist())

    def columns(self) -> RecordColumns:
        """The columns of all records (`cmsa_fast.data.types.ColumnarRecords`)."""
        sentences = self._table["sentences"].combine_chunks()
        masks = self._table["masks"].combine_chunks()
        owner = pc.list_parent_indices(masks).to_numpy()
        counts = pc.binary_length(masks.flatten().field("counts")).to_numpy()
        dropped = masks.flatten().field("dropped").to_numpy()
        objects = np.bincount(owner, minlength=len(self))
        filled = np.bincount(owner[counts > 0], minlength=len(self))
        return RecordColumns(
            image_ids=self._table["image_id"].to_numpy(),
            names_nothing=objects == 0,
            has_lost_mask=(objects > 0) & (filled == 0),
            degenerate_parts=np.bincount(owner, dropped, len(self)).astype(np.int64),
            lengths=pc.list_value_length(sentences).to_numpy().astype(np.int64),
            sent_ids=sentences.flatten().field("sent_id").to_numpy(),
            expressions=sentences.flatten().field("sent").to_pylist(),
        )

    def _record(self, row: Mapping[str, Any]) -> Record:
        where = f"{self._path}: row {row['row']}"
        try:
            return Record(
                image=self._image(row),
                size=_size(row),
                objects=_masks(row["masks"]),
                expressions=tuple((one["sent_id"], one["sent"]) for one in row["sentences"]),
                image_id=row["image_id"],
                ref_id=row["ref_id"],
                split=row["split"],
                where=where,
                ignored=_masks(row["ignored"]),
                kind=row["kind"],
            )
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

    def _image(self, row: Mapping[str, Any]) -> ImageSource:
        folder, image_row, name = row["folder"], row["image_row"], row["file_name"]
        if folder in self._folders:
            return image_file(self._folders[folder], name)
        if image_row is None or not 0 <= image_row < self._starts[-1]:
            raise ValueError(f"its image {name} is neither in a folder nor embedded")
        group = int(np.searchsorted(self._starts, image_row, side="right")) - 1
        return EncodedImage(self._path, group, image_row - int(self._starts[group]), name)


def _masks(columns: Sequence[Mapping[str, Any]]) -> tuple[StoredMask, ...]:
    return tuple(StoredMask(one["counts"], _size(one), one["dropped"]) for one in columns)


def _find(source: Source) -> Path:
    root, name = source.root, source.name
    for folder in (root, root / name):
        if (folder / "dataset.json").is_file():
            raise ValueError(
                f"{folder} was converted by an earlier cmsa_fast to a format that is no longer read: "
                "convert the original again"
            )
    if root.is_file():
        return root
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder or file {root}")
    there = sorted(file.stem for file in root.glob("*.parquet"))
    chosen = name or (there[0] if len(there) == 1 else "")
    if chosen not in there:
        what = f"no {name}.parquet" if name else f"{len(there)} Parquet files and name says none"
        raise FileNotFoundError(f"{root} has {what}; data sets in it are {', '.join(there) or 'none'}")
    return root / f"{chosen}.parquet"


def _size(row: Mapping[str, Any]) -> tuple[int, int] | None:
    height, width = row["height"], row["width"]
    if height is None and width is None:
        return None
    if not (height and width and min(height, width) > 0):
        raise ValueError(f"{height} and {width} are not a height and a width")
    return height, width
