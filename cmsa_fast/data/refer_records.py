"""The records of a REFER data set, checked on the way in.

`refs(<split_by>).p` says which object each sentence means; `instances.json` has the object's mask
and the picture's name and size. The picture's name in the first file names no file and is not used.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cmsa_fast.data.masks import MaskSource, parse_segmentation
from cmsa_fast.data.problems import Problems
from cmsa_fast.data.unpickle import load_plain_pickle

_Where = tuple[object, ...]  # spelled out only for a message


@dataclass(frozen=True, slots=True)
class Reference:
    """Referred objects and their sentences.

    Attributes:
        ref_id: Its number.
        image_id: The picture's number.
        annotations: The identifiers of the objects' annotations, as text (RefCLEF's are text, COCO's
            are numbers). REFER has one; none means that the sentences name nothing.
        split: The split as the file has it.
        sentences: `(sent_id, sentence)`, in the file's order.
    """

    ref_id: int
    image_id: int
    annotations: tuple[str, ...]
    split: str
    sentences: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class Target:
    """What one reference refers to.

    Attributes:
        file_name: The picture's file.
        size: Height and width of the picture in pixels, as the records say.
        masks: The objects' masks, not yet drawn.
    """

    file_name: str
    size: tuple[int, int]
    masks: tuple[MaskSource, ...]


@contextmanager
def _paused_collection() -> Iterator[None]:
    """Keeps Python's garbage collector from walking millions of fresh objects over and over.

    None of them is garbage, and with it the published files take two to three times as long.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@_paused_collection()
def read_references(
    path: Path, text: Literal["sent", "raw"], problems: Problems | None = None
) -> list[Reference]:
    """Reads `refs(<split_by>).p`.

    Args:
        path: The pickle.
        text: Which writing of the sentences to take: "sent" is cleaned, "raw" as it was typed.
        problems: Takes the records that cannot be used. None: the first one is an error.

    Returns:
        Every usable reference of every split, in the file's order.

    Raises:
        ValueError: The file is no plain pickle, or a record lacks a field or has another type in
            it; the message names the file, the record and the field.
    """
    problems = problems or Problems(strict=True)
    content = load_plain_pickle(path)
    if not isinstance(content, list):
        raise ValueError(f"{path} holds {_kind(content)} where a list of references is expected")
    references = []
    for i, record in enumerate(content):
        with problems:
            references.append(_read_reference(record, (path, "reference", i), text))
    return references


@_paused_collection()
def read_targets(
    path: Path, references: Sequence[Reference], problems: Problems | None = None
) -> list[Target | None]:
    """Reads from `instances.json` what the references refer to.

    Args:
        path: The JSON file.
        references: The references wanted; other annotations are passed over.
        problems: Takes the references that cannot be used. None: the first one is an error.

    Returns:
        One target for each reference, in order; None for those that cannot be used. References to
        one annotation share its mask.

    Raises:
        ValueError: The file is no JSON of that form, lacks an annotation or a picture that a
            reference needs, has one twice, or has a mask of no known form; the message names the
            file, the record and the field.
    """
    problems = problems or Problems(strict=True)
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    wanted_images = {str(ref.image_id) for ref in references}
    wanted = {key for ref in references for key in ref.annotations}
    images = _index(content, "images", wanted_images, path, problems)
    annotations = _index(content, "annotations", wanted, path, problems)
    masks: dict[str, MaskSource] = {}
    targets: list[Target | None] = []
    for reference in references:
        target = None
        with problems:
            for key in reference.annotations:
                record = _record(annotations, "annotation", key, reference, path)
                _check_image(record, (path, "annotation", key), reference)
                if key not in masks:
                    masks[key] = _read_mask(record, (path, "annotation", key))
            key = str(reference.image_id)
            picture = _record(images, "image", key, reference, path)
            file_name, size = _read_picture(picture, (path, "image", key))
            target = Target(file_name, size, tuple(masks[key] for key in reference.annotations))
        targets.append(target)
    return targets


