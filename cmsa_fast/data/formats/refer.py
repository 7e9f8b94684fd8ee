"""RefCOCO, RefCOCO+, RefCOCOg and RefCLEF in the layout of the REFER toolbox.

`refs(<split_by>).p` states which object each expression refers to; `instances.json` has the object's mask
and the image's name and size. The image name in the first file names no existing file and is not used.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ErrorCollector
from ..masks import MaskSource
from ..source import Reading, Source, Text
from ..types import Record
from .instances import Annotation, ImageEntry, Instances, read_instances
from .parsing import (
    RepeatedReferences,
    Where,
    field,
    identifier,
    integer,
    kind,
    load_json,
    paused_collection,
    place,
    read_expressions,
    read_image,
    string,
)
from .published import PUBLISHED_EXPRESSIONS, usual_split_by
from .refer_layout import ReferFiles, locate_refer_files
from .safe_pickle import load_plain_pickle

_logger = logging.getLogger(__name__)

ReadAnnotations = Callable[[Any, Where], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Reference:
    """Referred objects and their expressions.

    Annotations are identified by text, because RefCLEF's identifiers are text. REFER has one annotation in
    a reference; none means that the expressions refer to nothing.
    """

    ref_id: int
    image_id: int
    annotations: tuple[str, ...]
    split: str
    expressions: tuple[tuple[int, str], ...]  # (sent_id, expression)


@dataclass(frozen=True)
class References:
    """What a file of references holds."""

    references: list[Reference]  # the usable ones of the split asked for
    splits: Counter[str]  # number of records of each split
    annotations: set[str]  # identifiers in all splits
    images: set[str]  # identifiers in all splits


def read_refer(source: Source, split: str | None, errors: ErrorCollector) -> Reading:
    """Reads a data set in the layout of REFER (`cmsa_fast.data.source.read_records`).

    `locate_refer_files` describes the layout, `is_in_split` how splits are matched.
    """
    name = source.name or "refcoco"
    split_by = source.split_by or usual_split_by(name)
    files = locate_refer_files(source.root, name, split_by, source.image_folder)
    return Reading(
        refer_records(files, split, source.text, errors, is_in_split, one_annotation),
        f"{name} ({split_by})",
        PUBLISHED_EXPRESSIONS.get(name, {}).get(split_by, {}),
    )


def is_in_split(recorded: str, asked: str) -> bool:
    """Whether REFER counts a reference of split `recorded` as part of split `asked`.

    "testA" includes "testA", "testAB" and "testAC", likewise "testB" and "testC"; "test" includes every
    split whose name begins with "test"; any other name includes that split alone.
    """
    if asked == "test":
        return recorded.startswith("test")
    if asked in ("testA", "testB", "testC"):
        return recorded.startswith("test") and asked[-1] in recorded[len("test") :]
    return recorded == asked


def missing_split(split: str | None, origin: object, recorded: Iterable[str]) -> str:
    """The message for a split without references, which lists the splits that exist."""
    counts = Counter(recorded).items()
    listing = ", ".join(f"{key} ({count} references)" for key, count in counts)
    if split is None:
        return f"there is no reference in {origin}"
    return f"split {split!r} has no reference in {origin}, which has {listing or 'none at all'}"


def one_annotation(record: Any, where: Where) -> tuple[str, ...]:
    """The identifier of the one object of a REFER record; ValueError if it has a list."""
    annotation = field(record, "ann_id", where)
    if isinstance(annotation, list):
        raise ValueError(
            f"{place(where)} has a list as its 'ann_id': that is the form of gRefCOCO, where an expression "
            "may refer to several objects or none, and not of REFER"
        )
    return (identifier(annotation, "ann_id", where),)


def refer_records(
    files: ReferFiles,
    split: str | None,
    text: Text,
    errors: ErrorCollector,
    matches: Callable[[str, str], bool],
    annotations: ReadAnnotations,
    skip_crowds: bool = False,
) -> list[Record]:
    """Reads references and joins them with their annotations and images.

    `matches` tells whether a recorded split is part of the one asked for, `annotations` reads the
    identifiers of the annotations of a reference. With `skip_crowds`, annotations marked `iscrowd` get an
    empty mask, and a warning gives their number.
    """

    def is_wanted(recorded: str) -> bool:
        return split is None or matches(recorded, split)

    found = read_references(files.references, text, errors, annotations, is_wanted)
    if not found.references:
        raise ValueError(missing_split(split, files.references, found.splits.elements()))
    instances = read_instances(files.instances, found.annotations, found.images)
    if instances.unnamed and errors.strict:
        raise ValueError(instances.unnamed[0])  # otherwise its reference is reported as incomplete
    records: list[Record] = []
    crowds: set[str] = set()
    for reference in found.references:
        with errors:
            records.append(_join(reference, instances, files, crowds if skip_crowds else None))
    if crowds:
        _logger.warning("%s: %d annotations of crowds are left out of the masks", files.instances, len(crowds))
    return records


@paused_collection()
def read_references(
    path: Path,
    text: Text,
    errors: ErrorCollector,
    annotations: ReadAnnotations = one_annotation,
    is_wanted: Callable[[str], bool] = lambda _: True,
) -> References:
    """Reads `refs(<split_by>).p`, or a JSON file of the same records; unwanted splits are not checked."""
    content = load_json(path) if path.suffix == ".json" else load_plain_pickle(path)
    if not isinstance(content, list):
        raise ValueError(f"{path} holds {kind(content)} where a list of references is expected")
    repeated = RepeatedReferences()
    found = References([], Counter(), set(), set())
    for i, record in enumerate(content):
        if isinstance(record, dict):
            _add_identifiers(record.get("ann_id"), found.annotations)
            _add_identifiers(record.get("image_id"), found.images)
        with errors:
            where = (path, "reference", i)
            split = string(record, "split", where)
            found.splits[split] += 1
            if not is_wanted(split):
                continue
            _refuse_negative(record, where)
            reference = Reference(
                ref_id=integer(record, "ref_id", where),
                image_id=integer(record, "image_id", where),
                annotations=annotations(record, where),
                split=split,
                expressions=read_expressions(record, text, where),
            )
            repeated.check(reference.ref_id, reference, where)
            found.references.append(reference)
    return found


def _refuse_negative(record: Any, where: Where) -> None:
    """ValueError for the marks of R-RefCOCO and Ref-ZOM, which would otherwise be read as ordinary expressions."""
    sentences = record.get("sentences")
    negative = [one for one in sentences if isinstance(one, dict)] if isinstance(sentences, list) else []
    if record.get("source") == "zero" or any(one.get("exist", True) in (False, 0) for one in negative):
        raise ValueError(
            f"{place(where)} has expressions that name nothing, as R-RefCOCO and Ref-ZOM mark them; REFER has "
            "none, so write a manifest, as docs/data.md shows"
        )


def _add_identifiers(value: Any, identifiers: set[str]) -> None:
    """Adds what may identify an entry of `instances.json`; damaged values are reported elsewhere."""
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, str) or (isinstance(one, int) and one.bit_length() < 64):
            identifiers.add(str(one))


def _join(reference: Reference, instances: Instances, files: ReferFiles, crowds: set[str] | None) -> Record:
    path = files.instances
    objects = []
    for key in reference.annotations:
        annotation: Annotation = _entry(instances.annotations, "annotation", key, reference, path)
        where = (path, "annotation", key)
        if annotation.image_id not in (None, str(reference.image_id)):
            raise ValueError(
                f"{place(where)} is of image {annotation.image_id}, but ref_id {reference.ref_id} "
                f"uses it for image {reference.image_id}"
            )
        mask = annotation.mask
        if crowds is not None:
            if annotation.is_crowd not in (0, 1):
                raise ValueError(f"{place(where)} has {annotation.is_crowd!r} as its 'iscrowd', not 0 or 1")
            if annotation.is_crowd:
                crowds.add(key)
                mask = MaskSource()
        objects.append(mask)
    key = str(reference.image_id)
    image: ImageEntry = _entry(instances.images, "image", key, reference, path)
    return Record(
        image=read_image(files.image_folders, image.file_name, (path,)),
        size=image.size,
        objects=tuple(objects),
        expressions=reference.expressions,
        image_id=reference.image_id,
        ref_id=reference.ref_id,
        split=reference.split,
        where=f"{path}: annotation {' and '.join(reference.annotations) or 'none'}",
    )


def _entry(entries: dict[str, Any], what: str, key: str, reference: Reference, path: Path) -> Any:
    entry = entries.get(key)
    if entry is None:
        raise ValueError(f"{path} has no {what} {key}, which ref_id {reference.ref_id} needs")
    if isinstance(entry, str):
        raise ValueError(f"{entry}, which ref_id {reference.ref_id} needs")
    return entry
