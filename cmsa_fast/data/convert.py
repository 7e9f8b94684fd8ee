"""Writes a data set of any form as a converted one (`cmsa_fast.data.converted` reads it)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from safetensors.numpy import save
from tqdm import tqdm

from cmsa_fast.data.archives import staged
from cmsa_fast.data.converted_files import (
    DESCRIPTION,
    Description,
    SplitEntry,
    encode_text,
    read_description,
)
from cmsa_fast.data.picture_store import PictureStore
from cmsa_fast.data.problems import Problems
from cmsa_fast.data.record import ObjectMask, Record
from cmsa_fast.data.source import Reading, Source, read_records

_UNKNOWN = (-1, -1)


@dataclass(frozen=True)
class Conversion:
    """What was written.

    Attributes:
        folder: The converted data set.
        description: What its `dataset.json` says.
        record_bytes: Size of everything but the pictures.
        pictures_written: Number of picture files in the folder.
        picture_bytes: Their size.
    """

    folder: Path
    description: Description
    record_bytes: int
    pictures_written: int
    picture_bytes: int


def convert(
    source: Source,
    to: Path,
    *,
    splits: Sequence[str] = (),
    copy_pictures: bool = False,
    problems: Problems | None = None,
) -> Conversion:
    """Converts a data set.

    Args:
        source: The data set.
        to: The folder to make; must be absent or empty.
        splits: The splits to convert, as the form names them. None named: all.
        copy_pictures: Copy the picture files into the folder, byte for byte. Otherwise they are
            found where they lie; pictures inside other files are written in either case.
        problems: Takes the records that cannot be used. None: the first one is an error.

    Returns:
        What was written. The folder is there as a whole, or not at all.

    Raises:
        FileExistsError: `to` is not empty.
        NotADirectoryError: `to` is a file.
        FileNotFoundError, ValueError, ImportError: As `read_records`, and where a record cannot be
            used (see `problems`) or two of the splits share records.
    """
    to = _free_folder(to)
    problems = problems or Problems(strict=True)
    readings = [read_records(source, split, problems) for split in (splits or (None,))]
    seen: dict[str, str] = {}
    for asked, reading in zip(splits, readings, strict=False):
        for split in sorted({record.split for record in reading.records}):
            if split in seen:
                raise ValueError(
                    f"splits {seen[split]!r} and {asked!r} share the records of {split!r}, which "
                    "would be converted twice: name one of them"
                )
            seen[split] = asked
    reading = Reading(
        [record for reading in readings for record in reading.records],
        " and ".join(dict.fromkeys(reading.title for reading in readings)),
        {name: n for reading in readings for name, n in reading.published_sentences.items()},
    )
    origin, earlier = _origin(source)
    return convert_records(
        reading,
        to,
        origin=origin,
        earlier_problems=earlier,
        copy_pictures=copy_pictures,
        problems=problems,
    )


def convert_records(
    reading: Reading,
    to: Path,
    *,
    origin: Mapping[str, str],
    earlier_problems: Sequence[str] = (),
    copy_pictures: bool = False,
    problems: Problems | None = None,
) -> Conversion:
    """Writes records as a converted data set; as `convert`, whose arguments these are.

    Masks are drawn once, at the size that the records give, else at the picture's own, and kept as
    one run-length code for each object. Objects that records share stay shared.

    Args:
        reading: The records, of one split or several.
        to: As for `convert`.
        origin: What `dataset.json` is to say of where the records come from.
        earlier_problems: What records the origin itself lacks, one line each.
        copy_pictures: As for `convert`.
        problems: As for `convert`.

    Raises:
        FileExistsError, NotADirectoryError: As `convert`.
        TypeError, ValueError, OSError: A record cannot be written (see `problems`), or none can.
    """
    to = _free_folder(to)
    problems = problems or Problems(strict=True)
    tables: dict[str, _SplitTable] = {}
    with staged(to) as folder:
        store = PictureStore(folder, to, copy=copy_pictures)
        for order, record in enumerate(
            tqdm(reading.records, desc="convert", unit="record", dynamic_ncols=True)
        ):
            with problems:
                if record.split not in tables:
                    tables[record.split] = _SplitTable(store)
                tables[record.split].add(order, record)
            store.write()
        entries: dict[str, SplitEntry] = {}
        for split, table in tables.items():
            if table.references:
                file = _file_name(split, (entry.file for entry in entries.values()))
                entries[split] = table.write(folder / file)
        if not entries:
            raise ValueError(f"{reading.title} has no record that can be converted")
        description = Description(
            title=reading.title,
            origin=origin,
            published_sentences=reading.published_sentences,
            picture_folders=tuple(store.folders),
            splits=entries,
            problems=(*earlier_problems, *problems.messages),
        )
        text = json.dumps(description.as_json(), indent=1) + "\n"
        (folder / DESCRIPTION).write_text(text, encoding="ascii")
        record_bytes = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    return Conversion(to, description, record_bytes, store.written, store.written_bytes)


class _SplitTable:
    """The columns of one split, filled record by record."""

    def __init__(self, store: PictureStore) -> None:
        self._store = store
        self._rows: list[tuple[int, int, int, int]] = []  # ref_id, image_id, order, picture
        self._sizes: list[tuple[int, int]] = []
        self._sent_ids: list[int] = []
        self._texts: list[bytes] = []
        self._sentence_counts: list[int] = []
        self._objects: list[int] = []
        self._object_counts: list[int] = []
        self._masks: list[bytes] = []
        self._mask_rows: list[tuple[int, int, int]] = []  # height, width, dropped
        self._mask_places: dict[tuple[int, tuple[int, int]], int] = {}
        self._kept: list[ObjectMask] = []  # an identity stays one as long as its object lives
        self._picture_places: dict[tuple[int, str], int] = {}

    @property
    def references(self) -> int:
        """Number of records."""
        return len(self._rows)

    def add(self, order: int, record: Record) -> None:
        """Takes a record as a whole, or raises and takes nothing of it."""
        texts = [encode_text(sentence) for _, sentence in record.sentences]
        for number in (record.ref_id, record.image_id, *(entry[0] for entry in record.sentences)):
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
        place = self._store.place(record.picture)
        for key, (one, counts) in new.items():
            self._mask_places[key] = len(self._masks)
            self._masks.append(counts)
            self._mask_rows.append((*key[1], one.dropped))
            self._kept.append(one)
        picture = self._picture_places.setdefault(place, len(self._picture_places))
        self._rows.append((record.ref_id, record.image_id, order, picture))
        self._sizes.append(record.size or _UNKNOWN)
        self._sent_ids += [sent_id for sent_id, _ in record.sentences]
        self._texts += texts
        self._sentence_counts.append(len(texts))
        self._objects += [self._mask_places[key] for key in keys]
        self._object_counts.append(len(keys))

    def write(self, path: Path) -> SplitEntry:
        """Writes the split's file."""
        rows = np.array(self._rows, np.int64)
        mask_rows = np.array(self._mask_rows, np.int64).reshape(-1, 3)
        names = [encode_text(name) for _, name in self._picture_places]
        columns = {
            "ref_id": rows[:, 0],
            "image_id": rows[:, 1],
            "order": rows[:, 2],
            "picture": rows[:, 3],
            "size": np.array(self._sizes, np.int32),
            "sentences_starts": _starts(self._sentence_counts),
            "objects_starts": _starts(self._object_counts),
            "objects": np.array(self._objects, np.int64),
            "sent_id": np.array(self._sent_ids, np.int64),
            "text": _joined(self._texts),
            "text_starts": _starts(map(len, self._texts)),
            "mask": _joined(self._masks),
            "mask_starts": _starts(map(len, self._masks)),
            "mask_size": mask_rows[:, :2].astype(np.int32),
            "mask_dropped": mask_rows[:, 2],
            "picture_name": _joined(names),
            "picture_name_starts": _starts(map(len, names)),
            "picture_folders": np.array([place for place, _ in self._picture_places], np.int64),
        }
        content = save({key: np.ascontiguousarray(value) for key, value in columns.items()})
        path.write_bytes(content)
        return SplitEntry(
            file=path.name,
            sha256=hashlib.sha256(content).hexdigest(),
            references=len(self._rows),
            sentences=len(self._texts),
            masks=len(self._masks),
            pictures=len(names),
        )

    def _size_to_draw(self, record: Record) -> tuple[int, int] | None:
        if all(one.is_empty for one in record.objects):
            return None
        return record.mask_size or self._store.size(record.picture)


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


def _file_name(split: str, others: Iterable[str]) -> str:
    """A file name for a split that no file system mistakes for another's."""
    taken = {name.lower() for name in others}
    stem = re.sub(r"[^A-Za-z0-9+_-]", "_", split)[:100] or "split"
    name, count = f"{stem}.safetensors", 1
    while name.lower() in taken:
        count += 1
        name = f"{stem}-{count}.safetensors"
    return name


def _free_folder(to: Path) -> Path:
    to = to.resolve()
    if to.exists() and not to.is_dir():
        raise NotADirectoryError(f"to must be a folder; {to} is a file")
    if to.is_dir() and any(to.iterdir()):
        raise FileExistsError(
            f"to must be a folder that is empty or not there yet: {to} has something in it, which "
            "is never overwritten"
        )
    return to


def _origin(source: Source) -> tuple[Mapping[str, str], Sequence[str]]:
    """What to say of where the records come from, and which records were lost before."""
    if source.form == "converted":
        folder = source.root / source.name if source.name else source.root
        description = read_description(folder)
        return description.origin, description.problems
    fields = {key: getattr(source, key) for key in ("form", "name", "split_by", "text")}
    return {**fields, "root": str(source.root.resolve())}, ()