def _record(
    table: dict[str, Any], kind: str, key: str, reference: Reference, path: Path
) -> dict[str, Any]:
    if key not in table:
        raise ValueError(f"{path} has no {kind} {key}, which ref_id {reference.ref_id} needs")
    return table[key]


def _check_image(record: dict[str, Any], where: _Where, reference: Reference) -> None:
    if "image_id" in record and str(record["image_id"]) != str(reference.image_id):
        raise ValueError(
            f"{_text(where)} is of image {record['image_id']}, but ref_id "
            f"{reference.ref_id} uses it for image {reference.image_id}"
        )


def _read_reference(record: Any, where: _Where, text: str) -> Reference:
    annotation = _field(record, "ann_id", where)
    if isinstance(annotation, list):
        raise ValueError(
            f"{_text(where)} has a list as its 'ann_id': that is gRefCOCO's form, where a sentence "
            "may mean several objects or none, and not REFER's"
        )
    sentences = _field(record, "sentences", where)
    if not isinstance(sentences, list):
        raise ValueError(f"{_text(where)} has {_kind(sentences)} as its 'sentences', not a list")
    return Reference(
        ref_id=_integer(record, "ref_id", where),
        image_id=_integer(record, "image_id", where),
        annotations=(_identifier(annotation, "ann_id", where),),
        split=_string(record, "split", where),
        sentences=tuple(
            (
                _integer(sentence, "sent_id", (*where, "sentence", i)),
                _string(sentence, text, (*where, "sentence", i)),
            )
            for i, sentence in enumerate(sentences)
        ),
    )


def _read_picture(record: Any, where: _Where) -> tuple[str, tuple[int, int]]:
    size = _integer(record, "height", where), _integer(record, "width", where)
    if min(size) < 1:
        raise ValueError(f"{_text(where)} has the size {size[0]} x {size[1]}, which holds no pixel")
    return _string(record, "file_name", where), size


def _read_mask(record: Any, where: _Where) -> MaskSource:
    segmentation = _field(record, "segmentation", where)
    try:
        return parse_segmentation(segmentation)
    except ValueError as error:
        raise ValueError(f"{_text(where)}: {error}") from error


def _index(
    content: Any, key: str, wanted: set[str], path: Path, problems: Problems
) -> dict[str, Any]:
    """The wanted records of a list, by their identifier."""
    records = _field(content, key, (path,))
    if not isinstance(records, list):
        raise ValueError(f"{path} has {_kind(records)} as its {key!r}, not a list")
    found: dict[str, Any] = {}
    for i, record in enumerate(records):
        where = (path, key, i)
        with problems:
            identifier = _identifier(_field(record, "id", where), "id", where)
            if identifier not in wanted:
                continue
            if identifier in found:
                raise ValueError(f"{path} has two entries of id {identifier} in its {key!r}")
            found[identifier] = record
    return found


def _field(record: Any, key: str, where: _Where) -> Any:
    if not isinstance(record, dict):
        raise ValueError(f"{_text(where)} is {_kind(record)} where a dictionary is expected")
    if key not in record:
        raise ValueError(f"{_text(where)} has no {key!r}")
    return record[key]


def _integer(record: Any, key: str, where: _Where) -> int:
    value = _field(record, key, where)
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{_text(where)} has {_kind(value)} as its {key!r}, not an integer")
    return value


def _string(record: Any, key: str, where: _Where) -> str:
    value = _field(record, key, where)
    if not isinstance(value, str):
        raise ValueError(f"{_text(where)} has {_kind(value)} as its {key!r}, not text")
    return value


def _identifier(value: Any, key: str, where: _Where) -> str:
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise ValueError(f"{_text(where)} has {_kind(value)} as its {key!r}, not a number or text")
    return str(value)


def _kind(value: Any) -> str:
    return f"a value of type {type(value).__name__}"


def _text(where: _Where) -> str:
    """`path: reference 3 sentence 1`."""
    path, *rest = where
    return f"{path}: {' '.join(map(str, rest))}" if rest else str(path)
