"""The Parquet files of a data set, their rows and the images inside them."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow.fs import LocalFileSystem
from torch import Tensor

from ...errors import ErrorCollector, one_line
from ...images import read_image
from ...source import Source
from ..parsing import Where, place
from ..refer_layout import check_names

_logger = logging.getLogger(__name__)

_WHAT_BELONGS = (
    "The root of a Parquet data set is the repository's folder, its folder 'data', or one file; the files "
    "are named <split>-00000-of-0000N.parquet, optionally with a suffix after the N"
)
_PART = re.compile(r"(.+?)-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?")
_BATCH = 256  # rows decoded at once
# Buffered: otherwise a whole column of a row group is read at once.
_FORMAT = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(
        use_buffered_stream=True, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True
    )
)


def dataset_of(name: str) -> str | None:
    """The data set that a repository is named after: "jxu124--refcoco_plus" after "refcoco+"."""
    dataset = name.lower().rpartition("--")[2].replace("_plus", "+").replace("plus", "+")
    return dataset if dataset in ("refcoco", "refcoco+", "refcocog") else None


def find_files(source: Source) -> dict[str, list[Path]]:
    """Finds the Parquet files of a data set, at least one, and groups them by split.

    The root is one file, or a repository's folder, which has the files itself or in its folder `data`; or a
    folder of several repositories, one of which `source.name` names.
    """
    root, name = source.root, source.name
    if root.is_file():
        return {_part(root)[0]: [root]}
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder or file {root}. {_WHAT_BELONGS}.")
    base, dataset = root, dataset_of(name)
    if name:
        check_names(name=name)
        alike = (one for one in sorted(root.iterdir()) if dataset and dataset_of(one.name) == dataset)
        base = next((one for one in (root / name, *alike) if one.is_dir()), root)
        if base == root and dataset is None:
            raise ValueError(f"name {name!r} is neither a folder of {root} nor RefCOCO, RefCOCO+ or RefCOCOg")
    files: dict[str, list[Path]] = {}
    for folder in (base, base / "data"):
        for path in sorted(folder.glob("*.parquet")):
            files.setdefault(_part(path)[0], []).append(path)
        if files:
            return files
    inside = {file.relative_to(root).parts[0] for one in ("*", "*/data") for file in root.glob(f"{one}/*.parquet")}
    hint = f" Its {', '.join(sorted(inside))} has some: give its name." if inside else ""
    raise FileNotFoundError(f"there is no Parquet file in {base} or {base / 'data'}.{hint} {_WHAT_BELONGS}.")


def choose_files(
    source: Source, split: str | None, files: Mapping[str, list[Path]], fits: Callable[[str], bool]
) -> dict[str, list[Path]]:
    """The files whose split `fits`; a root that is one file is used as it is.

    ValueError if there is none or a part exists twice, FileNotFoundError if one is missing.
    """
    folder = next(iter(files.values()))[0].parent
    chosen = {name: paths for name, paths in files.items() if fits(name)}
    if not chosen:
        wanted = "a split" if split is None else f"split {split!r}"
        of = " ".join(part for part in (source.name, source.split_by) if part)
        raise ValueError(f"{wanted}{f' of {of}' if of else ''} is not in {folder}, which has {', '.join(files)}")
    for name, paths in chosen.items():
        _, numbers, counts = zip(*map(_part, paths), strict=True)
        if source.root.is_file():
            if counts[0] > 1:
                _logger.warning("%s is one of %d parts of its split", source.root, counts[0])
        elif len(set(numbers)) < len(numbers) or len(set(counts)) > 1:
            raise ValueError(
                f"{folder} has parts of split {name!r} from more than one copy "
                f"({', '.join(path.name for path in paths)}): keep those of one data set, or "
                "give one file as the root"
            )
        elif missing := sorted(set(range(counts[0])) - set(numbers)):
            raise FileNotFoundError(
                f"{folder} lacks {len(missing)} of the {counts[0]} parts of split {name!r}; the first "
                f"missing file is {name}-{missing[0]:05d}-of-{counts[0]:05d}*.parquet"
            )
    return chosen


def _part(path: Path) -> tuple[str, int, int]:
    """The split of a file, which part of it (from 0), and of how many."""
    match = _PART.fullmatch(path.stem)
    return (match[1], int(match[2]), int(match[3])) if match else (path.stem, 0, 1)


@contextmanager
def open_table(path: Path) -> Iterator[ds.ParquetFileFragment]:
    """A Parquet file, which is open only while it is read; errors of pyarrow in the block become ValueError."""
    try:
        yield _FORMAT.make_fragment(str(path), LocalFileSystem())
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no Parquet file at {path}") from None
    except (pa.lib.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # an error of the disk
        raise ValueError(f"{path} is no Parquet file, is damaged, or truncated: {one_line(error)}") from error


class Row(NamedTuple):
    """A row of a Parquet file."""

    where: Where  # file and row, for messages
    values: dict[str, Any]  # of all columns but `image`
    image: Callable[[str], EncodedImage]  # of the column `image`, by the name to give it


def read_rows(path: Path, columns: Sequence[str], errors: ErrorCollector) -> Iterator[Row]:
    """Reads a file without its images, a few rows at a time, with the errors of `open_table`.

    ValueError if the file lacks one of `columns`. Rows with text that is not UTF-8 are added to `errors`.
    """
    with open_table(path) as table:
        names = table.physical_schema.names
        if missing := [name for name in columns if name not in names]:
            raise ValueError(
                f"{path} has no column {missing[0]!r}, unlike other files of its folder; it has {', '.join(names)}"
            )
        wanted = [name for name in names if name != "image"]
        number = count()
        for group, part in enumerate(table.split_by_row_group()):
            batches = part.to_batches(columns=wanted, batch_size=_BATCH, use_threads=False)
            rows = (batch.slice(i, 1) for batch in batches for i in range(batch.num_rows))
            for i, row in enumerate(rows):
                where = (path, "row", next(number))
                try:
                    values = row.to_pylist()[0]
                except UnicodeDecodeError as error:
                    errors.add(ValueError(f"{place(where)}: its text is not UTF-8 ({error})"))
                else:
                    yield Row(where, values, partial(EncodedImage, path, group, i))


@dataclass(frozen=True)
class EncodedImage:
    """An image in the column `image` of a Parquet file, read when it is needed.

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
    column: Sequence[Any] = ()
    with open_table(file) as table:
        for part in table.split_by_row_group()[group : group + 1]:
            # In batches: pyarrow cannot read a group of 2 GiB or more in one piece.
            column = part.to_table(columns=["image"], batch_size=64, use_threads=False)["image"]
    return column
