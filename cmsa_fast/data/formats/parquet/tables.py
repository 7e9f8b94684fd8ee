"""Parquet files: what they hold, row by row.

pyarrow reads them; it is an extra of this package and imported on use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ...errors import one_line
from ..parsing import Where, place

_BATCH = 256  # rows taken from a file at once; their images are not among what is read
_READ_AHEAD = 1 << 20  # bytes; without it a whole column of a row group is read at once


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a parquet file.

    Attributes:
        path: The file.
        number: Its number in the file, from 0.
        group: The row group it lies in.
        number_in_group: Its number in that group, from 0.
        content: What its columns hold, or what is wrong with it.
    """

    path: Path
    number: int
    group: int
    number_in_group: int
    content: dict[str, Any] | ValueError

    @property
    def where(self) -> Where:
        """The file and the row, for messages."""
        return (self.path, "row", self.number)

    def values(self) -> dict[str, Any]:
        """The value of every column; ValueError where one cannot be decoded."""
        if isinstance(self.content, ValueError):
            raise ValueError(f"{place(self.where)}: {self.content}") from self.content
        return self.content


@contextmanager
def open_table(path: Path) -> Iterator[Any]:
    """Opens a parquet file; what pyarrow finds wrong with it meanwhile becomes a ValueError.

    Args:
        path: The file.

    Yields:
        A `pyarrow.parquet.ParquetFile`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no parquet file, is damaged, or cut short.
        ImportError: pyarrow is not installed.
    """
    try:
        pyarrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise ImportError(
            "parquet files are read by pyarrow, which is not installed: "
            f"pip install 'cmsa_fast[parquet]' ({error})"
        ) from error
    try:
        with parquet.ParquetFile(path, buffer_size=_READ_AHEAD) as table:
            yield table
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no parquet file at {path}") from None
    except (pyarrow.lib.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's fault
        raise ValueError(
            f"{path} is no parquet file, is damaged, or cut short: {one_line(error)}"
        ) from error


def column_names(path: Path) -> tuple[str, ...]:
    """The names of a file's columns.

    Raises:
        FileNotFoundError, ValueError, ImportError: As `open_table`.
    """
    with open_table(path) as table:
        return tuple(table.schema_arrow.names)


def read_rows(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Row]:
    """Reads some columns of a file, a few rows at a time.

    Args:
        path: The file.
        columns: Those that must be there; no other column is touched.
        optional: Those that are read where they are there.

    Yields:
        Every row, in order.

    Raises:
        ValueError: The file lacks a column, or is damaged.
        FileNotFoundError, ImportError: As `open_table`.
    """
    with open_table(path) as table:
        names = table.schema_arrow.names
        missing = [name for name in columns if name not in names]
        if missing:
            raise ValueError(
                f"{path} has no column {missing[0]!r}, unlike other files of its folder; it has "
                f"{', '.join(names)}"
            )
        wanted = [*columns, *(name for name in optional if name in names)]
        number = 0
        for group in range(table.num_row_groups):
            first = number
            batches = table.iter_batches(
                _BATCH, row_groups=[group], columns=wanted, use_threads=False
            )
            for batch in batches:
                for content in _contents(batch):
                    yield Row(path, number, group, number - first, content)
                    number += 1


def _contents(batch: Any) -> list[dict[str, Any] | ValueError]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        return [_content(batch, i) for i in range(batch.num_rows)]


def _content(batch: Any, i: int) -> dict[str, Any] | ValueError:
    try:
        return batch.slice(i, 1).to_pylist()[0]
    except UnicodeDecodeError as error:
        return ValueError(f"its text is not UTF-8 ({error})")
