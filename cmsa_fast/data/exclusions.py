"""Images to exclude from training, and the numbering that makes image numbers comparable."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path, PurePath

from .formats.parsing import listing, load_json, place, typed_field
from .formats.published import published_origin
from .images import ImageFile
from .source import Reading, Source
from .types import Record

_logger = logging.getLogger(__name__)

_COCO_NAME = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})\.\w+", re.IGNORECASE)


def numbering_of(source: Source, reading: Reading) -> str:
    """Numbering of a data set: "COCO", "SAIAPR TC-12", or "" if only the images' names can tell."""
    if any(published_origin(count)[1] for count in reading.published_expressions.values()):
        return "COCO"  # whatever the images are called in this copy
    if source.form == "referit" or reading.title.lower().startswith(("referit", "refclef")):
        return "SAIAPR TC-12"
    return ""


def record_numbering(record: Record, data_set: str, numbering: str) -> str:
    """Numbering of one record's image, given what `numbering_of` returns for its data set.

    If that is empty: "COCO" if the image's name contains the number as COCO writes it, else the data set itself.
    """
    if numbering:
        return numbering
    image = record.image
    name = image.file_name if isinstance(image, ImageFile) else image.name
    match = _COCO_NAME.fullmatch(PurePath(name).name)
    return "COCO" if match is not None and int(match[1]) == record.image_id else data_set


def read_exclusions(path: Path) -> dict[str, frozenset[int]]:
    """Reads the file that `cmsa-fast data check --write-exclusions` writes: image numbers under each numbering.

    It is JSON, `{"images": {numbering: [number, ...], ...}}`; older files have the key "pictures" instead.
    """
    try:
        content = load_json(path)
        is_old = isinstance(content, dict) and "images" not in content and "pictures" in content
        key = "pictures" if is_old else "images"
        images = typed_field(content, key, (path,), dict, "a dictionary")
        exclusions = {}
        for numbering in images:
            numbers = listing(images, numbering, (path, key))
            if not all(type(number) is int for number in numbers):
                raise ValueError(f"{place((path, key))} has a value in {numbering!r} that is no integer")
            exclusions[numbering] = frozenset(numbers)
    except ValueError as error:
        raise ValueError(
            f"{error}: images to exclude must be listed as `cmsa-fast data check --write-exclusions` writes them"
        ) from error
    return exclusions


def excluded_images(source: Source, reading: Reading, exclude: Mapping[str, Collection[int]]) -> frozenset[int]:
    """Returns the images that `exclude` lists under their own numbering; logs a warning if none can match."""
    whose = numbering_of(source, reading)
    numbers = {(record_numbering(record, reading.title, whose), record.image_id) for record in reading.records}
    numberings = {numbering for numbering, _ in numbers}
    if exclude and numberings.isdisjoint(exclude):
        _logger.warning(
            "%s: no image is excluded: its images have numbers of %s, and those to exclude are of %s",
            reading.title,
            " and ".join(sorted(numberings)),
            " and ".join(sorted(exclude)),
        )
    return frozenset(number for numbering, number in numbers if number in exclude.get(numbering, ()))
