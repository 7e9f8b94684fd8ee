"""Parts of a record that several forms have, checked on the way in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..images import ImageFile, image_file
from ..masks import MaskSource, parse_segmentation
from ..source import Text
from .parsing import Where, field, integer, listing, place, string


def read_mask(record: Any, where: Where, key: str = "segmentation") -> MaskSource:
    """The mask in a field of a record; ValueError where it has no known form."""
    segmentation = field(record, key, where)
    try:
        return parse_segmentation(segmentation)
    except ValueError as error:
        raise ValueError(f"{place(where)}: {error}") from error


def read_image(folders: Sequence[Path], file_name: str, where: Where) -> ImageFile:
    """The image that a record names; ValueError where the name leads out of the folders."""
    try:
        return image_file(folders, file_name)
    except ValueError as error:
        raise ValueError(f"{place(where)}: {error}") from error


def check_same(found: object, expected: object, what: str, where: Where) -> None:
    """ValueError where two places of a record that must agree do not; None stands for unsaid."""
    if found is not None and str(found) != str(expected):
        raise ValueError(f"{place(where)} contradicts itself: {what} is {found} and {expected}")


def read_size(image: Any, where: Where) -> tuple[int, int]:
    """An image's height and width; ValueError where they are none."""
    size = integer(image, "height", where), integer(image, "width", where)
    if min(size) < 1:
        raise ValueError(f"{place(where)} has the size {size[0]} x {size[1]}, which holds no pixel")
    return size


def read_expressions(reference: Any, text: Text, where: Where) -> tuple[tuple[int, str], ...]:
    """The expressions of one of REFER's references; ValueError where they are none."""
    return tuple(
        (
            integer(expression, "sent_id", (*where, "sentence", i)),
            string(expression, text, (*where, "sentence", i)),
        )
        for i, expression in enumerate(listing(reference, "sentences", where))
    )
