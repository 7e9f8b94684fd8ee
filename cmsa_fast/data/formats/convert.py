"""Writes a data set of any form as one Parquet table, which `converted` reads, or as a manifest."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ...system.files import write_atomically
from ..errors import ErrorCollector
from ..images import ImageFile
from ..source import Reading, Source, read_records
from ..types import EmbeddedImage, ImageSource, ObjectMask, Record
from .conversion import Conversion, MaskSizes, SplitCounts, check_free, count_record, run_lengths
from .convert_manifest import write_manifest
from .converted import METADATA_KEY, SCHEMA, Description, ImageFolders, TableRecords
from .manifest import SUFFIX as MANIFEST

_GROUP_ROWS = 16_384
_GROUP_BYTES = 4 << 20  # of embedded images: a group is read to decode one of them


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
        to: The file to write, `<name>.parquet` or `<name>.jsonl` (a manifest); must not exist.
        splits: The splits to convert, by their names in this form. Empty: all.
        copy_images: Embed the bytes of the image files, or copy them beside the manifest. Otherwise images are
            read from where they are now; images that are embedded in other files are always copied.
        errors: Collects the records that cannot be used. None: the first one is raised.

    Returns:
        What was written. The file exists as a whole or not at all.

    Raises:
        FileExistsError: `to` exists, or the folder beside a manifest for images.
        FileNotFoundError, ValueError, ImportError: As `read_records`; two of the splits share records.
    """
    check_free(to)
    errors = errors or ErrorCollector(strict=True)
    readings = [read_records(source, split, errors) for split in (splits or (None,))]
    seen: dict[str, str] = {}
    for asked, reading in zip(splits, readings, strict=False):
        for split in sorted({record.split for record in reading.records}):
            if split in seen:
                raise ValueError(
                    f"splits {seen[split]!r} and {asked!r} share the records of {split!r}, which "
                    "would be converted twice: give one of them"
                )
            seen[split] = asked
    reading = Reading(
        [record for reading in readings for record in reading.records],
        " and ".join(dict.fromkeys(reading.title for reading in readings)),
        {name: n for reading in readings for name, n in reading.published_expressions.items()},
    )
    return convert_records(
        reading, to, origin=_origin(source, readings[0]), copy_images=copy_images, errors=errors
    )


def convert_records(
    reading: Reading,
    to: Path,
    *,
    origin: Mapping[str, str],
    copy_images: bool = False,
    errors: ErrorCollector | None = None,
) -> Conversion:
    """Writes records as a converted data set, with the arguments of `convert`.

    Each mask is decoded once, at the size that the record states or else at the image's own, and written
    as compressed run lengths. The messages of `errors` are written into the metadata of a Parquet table.
    """
    to = to.resolve()
    errors = errors or ErrorCollector(strict=True)
    to.parent.mkdir(parents=True, exist_ok=True)
    if to.suffix == MANIFEST:
        return write_manifest(reading, to, origin=origin, copy_images=copy_images, errors=errors)
    table = _Table(to.parent, copy_images)

    def describe() -> Description:
        folders, messages = tuple(table.folders), tuple(errors.messages)
        return Description(reading.title, origin, reading.published_expressions, folders, messages)

    def write(path: Path) -> None:
        options = {"compression": "zstd", "write_page_checksum": True}
        with pq.ParquetWriter(path, SCHEMA, **options) as file:
            for record in tqdm(reading.records, desc="convert", unit="record", dynamic_ncols=True):
                with errors:
                    table.add(record)
                    count_record(table.splits, record)
                if table.is_full:
                    file.write_table(table.take())
            if not table.splits:
                raise ValueError(f"{reading.title} has no record that can be converted")
            file.write_table(table.take())
            file.add_key_value_metadata({METADATA_KEY: describe().to_json()})
        check_free(to)

    write_atomically(to, write)
    return Conversion(to, describe(), table.splits, len(table.embedded), to.stat().st_size)


