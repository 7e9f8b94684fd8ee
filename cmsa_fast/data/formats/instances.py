"""Reads `instances.json` of REFER and gRefCOCO: masks of annotations, names and sizes of images."""

from __future__ import annotations

import time
from collections.abc import Callable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ..masks import MaskSource
from .parsing import Where, field, identifier, listing, load_json, paused_collection, read_mask, read_size, string

_SETTLED_NS = 2 * 10**9  # a younger file may change again without its time changing

_Entry = TypeVar("_Entry")


class Annotation(NamedTuple):
    """One object."""

    image_id: str | None  # None if not stated
    mask: MaskSource
    is_crowd: Any  # the field `iscrowd`, unchecked


class ImageEntry(NamedTuple):
    """One image."""

    file_name: str
    size: tuple[int, int]  # height and width


@dataclass(frozen=True)
class Instances:
    """The entries that references need, by identifier; a damaged entry is its error message."""

    annotations: dict[str, Annotation | str]
    images: dict[str, ImageEntry | str]
    unnamed: tuple[str, ...]  # error messages of entries without an identifier
    asked: tuple[Set[str], Set[str]]  # annotations and images that were looked for


_kept: tuple[object, Instances] | None = None  # the last file read


def read_instances(path: Path, annotations: Set[str], images: Set[str]) -> Instances:
    """Reads at least the entries with the given identifiers, as far as the file has them.

    The file may have hundreds of megabytes: the entries of the last file are kept in memory, so that a
    second split does not parse it again.
    """
    global _kept
    status = path.stat()
    version = (path.absolute(), status.st_ino, status.st_size, status.st_mtime_ns)
    if _kept is not None and _kept[0] == version:
        kept = _kept[1]
        if annotations <= kept.asked[0] and images <= kept.asked[1]:
            return kept
        annotations, images = annotations | kept.asked[0], images | kept.asked[1]
    _kept = None  # frees its memory before the next file is parsed
    instances = _parse(path, annotations, images)
    if time.time_ns() - status.st_mtime_ns > _SETTLED_NS:
        _kept = (version, instances)
    return instances


@paused_collection()
def _parse(path: Path, annotations: Set[str], images: Set[str]) -> Instances:
    content = load_json(path)
    unnamed: list[str] = []
    return Instances(
        images=_index(content, "images", images, path, _read_image_entry, unnamed),
        annotations=_index(content, "annotations", annotations, path, _read_annotation, unnamed),
        unnamed=tuple(unnamed),
        asked=(annotations, images),
    )


def _index(
    content: Any, key: str, wanted: Set[str], path: Path, read: Callable[[Any, Where], _Entry], unnamed: list[str]
) -> dict[str, _Entry | str]:
    entries: dict[str, _Entry | str] = {}
    for i, record in enumerate(listing(content, key, (path,))):
        where = (path, key, i)
        try:
            name = identifier(field(record, "id", where), "id", where)
        except ValueError as error:
            unnamed.append(str(error))
            continue
        if name in entries:
            entries[name] = f"{path} has two entries of id {name} in its {key!r}"
        elif name in wanted:
            try:
                entries[name] = read(record, (path, key.removesuffix("s"), name))
            except ValueError as error:
                entries[name] = str(error)
    return entries


def _read_annotation(record: Any, where: Where) -> Annotation:
    image_id = record.get("image_id")
    return Annotation(
        image_id=None if "image_id" not in record else identifier(image_id, "image_id", where),
        mask=read_mask(record, where),
        is_crowd=record.get("iscrowd", 0),
    )


def _read_image_entry(record: Any, where: Where) -> ImageEntry:
    size = read_size(record, where)
    return ImageEntry(string(record, "file_name", where), size)
