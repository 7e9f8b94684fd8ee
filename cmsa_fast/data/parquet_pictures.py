"""Pictures that lie inside parquet files, read when they are wanted."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from torch import Tensor

from cmsa_fast.data.images import read_image
from cmsa_fast.data.parquet_tables import open_table

_BATCH = 8  # encoded pictures held at once


@dataclass(frozen=True)
class EncodedPicture:
    """A picture in a column `image` of a parquet file.

    The file is opened when the picture is read and stays open while pictures that follow it are
    read; a copy sent to another process opens its own.

    Attributes:
        file: The parquet file.
        row_group: The group of rows that it lies in.
        row: Its row in that group, from 0.
        file_name: What the picture is called.
    """

    file: Path
    row_group: int
    row: int
    file_name: str

    @property
    def name(self) -> str:
        """Where the picture lies."""
        return f"{self.file_name} in {self.file} (row group {self.row_group}, row {self.row})"

    def read_bytes(self) -> bytes:
        """The encoded picture, as it was put into the file.

        Raises:
            FileNotFoundError: The parquet file is gone.
            ValueError: It is damaged, or has no picture there.
            ImportError: pyarrow is not installed.
        """
        value = _value(self.file, self.row_group, self.row)
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise ValueError(f"{self.name}: the column 'image' holds no picture there")
        return data

    def read(self, *, apply_orientation: bool) -> Tensor:
        """`read_image`, with the errors of that and of `read_bytes`."""
        stream = BytesIO(self.read_bytes())
        stream.name = self.name
        return read_image(stream, apply_orientation=apply_orientation)


@dataclass(frozen=True)
class _Owner:
    """What an open file is good for."""

    file: Path
    version: tuple[int, int, int]  # a file put in its place since is another one
    row_group: int
    process: int  # a forked one must not read on in its parent's file


class _Pictures(threading.local):
    """The place in a file up to which this thread has read pictures."""

    owner: _Owner | None = None
    batches: Iterator[list[Any]]
    batch: list[Any]
    first: int  # row of the first picture of the batch


_reading = _Pictures()


def _value(file: Path, group: int, row: int) -> Any:
    """One value of the column `image`; what follows the one before needs no new start."""
    owner = _Owner(file, _version(file), group, os.getpid())
    if _reading.owner != owner or row < _reading.first:
        _start(owner)
    try:
        while row >= _reading.first + len(_reading.batch):
            _reading.first += len(_reading.batch)
            _reading.batch = next(_reading.batches)
    except StopIteration:
        _stop()
        raise ValueError(f"{file} has no row {row} in its row group {group}") from None
    except BaseException:
        _stop()
        raise
    return _reading.batch[row - _reading.first]


def _version(file: Path) -> tuple[int, int, int]:
    try:
        found = file.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no parquet file at {file}") from None
    return (found.st_ino, found.st_size, found.st_mtime_ns)


def _start(owner: _Owner) -> None:
    _stop()
    _reading.batches = _batches(owner.file, owner.row_group)
    _reading.batch, _reading.first, _reading.owner = [], 0, owner


def _stop() -> None:
    if _reading.owner is not None:
        _reading.owner = None
        _reading.batch = []
        del _reading.batches  # closes the file


def _batches(file: Path, group: int) -> Iterator[list[Any]]:
    with open_table(file) as table:
        if group >= table.num_row_groups or "image" not in table.schema_arrow.names:
            return
        batches = table.iter_batches(
            _BATCH, row_groups=[group], columns=["image"], use_threads=False
        )
        for batch in batches:
            yield batch.column(0).to_pylist()
