"""Images that lie inside parquet files, read when they are wanted."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

from torch import Tensor

from ...images import read_image
from .tables import open_table

_BATCH = 64


@dataclass(frozen=True)
class EncodedImage:
    """An image in a column `image` of a parquet file.

    The file is read when the image is wanted. A row group can be read only as a whole: the
    encoded images of the last two groups are kept in memory, in each process, so that reading in
    order reads each group once. No file stays open.

    Attributes:
        file: The parquet file.
        row_group: The group of rows that it lies in.
        row: Its row in that group, from 0.
        file_name: What the image is called.
    """

    file: Path
    row_group: int
    row: int
    file_name: str

    @property
    def name(self) -> str:
        """Where the image lies."""
        return f"{self.file_name} in {self.file} (row group {self.row_group}, row {self.row})"

    def read_bytes(self) -> bytes:
        """The encoded image, as it was put into the file.

        Raises:
            FileNotFoundError: The parquet file is gone.
            ValueError: It is damaged, or has no image there.
            ImportError: pyarrow is not installed.
        """
        value = _value(self.file, self.row_group, self.row)
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise ValueError(f"{self.name}: the column 'image' holds no image there")
        return data

    def read(self, *, apply_orientation: bool) -> Tensor:
        """`read_image`, with the errors of that and of `read_bytes`."""
        stream = BytesIO(self.read_bytes())
        stream.name = self.name
        return read_image(stream, apply_orientation=apply_orientation)


@dataclass(frozen=True)
class _Group:
    """A row group of a file as it is now; one that is put in the file's place is another."""

    file: Path
    version: tuple[int, int, int]
    number: int


_KEPT = 2  # row groups: two threads or two data sets side by side do not drive each other out

# Replaced as a whole and never changed, so that threads need no lock and a fork copies none.
_kept: tuple[tuple[_Group, Any], ...] = ()


def _value(file: Path, number: int, row: int) -> Any:
    """One value of the column `image`."""
    global _kept
    try:
        found = file.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no parquet file at {file}") from None
    group = _Group(file, (found.st_ino, found.st_size, found.st_mtime_ns), number)
    kept = _kept
    column = next((column for known, column in kept if known == group), None)
    if column is None:
        column = _read_column(group)
    _kept = ((group, column), *(entry for entry in kept if entry[0] != group))[:_KEPT]
    if row >= len(column):
        raise ValueError(f"{file} has no row {row} in its row group {number}")
    return column[row].as_py()


def _read_column(group: _Group) -> Any:
    """The encoded images of a row group, as an Arrow column."""
    with open_table(group.file) as table:
        if group.number >= table.num_row_groups or "image" not in table.schema_arrow.names:
            return ()
        # In batches: as one piece pyarrow takes no group of 2 GiB or more.
        batches = list(
            table.iter_batches(
                _BATCH, row_groups=[group.number], columns=["image"], use_threads=False
            )
        )
        return import_module("pyarrow").Table.from_batches(batches).column(0) if batches else ()