class _Table:
    """Turns records into the rows of the next row group."""

    def __init__(self, folder: Path, copy_images: bool) -> None:
        self.splits: dict[str, SplitCounts] = {}
        self.folders: list[ImageFolders] = []
        self.embedded: dict[object, int] = {}  # the row with the bytes, by what they are a copy of
        self._folder, self._copy_images = folder, copy_images
        self._rows: list[pa.RecordBatch] = []
        self._written = self._bytes = 0
        self._mask_sizes = MaskSizes()
        self._counted: dict[tuple[str, int], ObjectMask] = {}  # objects with dropped parts

    def add(self, record: Record) -> None:
        """Adds a record as a whole, or raises and adds nothing."""
        size = self._mask_sizes.of(record)
        image, copied = self._image_columns(record.image)
        try:
            row = {
                "ref_id": record.ref_id,
                "image_id": record.image_id,
                "split": record.split,
                **_size_columns(record.size),
                "sentences": [{"sent_id": sent_id, "sent": sent} for sent_id, sent in record.expressions],
                "masks": [self._mask_columns(one, size, record.split) for one in record.objects],
                "ignored": [self._mask_columns(one, size, record.split) for one in record.ignored],
                "kind": record.kind,
                **image,
            }
            batch = pa.RecordBatch.from_pylist([row], SCHEMA)
        except (ValueError, OverflowError) as error:  # OverflowError: a number of over 64 bits
            raise ValueError(f"{record.where}: ref_id {record.ref_id}: {error}") from error
        if copied is not None:
            self.embedded.setdefault(copied, self._written + len(self._rows))
        self._bytes += len(image.get("image") or b"")
        self._rows.append(batch)
        self._counted |= {(record.split, id(one)): one for one in record.objects if one.dropped}

    @property
    def is_full(self) -> bool:
        """Whether the rows fill a row group."""
        return len(self._rows) >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES

    def take(self) -> pa.Table:
        """The rows since the last call."""
        rows = pa.Table.from_batches(self._rows, SCHEMA).combine_chunks()
        self._written += len(self._rows)
        self._rows, self._bytes = [], 0
        return rows

    def _mask_columns(self, one: ObjectMask, size: tuple[int, int] | None, split: str) -> dict[str, Any]:
        # Parts of an object that several records share are counted at its first record.
        dropped = 0 if (split, id(one)) in self._counted else one.dropped
        if one.is_empty or size is None:
            return {"counts": b"", **_size_columns(one.size), "dropped": dropped}
        return {**run_lengths(one.decode(*size)), **_size_columns(size), "dropped": dropped}

    def _image_columns(self, image: ImageSource) -> tuple[dict[str, Any], object]:
        """The columns of an image, and what its embedded bytes are a copy of."""
        key: object
        read: Callable[[], bytes]
        if isinstance(image, ImageFile):
            if not self._copy_images:
                folders = ImageFolders.of(image.folders, self._folder)
                if folders not in self.folders:
                    self.folders.append(folders)
                folder = self.folders.index(folders)
                return {"file_name": image.file_name, "folder": folder}, None
            path = image.locate()
            key, read = os.path.realpath(path), path.read_bytes
        elif isinstance(image, EmbeddedImage):
            key, read = image, image.read_bytes
        else:
            raise TypeError(
                f"{image.name} is an image of type {type(image).__name__}, which has neither a "
                "file nor bytes to embed"
            )
        if (row := self.embedded.get(key)) is not None:
            return {"file_name": image.file_name, "image_row": row}, key
        row = self._written + len(self._rows)
        return {"file_name": image.file_name, "image_row": row, "image": read()}, key


def _size_columns(size: tuple[int, int] | None) -> dict[str, int | None]:
    height, width = size or (None, None)
    return {"height": height, "width": width}


def _origin(source: Source, reading: Reading) -> Mapping[str, str]:
    """Where the records come from, for the metadata."""
    if isinstance(reading.records, TableRecords):
        return reading.records.origin
    fields = {key: getattr(source, key) for key in ("form", "name", "split_by", "text")}
    return {**fields, "root": str(source.root.resolve())}
