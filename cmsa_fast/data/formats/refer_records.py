"""The records of a REFER data set, checked on the way in.

`refs(<split_by>).p` says which object each expression means; `instances.json` has the object's mask
and the image's name and size. The image's name in the first file names no file and is not used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ErrorCollector
from ..masks import MaskSource
from ..source import Text
from .garbage import paused_collection
from .parsing import Where, field, identifier, integer, kind, listing, load_json, place, string
from .record_parts import read_expressions, read_mask, read_size
from .safe_pickle import load_plain_pickle

_logger = logging.getLogger(__name__)

_TWICE = object()  # stands for entries that share one identifier


@dataclass(frozen=True, slots=True)
class Reference:
    """Referred objects and their expressions.

    Attributes:
        ref_id: Its number.
        image_id: The image's number.
        annotations: The identifiers of the objects' annotations, as text (RefCLEF's are text, COCO's
            are numbers). REFER has one; none means that the expressions name nothing.
        split: The split as the file has it.
        expressions: `(sent_id, expression)`, in the file's order.
    """

    ref_id: int
    image_id: int
    annotations: tuple[str, ...]
    split: str
    expressions: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Target:
    """What one reference refers to.

    Attributes:
        file_name: The image's file.
        size: Height and width of the image in pixels, as the records say.
        masks: The objects' masks, not yet drawn.
    """

    file_name: str
    size: tuple[int, int]
    masks: tuple[MaskSource, ...]


def one_annotation(record: Any, where: Where) -> tuple[str, ...]:
    """The identifier of the one object that a REFER record means; ValueError where it has a list."""
    annotation = field(record, "ann_id", where)
    if isinstance(annotation, list):
        raise ValueError(
            f"{place(where)} has a list as its 'ann_id': that is gRefCOCO's form, where an expression "
            "may mean several objects or none, and not REFER's"
        )
    return (identifier(annotation, "ann_id", where),)


@paused_collection()
def read_references(
    path: Path,
    text: Text,
    errors: ErrorCollector | None = None,
    annotations: Callable[[Any, Where], tuple[str, ...]] = one_annotation,
) -> list[Reference]:
    """Reads `refs(<split_by>).p`, or a JSON file of the same records.

    Args:
        path: The pickle, or a file whose name ends in `.json`.
        text: Which writing of the expressions to take: "sent" is cleaned, "raw" as it was typed.
        problems: Takes the records that cannot be used. None: the first one is an error.
        annotations: Reads the annotations that a record means.

    Returns:
        Every usable reference of every split, in the file's order.

    Raises:
        ValueError: The file is no plain pickle and no JSON, or a record lacks a field or has another type in
            it; the message names the file, the record and the field.
    """
    errors = errors or ErrorCollector(strict=True)
    content = load_json(path) if path.suffix == ".json" else load_plain_pickle(path)
    if not isinstance(content, list):
        raise ValueError(f"{path} holds {kind(content)} where a list of references is expected")
    references = []
    for i, record in enumerate(content):
        with errors:
            where = (path, "reference", i)
            references.append(_read_reference(record, where, text, annotations(record, where)))
    return references


@paused_collection()
def read_targets(
    path: Path,
    references: Sequence[Reference],
    errors: ErrorCollector | None = None,
    skip_crowds: bool = False,
) -> list[Target | None]:
    """Reads from `instances.json` what the references refer to.

    Args:
        path: The JSON file.
        references: The references wanted; other annotations are passed over.
        problems: Takes the references that cannot be used. None: the first one is an error.
        skip_crowds: Give annotations marked `iscrowd` an empty mask; the log says how many.

    Returns:
        One target for each reference, in order; None for those that cannot be used. References to
        one annotation share its mask.

    Raises:
        ValueError: The file is no JSON of that form, lacks an annotation or an image that a
            reference needs, has one twice, or has a mask of no known form; the message names the
            file, the record and the field.
    """
    errors = errors or ErrorCollector(strict=True)
    content = load_json(path)
    wanted_images = {str(ref.image_id) for ref in references}
    wanted = {key for ref in references for key in ref.annotations}
    images = _index(content, "images", wanted_images, path, errors)
    annotations = _index(content, "annotations", wanted, path, errors)
    crowds = 0
    masks: dict[str, MaskSource] = {}
    targets: list[Target | None] = []
    for reference in references:
        target = None
        with errors:
            for key in reference.annotations:
                record = _record(annotations, "annotation", key, reference, path)
                _check_image(record, (path, "annotation", key), reference)
                if key not in masks:
                    where = (path, "annotation", key)
                    is_crowd = skip_crowds and _is_crowd(record, where)
                    masks[key] = MaskSource() if is_crowd else read_mask(record, where)
                    crowds += is_crowd
            key = str(reference.image_id)
            image = _record(images, "image", key, reference, path)
            where = (path, "image", key)
            size = read_size(image, where)
            file_name = string(image, "file_name", where)
            target = Target(file_name, size, tuple(masks[key] for key in reference.annotations))
        targets.append(target)
    if crowds:
        _logger.warning("%s: %d annotations of crowds are left out of the masks", path, crowds)
    return targets


def _record(
    table: dict[str, Any], what: str, key: str, reference: Reference, path: Path
) -> dict[str, Any]:
    if key not in table:
        raise ValueError(f"{path} has no {what} {key}, which ref_id {reference.ref_id} needs")
    if table[key] is _TWICE:
        raise ValueError(
            f"{path} has two entries of id {key} in its {what + 's'!r}, and ref_id "
            f"{reference.ref_id} needs one"
        )
    return table[key]


def _check_image(record: dict[str, Any], where: Where, reference: Reference) -> None:
    if "image_id" not in record:
        return
    image_id = identifier(record["image_id"], "image_id", where)
    if image_id != str(reference.image_id):
        raise ValueError(
            f"{place(where)} is of image {image_id}, but ref_id {reference.ref_id} uses it for "
            f"image {reference.image_id}"
        )


def _read_reference(
    record: Any, where: Where, text: Text, annotations: tuple[str, ...]
) -> Reference:
    expressions = read_expressions(record, text, where)
    return Reference(
        ref_id=integer(record, "ref_id", where),
        image_id=integer(record, "image_id", where),
        annotations=annotations,
        split=string(record, "split", where),
        expressions=expressions,
    )


def _is_crowd(record: Any, where: Where) -> bool:
    value = record.get("iscrowd", 0)
    if value not in (0, 1):
        raise ValueError(f"{place(where)} has {value!r} as its 'iscrowd', not 0 or 1")
    return bool(value)


def _index(
    content: Any, key: str, wanted: set[str], path: Path, errors: ErrorCollector
) -> dict[str, Any]:
    """The wanted records of a list, by their identifier; `_TWICE` where several have it.

    A problem is a reference lost: where problems are only counted, records without an identifier
    are passed over here and missed by the references that need them.
    """
    records = listing(content, key, (path,))
    found: dict[str, Any] = {}
    for i, record in enumerate(records):
        where = (path, key, i)
        try:
            name = identifier(field(record, "id", where), "id", where)
        except ValueError:
            if errors.strict:
                raise
            continue
        if name in wanted:
            found[name] = _TWICE if name in found else record
    return found
