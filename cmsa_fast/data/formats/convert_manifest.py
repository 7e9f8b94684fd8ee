"""Writes records of any form as a manifest, which `manifest` reads."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from itertools import count
from pathlib import Path, PurePath
from typing import Any

from tqdm import tqdm

from ...system.files import write_atomically
from ..errors import ErrorCollector, located
from ..images import ImageFile
from ..source import Reading
from ..types import EmbeddedImage, ImageSource, Record
from .conversion import Conversion, MaskSizes, SplitCounts, check_free, count_record, run_lengths
from .converted import Description, ImageFolders
from .manifest import ManifestLines


def write_manifest(
    reading: Reading, to: Path, *, origin: Mapping[str, str], copy_images: bool, errors: ErrorCollector
) -> Conversion:
    """Writes records as a manifest, with the arguments of `convert`; a record becomes one line.

    The mask is the union of the objects, as compressed run lengths. Images are copied to the folder
    `<name>-images` beside the manifest if `copy_images`, or if they have no file of their own. A path is
    relative to the manifest if the image lies below its folder, otherwise absolute.
    """
    images = _Images(to, copy_images)
    splits: dict[str, SplitCounts] = {}

    def write(path: Path) -> None:
        sizes, lines = MaskSizes(), ManifestLines(to)
        written = 0
        with path.open("wb") as file:
            for record in tqdm(reading.records, desc="convert", unit="record", dynamic_ncols=True):
                line = None
                with errors:
                    draft = _line(record, images.path(record.image), sizes)
                    with located(record.where):  # whatever the reader would refuse is refused here
                        read = lines.record(lines.parse(draft, written + 1), written + 1)
                        lines.check_numbers(read, written + 1)
                    line = draft
                if line is not None:  # an error of the disk is no damaged record
                    images.write()
                    file.write(line)
                    written += 1
                    count_record(splits, record)
        if not splits:
            raise ValueError(f"{reading.title} has no record that can be converted")
        check_free(to)

    try:
        write_atomically(to, write)
    except BaseException:
        images.remove()
        raise
    folders = tuple(ImageFolders((folder,), ()) for folder in sorted(images.folders))
    description = Description(
        reading.title, origin, reading.published_expressions, folders, tuple(errors.messages)
    )
    return Conversion(to, description, splits, images.copied, to.stat().st_size)


def _line(record: Record, image: str, sizes: MaskSizes) -> bytes:
    size = sizes.of(record)
    numbers, texts = zip(*record.expressions, strict=True) if record.expressions else ((), ())
    one = len(texts) == 1
    entry: dict[str, Any] = {
        "image": image,
        **({"expression": texts[0]} if one else {"expressions": texts}),
        "mask": None,
        "split": record.split,
        "image_id": record.image_id,
        "ref_id": record.ref_id,
        **({"sent_id": numbers[0]} if one else {"sent_ids": numbers}),
    }
    if record.objects:
        # An object that has lost its mask differs from none at all.
        entry["mask"] = [] if record.has_lost_mask or size is None else _readable(record.mask(*size))
    if size is not None and (ignored := record.ignore(*size)) is not None:
        entry["ignore"] = _readable(ignored)
    if record.size is not None and size is None:
        entry["height"], entry["width"] = record.size
    if record.kind:
        entry["kind"] = record.kind
    try:
        text = json.dumps(entry, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # unpaired surrogates, which pickles and JSON can hold
        text = json.dumps(entry).encode()
    return text + b"\n"


def _readable(mask: Any) -> dict[str, Any]:
    encoded = run_lengths(mask)
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


class _Images:
    """The paths of images in a manifest, and the folder of copied ones, which is made when it is needed."""

    def __init__(self, to: Path, copy_images: bool) -> None:
        self.folders: set[str] = set()  # of images that were not copied
        self.copied = 0
        self._base, self._copy_images = to.parent, copy_images
        self._folder = to.with_name(f"{to.stem}-images")
        self._made = False
        self._paths: dict[object, str] = {}
        self._checksums: dict[str, bytes] = {}  # by names in the folder
        self._pending: dict[str, bytes] = {}  # contents by names

    def path(self, image: ImageSource) -> str:
        """The path of an image in the manifest; `write` copies it if necessary."""
        if image not in self._paths:
            if isinstance(image, ImageFile):
                file = image.locate()
                self._paths[image] = (
                    self._copy(file.name, file.read_bytes()) if self._copy_images else self._link(file)
                )
            elif isinstance(image, EmbeddedImage):
                self._paths[image] = self._copy(image.file_name, image.read_bytes())
            else:
                raise TypeError(
                    f"{image.name} is an image of type {type(image).__name__}, which has neither a "
                    "file nor bytes to copy"
                )
        return self._paths[image]

    def write(self) -> None:
        """Writes the images whose paths were given since the last call."""
        if self._pending and not self._made:
            try:
                self._folder.mkdir()
            except FileExistsError:
                raise FileExistsError(
                    f"{self._folder}, the folder for the images of the manifest, exists and is never overwritten"
                ) from None
            self._made = True
        for name, content in self._pending.items():
            (self._folder / name).write_bytes(content)
        self.copied += len(self._pending)
        self._pending.clear()

    def remove(self) -> None:
        """Removes the folder if it was made here."""
        if self._made:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _link(self, file: Path) -> str:
        path = Path(os.path.abspath(file))
        self.folders.add(str(path.parent))
        return str(path.relative_to(self._base) if path.is_relative_to(self._base) else path)

    def _copy(self, file_name: str, content: bytes) -> str:
        """The path of a copy; images of one name and other content get a number."""
        last = PurePath(file_name.replace("\\", "/")).name
        plain = PurePath("image" if last in ("", "..") else last)
        checksum = hashlib.sha256(content).digest()
        names = (plain.name if n == 1 else f"{plain.stem}-{n}{plain.suffix}" for n in count(1))
        name = next(name for name in names if self._checksums.get(name) in (None, checksum))
        if name not in self._checksums:
            self._checksums[name] = checksum
            self._pending[name] = content
        return f"{self._folder.name}/{name}"
