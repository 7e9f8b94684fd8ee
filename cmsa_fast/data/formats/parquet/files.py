"""Finds and reads the Parquet files of a data set: shards, rows, embedded images."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from ...errors import one_line
from ...images import read_image
from ...source import Source
from ..parsing import Where, place

_logger = logging.getLogger(__name__)

_WHAT_BELONGS = (
    "The root of a Parquet data set is the repository's folder, its folder 'data', or one file; the files "
    "are named <split>-00000-of-0000N.parquet, optionally with a suffix after the N"
)
_SHARD = re.compile(r"(?P<split>.+?)-(?P<number>\d{5})-of-(?P<count>\d{5})(?:-[0-9a-f]+)?")
_BATCH = 256  # rows decoded at once
_READ_AHEAD = 1 << 20  # bytes; otherwise a whole column of a row group is read at once

# The names that repositories use, and the data set.
DATASET_NAMES = {
    "refcoco": "refcoco",
    "refcoco+": "refcoco+",
    "refcocoplus": "refcoco+",
    "refcoco_plus": "refcoco+",
    "refcocog": "refcocog",
}


@dataclass(frozen=True)
class Shard:
    """A file that holds part `number` (from 0) of the `count` parts of a split."""

    path: Path
    split: str
    number: int = 0
    count: int = 1


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a Parquet file."""

    path: Path
    number: int  # in the file, from 0
    group: int
    number_in_group: int
    content: dict[str, Any] | ValueError  # the values of its columns, or the error of decoding them

    @property
    def where(self) -> Where:
        """File and row, for messages."""
        return (self.path, "row", self.number)

    def values(self) -> dict[str, Any]:
        """The value of every column; ValueError if one cannot be decoded."""
        if isinstance(self.content, ValueError):
            raise ValueError(f"{place(self.where)}: {self.content}") from self.content
        return self.content


def find_shards(source: Source) -> list[Shard]:
    """Finds the Parquet files of a data set, at least one, in the order of their names.

    The root is one file, or a folder that has the files itself, in its folder `data`, in its folder
    `source.name`, or in the folder `data` of that.
    """
    root, name = source.root, source.name
    if root.is_file():
        return [_shard(root)]
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder or file {root}. {_WHAT_BELONGS}.")
    if name and (name == ".." or PurePath(name).name != name):
        raise ValueError(f"name must be the name of a data set or folder, not {name!r}")
    base = root
    if name:
        dataset = DATASET_NAMES.get(name)
        same = [one for one, known in DATASET_NAMES.items() if known == dataset]
        named = [root / one for one in (name, *same) if (root / one).is_dir()]
        if not named and dataset is None:
            raise ValueError(f"name {name!r} is no folder of {root} and none of {', '.join(DATASET_NAMES)}")
        base = named[0] if named else root
    folders = [base, base / "data"]
    for folder in folders:
        if files := sorted(file for file in folder.glob("*.parquet") if file.is_file()):
            return [_shard(file) for file in files]
    patterns = ("*/*.parquet", "*/data/*.parquet")
    inside = {file.relative_to(root).parts[0] for one in patterns for file in root.glob(one)}
    hint = f" Its {', '.join(sorted(inside))} has some: give its name." if inside else ""
    raise FileNotFoundError(
        f"there is no Parquet file in {' or '.join(map(str, folders))}.{hint} {_WHAT_BELONGS}."
    )


def check_complete(
    shards: Sequence[Shard], source: Source, split: str | None, all_shards: Sequence[Shard]
) -> None:
    """Raises ValueError if there is no part of a split or one exists twice, FileNotFoundError if one is missing.

    A root that is one file is used as it is.
    """
    if not shards:
        raise ValueError(
            f"split {split!r} is not in {all_shards[0].path.parent}, which has {split_names(all_shards)}"
        )
    if source.root.is_file():
        if shards[0].count > 1:
            _logger.warning("%s is one of %d parts of its split", source.root, shards[0].count)
        return
    for split in dict.fromkeys(shard.split for shard in shards):
        parts = [shard for shard in shards if shard.split == split]
        folder, count = parts[0].path.parent, parts[0].count
        numbers = [part.number for part in parts]
        if len(set(numbers)) < len(numbers) or {part.count for part in parts} != {count}:
            raise ValueError(
                f"{folder} has parts of split {split!r} from more than one copy "
                f"({', '.join(part.path.name for part in parts)}): keep those of one data set, or "
                "give one file as the root"
            )
        if missing := sorted(set(range(count)) - set(numbers)):
            raise FileNotFoundError(
                f"{folder} lacks {len(missing)} of the {count} parts of split {split!r}; the first "
                f"missing file is {split}-{missing[0]:05d}-of-{count:05d}*.parquet"
            )


