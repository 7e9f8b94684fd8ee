"""Writes a data set of any form as a converted one (`cmsa_fast.data.formats.converted.reader` reads it)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ....system.files import staged
from ...errors import ErrorCollector
from ...source import Reading, Source, read_records
from .description import DESCRIPTION, Description, SplitEntry, read_description
from .image_store import ImageStore
from .table import SplitTable


@dataclass(frozen=True)
class Conversion:
    """What was written.

    Attributes:
        folder: The converted data set.
        description: What its `dataset.json` says.
        record_bytes: Size of everything but the images.
        images_written: Number of image files in the folder.
        image_bytes: Their size.
    """

    folder: Path
    description: Description
    record_bytes: int
    images_written: int
    image_bytes: int


def convert(
    source: Source,
    to: Path,
    *,
    splits: Sequence[str] = (),
    copy_images: bool = False,
    errors: ErrorCollector | None = None,
) -> Conversion:
    """Converts a data set.

    Args:
        source: The data set.
        to: The folder to make; must be absent or empty.
        splits: The splits to convert, as the form names them. None named: all.
        copy_images: Copy the image files into the folder, byte for byte. Otherwise they are
            found where they lie; images inside other files are written in either case.
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
    errors = errors or ErrorCollector(strict=True)
    readings = [read_records(source, split, errors) for split in (splits or (None,))]
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
        {name: n for reading in readings for name, n in reading.published_expressions.items()},
    )
    origin, earlier = _origin(source)
    return convert_records(
        reading,
        to,
        origin=origin,
        earlier_problems=earlier,
        copy_images=copy_images,
        errors=errors,
    )


def convert_records(
    reading: Reading,
    to: Path,
    *,
    origin: Mapping[str, str],
    earlier_problems: Sequence[str] = (),
    copy_images: bool = False,
    errors: ErrorCollector | None = None,
) -> Conversion:
    """Writes records as a converted data set; as `convert`, whose arguments these are.

    Masks are drawn once, at the size that the records give, else at the image's own, and kept as
    one run-length code for each object. Objects that records share stay shared.

    Args:
        reading: The records, of one split or several.
        to: As for `convert`.
        origin: What `dataset.json` is to say of where the records come from.
        earlier_problems: What records the origin itself lacks, one line each.
        copy_images: As for `convert`.
        problems: As for `convert`.

    Raises:
        FileExistsError, NotADirectoryError: As `convert`.
        TypeError, ValueError, OSError: A record cannot be written (see `problems`), or none can.
    """
    to = _free_folder(to)
    errors = errors or ErrorCollector(strict=True)
    tables: dict[str, SplitTable] = {}
    with staged(to) as folder:
        store = ImageStore(folder, to, copy=copy_images)
        for order, record in enumerate(
            tqdm(reading.records, desc="convert", unit="record", dynamic_ncols=True)
        ):
            with errors:
                if record.split not in tables:
                    tables[record.split] = SplitTable(store)
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
            published_expressions=reading.published_expressions,
            image_folders=tuple(store.folders),
            splits=entries,
            errors=(*earlier_problems, *errors.messages),
        )
        text = json.dumps(description.as_json(), indent=1) + "\n"
        (folder / DESCRIPTION).write_text(text, encoding="ascii")
        record_bytes = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    return Conversion(to, description, record_bytes, store.written, store.written_bytes)


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
        return description.origin, description.errors
    fields = {key: getattr(source, key) for key in ("form", "name", "split_by", "text")}
    return {**fields, "root": str(source.root.resolve())}, ()
