"""Checked access to the fields of records that come from files.

Every function takes `where`, the file and the words and numbers that locate the record in it; it is
formatted only for a message.
"""

from __future__ import annotations

import gc
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ..errors import RepeatedReferenceError
from ..images import ImageFile, image_file
from ..masks import MaskSource, parse_segmentation
from ..source import Text

Where = tuple[object, ...]
_T = TypeVar("_T")

COCO_NAME = re.compile(r"COCO_(?:train|val)2014_(\d{12})\.\w+")
_LONGEST_NUMBER = 19  # decimal digits of a 64-bit integer
_LONGEST_IDENTIFIER = 200  # characters


def load_json(path: Path) -> Any:
    """Reads a JSON file (UTF-8, UTF-16 or UTF-32)."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no JSON file at {path}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error


def field(record: Any, key: str, where: Where) -> Any:
    """The value of a key; ValueError if `record` is no dictionary or lacks it."""
    if not isinstance(record, dict):
        raise ValueError(f"{place(where)} is {kind(record)} where a dictionary is expected")
    if key not in record:
        raise ValueError(f"{place(where)} has no {key!r}")
    return record[key]


def integer(record: Any, key: str, where: Where) -> int:
    """An integer, which may be written as text; ValueError otherwise."""
    value = field(record, key, where)
    if isinstance(value, str) and value.isdecimal() and len(value) < _LONGEST_NUMBER:
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{place(where)} has {kind(value)} as its {key!r}, not an integer")
    _check_bits(value, key, where)
    return value


def typed_field(record: Any, key: str, where: Where, expected: type[_T], description: str) -> _T:
    """A value of the `expected` type; ValueError with its `description` otherwise."""
    value = field(record, key, where)
    if not isinstance(value, expected):
        raise ValueError(f"{place(where)} has {kind(value)} as its {key!r}, not {description}")
    return value


def string(record: Any, key: str, where: Where) -> str:
    """A text; ValueError otherwise."""
    return typed_field(record, key, where, str, "text")


def listing(record: Any, key: str, where: Where) -> list[Any]:
    """A list; ValueError otherwise."""
    return typed_field(record, key, where, list, "a list")


def identifier(value: Any, key: str, where: Where) -> str:
    """A number or a text, as text; ValueError otherwise."""
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise ValueError(f"{place(where)} has {kind(value)} as its {key!r}, not a number or text")
    if isinstance(value, int):
        _check_bits(value, key, where)
    elif len(value) > _LONGEST_IDENTIFIER:
        raise ValueError(f"{place(where)} has {len(value)} characters as its {key!r}")
    return str(value)


def kind(value: Any) -> str:
    """The type of a value, for messages."""
    return f"a value of type {type(value).__name__}"


def place(where: Where) -> str:
    """Formats a location as `path: reference 3 sentence 1`."""
    path, *rest = where
    return f"{path}: {' '.join(map(str, rest))}" if rest else str(path)


def read_mask(record: Any, where: Where, key: str = "segmentation") -> MaskSource:
    """The mask in a field of a record; ValueError if it has no known form."""
    segmentation = field(record, key, where)
    try:
        return parse_segmentation(segmentation)
    except ValueError as error:
        raise ValueError(f"{place(where)}: {error}") from error


def read_image(folders: Sequence[Path], file_name: str, where: Where) -> ImageFile:
    """The image that a record names; ValueError if the name leads out of the folders."""
    try:
        return image_file(folders, file_name)
    except ValueError as error:
        raise ValueError(f"{place(where)}: {error}") from error


def image_number(file_name: str, numbered: re.Pattern[str] = COCO_NAME) -> int:
    """The number in the name of an image, or a negative number that depends on the name alone."""
    match = numbered.fullmatch(file_name)
    if match is not None:
        return int(match[1])
    digest = hashlib.blake2b(file_name.encode("utf-8", "surrogatepass"), digest_size=6).digest()
    return -1 - int.from_bytes(digest)


def read_size(image: Any, where: Where) -> tuple[int, int]:
    """Height and width of an image; ValueError if they are not positive integers."""
    size = integer(image, "height", where), integer(image, "width", where)
    if min(size) < 1:
        raise ValueError(f"{place(where)} has the size {size[0]} x {size[1]}, which holds no pixel")
    return size


def read_expressions(reference: Any, text: Text, where: Where) -> tuple[tuple[int, str], ...]:
    """`(sent_id, expression)` for each entry of `sentences`; ValueError if one is damaged."""
    return tuple(
        (integer(sentence, "sent_id", (*where, "sentence", i)), string(sentence, text, (*where, "sentence", i)))
        for i, sentence in enumerate(listing(reference, "sentences", where))
    )


def check_same(value: object, expected: object, what: str, where: Where) -> None:
    """ValueError if two places of a record that must agree differ; None means not stated."""
    if value is not None and str(value) != str(expected):
        raise ValueError(f"{place(where)} contradicts itself: {what} is {value} and {expected}")


class RepeatedReferences:
    """Recognises a reference that the files contain twice, which would be evaluated twice."""

    def __init__(self) -> None:
        self._first: dict[object, Where] = {}

    def check(self, ref_id: int, content: object, where: Where) -> None:
        """Raises RepeatedReferenceError if an earlier reference has this number and (hashable) content."""
        first = self._first.setdefault((ref_id, content), where)
        if first is not where:
            raise RepeatedReferenceError(
                f"{place(where)} repeats ref_id {ref_id} of {' '.join(map(str, first[1:]))}"
                + ("" if first[0] == where[0] else f" in {first[0]}")
            )


@contextmanager
def paused_collection() -> Iterator[None]:
    """Pauses Python's garbage collector while many objects are created that all stay.

    Scanning them over and over takes two to three times as long as creating them.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _check_bits(value: int, key: str, where: Where) -> None:
    # Python refuses to format very long integers, even in a message.
    if value.bit_length() > 63:
        raise ValueError(f"{place(where)} has a number of more than 64 bits as its {key!r}")