def split_names(shards: Iterable[Shard]) -> str:
    """The splits of the files, for messages."""
    return ", ".join(dict.fromkeys(shard.split for shard in shards))


@contextmanager
def open_table(path: Path) -> Iterator[pq.ParquetFile]:
    """Opens a Parquet file; errors that pyarrow raises in the block become ValueError."""
    try:
        with pq.ParquetFile(path, buffer_size=_READ_AHEAD, page_checksum_verification=True) as table:
            yield table
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no Parquet file at {path}") from None
    except (pa.lib.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # an error of the disk
        raise ValueError(f"{path} is no Parquet file, is damaged, or truncated: {one_line(error)}") from error


def read_rows(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Row]:
    """Reads some columns of a file, a few rows at a time, with the errors of `open_table`.

    ValueError if the file lacks one of `columns`; those of `optional` are read if they exist.
    """
    with open_table(path) as table:
        names = table.schema_arrow.names
        if missing := [name for name in columns if name not in names]:
            raise ValueError(
                f"{path} has no column {missing[0]!r}, unlike other files of its folder; it has {', '.join(names)}"
            )
        wanted = [*columns, *(name for name in optional if name in names)]
        number = 0
        for group in range(table.num_row_groups):
            first = number
            for batch in table.iter_batches(_BATCH, row_groups=[group], columns=wanted, use_threads=False):
                for content in _contents(batch):
                    yield Row(path, number, group, number - first, content)
                    number += 1


def _contents(batch: pa.RecordBatch) -> list[dict[str, Any] | ValueError]:
    try:
        rows: list[dict[str, Any] | ValueError] = batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            return [ValueError(f"its text is not UTF-8 ({error})")]
        rows = [row for i in range(batch.num_rows) for row in _contents(batch.slice(i, 1))]
    return rows


@dataclass(frozen=True)
class EncodedImage:
    """An image in a column of a Parquet file, read when it is needed.

    Parquet files are read by row groups: the images of the last two groups are kept in memory in each
    process, so that reading in order reads each group once. No file stays open.
    """

    file: Path
    row_group: int
    row: int  # in the group, from 0
    file_name: str

    @property
    def name(self) -> str:
        """Name and location of the image."""
        return f"{self.file_name} in {self.file} (row group {self.row_group}, row {self.row})"

    def read_bytes(self) -> bytes:
        """The encoded image as stored in the file; ValueError if that is damaged or has no image there."""
        try:
            status = self.file.stat()
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no Parquet file at {self.file}") from None
        version = (status.st_ino, status.st_size, status.st_mtime_ns)
        column = _image_column(self.file, version, self.row_group)
        if self.row >= len(column):
            raise ValueError(f"{self.file} has no row {self.row} in its row group {self.row_group}")
        value = column[self.row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise ValueError(f"{self.name}: the column 'image' holds no image there")
        return data

    def read(self, *, apply_orientation: bool) -> Tensor:
        """`read_image`, with the errors of that and of `read_bytes`."""
        stream = BytesIO(self.read_bytes())
        stream.name = self.name
        return read_image(stream, apply_orientation=apply_orientation)


@lru_cache(maxsize=2)
def _image_column(file: Path, version: tuple[int, ...], group: int) -> Sequence[Any]:
    """The encoded images of a row group; `version` tells a replaced file from the one read before."""
    with open_table(file) as table:
        if group >= table.num_row_groups or "image" not in table.schema_arrow.names:
            return ()
        # In batches: pyarrow cannot read a group of 2 GiB or more in one piece.
        batches = list(table.iter_batches(64, row_groups=[group], columns=["image"], use_threads=False))
        column: Sequence[Any] = pa.Table.from_batches(batches).column(0) if batches else ()
        return column


def _shard(path: Path) -> Shard:
    match = _SHARD.fullmatch(path.stem)
    if match is None:
        return Shard(path, path.stem)
    return Shard(path, match["split"], int(match["number"]), int(match["count"]))
