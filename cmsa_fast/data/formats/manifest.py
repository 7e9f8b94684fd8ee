"""Manifests: data sets in one JSONL file, each line an image, its expressions and their mask.

docs/data.md describes the fields of a line.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ..errors import ErrorCollector, by
from ..images import ImageFile
from ..mask_files import PngMask
from ..masks import parse_segmentation
from ..source import Reading, Source
from ..types import ImageSource, ObjectMask, Record, RecordColumns
from .parsing import (
    Where,
    field,
    image_number,
    integer,
    kind,
    listing,
    paused_collection,
    place,
    read_size,
    string,
)
from .refer import missing_split
from .refer_layout import existing_folder

SUFFIX = ".jsonl"
_REQUIRED = ("image", "mask", "split")
_OPTIONAL = (
    *("expression", "expressions", "sent_id", "sent_ids", "ref_id", "image_id"),
    *("height", "width", "ignore", "kind"),
)
_KEYS = frozenset((*_REQUIRED, *_OPTIONAL))
_EXPRESSIONS = 10_000  # above the number of expressions of a line


@paused_collection()
def read_manifest(source: Source, split: str | None, errors: ErrorCollector) -> Reading:
    """Reads a manifest (`cmsa_fast.data.source.read_records`).

    The root is the file, or a folder with the file `<name>.jsonl`; without a name, the folder has one such file.
    Splits are matched by their exact names. Paths of images and masks are relative to the folder of the file or
    absolute; with `image_folder`, images are searched there instead, also by their mere name.

    Every line of the split is checked when the manifest is opened; the records are parsed again when they are
    accessed, so memory holds only their expressions and numbers.
    """
    for argument, value, only in (("split_by", source.split_by, ""), ("text", source.text, "sent")):
        if value != only:
            raise ValueError(f"{argument} is {value!r}, but a manifest has one version of splits and expressions")
    path = _find(source)
    lines = ManifestLines(path, None if source.image_folder is None else existing_folder(source.image_folder))
    splits: Counter[str] = Counter()
    records: list[Record] = []
    end = 0
    kept: list[tuple[int, int]] = []  # offset and number of each line in `columns`
    columns: list[RecordColumns] = []

    def pack() -> None:
        columns.append(RecordColumns.from_records(records))
        records.clear()

    with path.open("rb") as file:
        version = _version(file.fileno())
        for number, line in enumerate(file, start=1):
            start, end = end, end + len(line)
            if line.isspace():
                continue
            with errors:
                entry = lines.parse(line, number)
                recorded = string(entry, "split", (path, "line", number))
                splits[recorded] += 1
                if split in (None, recorded):
                    record = lines.record(entry, number)
                    lines.check_numbers(record, number)
                    records.append(record)
                    kept.append((start, number))
            if len(records) == 1024:
                pack()
    pack()
    if not kept:
        raise ValueError(missing_split(split, path, splits.elements()))
    index = np.array(kept, np.int64).reshape(-1, 2)
    return Reading(ManifestRecords(lines, version, index, _concatenated(columns)), path.stem)


def is_manifest(path: Path) -> bool:
    """Whether a JSONL file is a manifest, by the keys of its first line; one that is damaged there counts."""
    with path.open("rb") as file:
        first = next((line for line in file if not line.isspace()), b"")
    try:
        entry = json.loads(first.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return bool(first)
    return not isinstance(entry, dict) or "image" in entry


class ManifestLines:
    """Parses the lines of a manifest, and recognises numbers that two of them share.

    Args:
        path: The manifest.
        image_folder: The folder of the images, if they are not where the manifest says.
    """

    def __init__(self, path: Path, image_folder: Path | None = None) -> None:
        self.path = path
        self._image_folder = image_folder
        self._folders: dict[tuple[bool, str], tuple[Path, ...]] = {}
        self._sentences: dict[tuple[str, int], int] = {}  # line of each split and sent_id
        self._images: dict[tuple[str, int], tuple[ImageSource, int]] = {}  # and line, of each split and image_id

    def parse(self, line: bytes, number: int) -> dict[str, Any]:
        """Parses a line as JSON; ValueError for anything but an object with known keys."""
        where = place((self.path, "line", number))
        try:
            entry = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except json.JSONDecodeError as error:  # it says "line 1" of every line
            raise ValueError(f"{where} is not JSON: {error.msg} at character {error.pos + 1}") from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON in UTF-8: {error}") from error
        if not isinstance(entry, dict):
            raise ValueError(f"{where} is {kind(entry)} where a dictionary is expected")
        if unknown := entry.keys() - _KEYS:
            raise ValueError(
                f"{where} has the unknown key {min(unknown)!r}; a manifest has {', '.join(_REQUIRED)}, and "
                f"optionally {', '.join(_OPTIONAL)}"
            )
        return entry

    def record(self, entry: dict[str, Any], number: int) -> Record:
        """The record of a parsed line; ValueError if a field has the wrong type."""
        where: Where = (self.path, "line", number)
        name = string(entry, "image", where)
        mask = field(entry, "mask", where)
        ignore = entry.get("ignore")
        size = read_size(entry, where) if "height" in entry or "width" in entry else None
        record = Record(
            image=ImageFile(*self._file(name, "image", where)),
            size=size,
            objects=() if mask is None else (self._mask(mask, "mask", where),),
            expressions=_expressions(entry, number, where),
            image_id=integer(entry, "image_id", where) if "image_id" in entry else _image_id(name),
            ref_id=integer(entry, "ref_id", where) if "ref_id" in entry else number,
            split=string(entry, "split", where),
            where=place(where),
            ignored=() if ignore is None else (self._mask(ignore, "ignore", where),),
            kind=string(entry, "kind", where) if "kind" in entry else "",
        )
        sizes = [size, *(one.size for one in (*record.objects, *record.ignored))]
        if len(different := dict.fromkeys(filter(None, sizes))) > 1:
            raise ValueError(
                f"{place(where)} contradicts itself: its sizes (height x width) are "
                f"{' and '.join(map(by, different))}"
            )
        return record

    def check_numbers(self, record: Record, number: int) -> None:
        """Raises ValueError if the split has one of its sent_ids twice, or its image_id for another image.

        Predictions are found by their sent_id, and images are encoded once for each image_id.
        """
        image, line = self._images.setdefault((record.split, record.image_id), (record.image, number))
        if image != record.image:
            raise ValueError(
                f"{record.where} has the image_id {record.image_id} of line {line}, which has another image"
            )
        seen: set[int] = set()
        for sent_id, _ in record.expressions:
            first = number if sent_id in seen else self._sentences.get((record.split, sent_id))
            if first is not None:
                raise ValueError(f"{record.where} repeats the sent_id {sent_id} of line {first}")
            seen.add(sent_id)
        self._sentences.update(((record.split, sent_id), number) for sent_id in seen)

    def _mask(self, value: Any, key: str, where: Where) -> ObjectMask:
        if isinstance(value, str):
            return PngMask(*self._file(value, key, where))
        try:
            return parse_segmentation(value)
        except ValueError as error:
            raise ValueError(f"{place(where)}: {key}: {error}") from error

    def _file(self, name: str, key: str, where: Where) -> tuple[tuple[Path, ...], str]:
        """The folders to search for a file that a line names, and its mere name."""
        parent, last = os.path.split(name.replace("\\", "/"))
        if last in ("", ".", ".."):
            raise ValueError(f"{place(where)} has {name!r} as its {key!r}, which is not the name of a file")
        elsewhere = self._image_folder if key == "image" else None
        known = (elsewhere is None, parent)
        if known not in self._folders:
            base = self.path.parent if elsewhere is None else elsewhere
            self._folders[known] = (base / parent, *([] if elsewhere is None else [elsewhere]))
        return self._folders[known], last


class ManifestRecords(Sequence[Record]):
    """The records of a manifest, parsed when they are accessed.

    `index` has the offset and the number of each line, int64 `[records, 2]`. ValueError if the file has changed.
    """

    def __init__(
        self, lines: ManifestLines, version: tuple[int, ...], index: NDArray[np.int64], columns: RecordColumns
    ) -> None:
        self._lines = ManifestLines(lines.path, lines._image_folder)  # without the numbers of all lines
        self._version, self._index, self._columns = version, index, columns

    def __len__(self) -> int:
        return len(self._index)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return list(self._read(self._index[index]))
        row = range(len(self))[index]  # IndexError, negative indices
        return next(self._read(self._index[row : row + 1]))

    def __iter__(self) -> Iterator[Record]:
        return self._read(self._index)

    def columns(self) -> RecordColumns:
        """The columns of all records (`cmsa_fast.data.types.ColumnarRecords`)."""
        return self._columns

    def _read(self, index: NDArray[np.int64]) -> Iterator[Record]:
        path = self._lines.path
        with path.open("rb") as file:
            if _version(file.fileno()) != self._version:
                raise ValueError(f"{path} has changed since it was opened: open it again")
            for offset, number in index.tolist():
                file.seek(offset)
                yield self._lines.record(self._lines.parse(file.readline(), number), number)


def _expressions(entry: dict[str, Any], number: int, where: Where) -> tuple[tuple[int, str], ...]:
    if ("expression" in entry) == ("expressions" in entry):
        raise ValueError(f"{place(where)} must have one of 'expression' and 'expressions'")
    one = "expression" in entry
    texts = [string(entry, "expression", where)] if one else listing(entry, "expressions", where)
    key, wrong = ("sent_id", "sent_ids") if one else ("sent_ids", "sent_id")
    if wrong in entry:
        raise ValueError(
            f"{place(where)} has {wrong!r}, which does not belong to {'expression' if one else 'expressions'!r}"
        )
    if not 0 < len(texts) <= _EXPRESSIONS:
        raise ValueError(f"{place(where)} has {len(texts)} expressions, not 1 to {_EXPRESSIONS}")
    if not one:
        for i, text in enumerate(texts):
            string({"text": text}, "text", (*where, "expression", i))
    if key not in entry:
        return tuple((number * _EXPRESSIONS + i, text) for i, text in enumerate(texts))
    numbers = [entry[key]] if one else listing(entry, key, where)
    if len(numbers) != len(texts):
        raise ValueError(f"{place(where)} has {len(numbers)} sent_ids for {len(texts)} expressions")
    return tuple((integer({key: n}, key, where), text) for n, text in zip(numbers, texts, strict=True))


def _image_id(name: str) -> int:
    """COCO's number, or one that depends on the path alone."""
    number = image_number(os.path.basename(name.replace("\\", "/")))
    return number if number >= 0 else image_number(name)


def _concatenated(columns: Sequence[RecordColumns]) -> RecordColumns:
    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(part, name) for part in columns])

    return RecordColumns(
        image_ids=joined("image_ids"),
        names_nothing=joined("names_nothing"),
        has_lost_mask=joined("has_lost_mask"),
        degenerate_parts=joined("degenerate_parts"),
        lengths=joined("lengths"),
        sent_ids=joined("sent_ids"),
        expressions=[one for part in columns for one in part.expressions],
    )


def _version(file: int) -> tuple[int, ...]:
    status = os.fstat(file)
    return status.st_ino, status.st_size, status.st_mtime_ns


def _find(source: Source) -> Path:
    root, name = source.root, source.name
    if root.is_file():
        return root
    if not root.is_dir():
        raise FileNotFoundError(f"there is no manifest or folder {root}")
    there = sorted(file.stem for file in root.glob(f"*{SUFFIX}"))
    chosen = name or (there[0] if len(there) == 1 else "")
    if chosen not in there:
        what = f"no {name}{SUFFIX}" if name else f"{len(there)} files *{SUFFIX} and name says none"
        raise FileNotFoundError(f"{root} has {what}; manifests in it are {', '.join(there) or 'none'}")
    return root / f"{chosen}{SUFFIX}"
