"""Images that are both learnt from and evaluated on."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from ..formats.parsing import field, kind, listing, load_json, place
from ..formats.refer_layout import published_origin
from ..images import ImageFile
from ..types import Record

if TYPE_CHECKING:
    from ..source import Reading, Source

_logger = logging.getLogger(__name__)

_TRAINING = ("train", "trainval")
_COCO_NAME = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})\.\w+", re.IGNORECASE)


@dataclass(frozen=True)
class SplitImages:
    """The images of one split.

    Attributes:
        data_set: What it is a split of, for messages.
        split: The split.
        numbers: `(numbering, number)` of each image. Numbers are compared within one numbering:
            "COCO", "SAIAPR TC-12", or the data set itself.
    """

    data_set: str
    split: str
    numbers: frozenset[tuple[str, int]]

    @property
    def is_training(self) -> bool:
        """Whether one learns from it."""
        return self.split in _TRAINING


@dataclass(frozen=True)
class Leak:
    """Images of a training split that an evaluation split has too.

    Attributes:
        training: Data set and split that one learns from.
        evaluation: Data set and split that one evaluates on.
        numbering: Whose numbers they are.
        images: The numbers, ascending.
    """

    training: tuple[str, str]
    evaluation: tuple[str, str]
    numbering: str
    images: tuple[int, ...]

    @property
    def is_within(self) -> bool:
        """Whether both splits are of one data set."""
        return self.training[0] == self.evaluation[0]


def split_images(
    records: Iterable[Record], data_set: str, *, numbering: str = ""
) -> list[SplitImages]:
    """Gathers the image numbers of each split.

    Args:
        records: Of one data set, any splits.
        data_set: What it is, for messages.
        numbering: Whose numbers they are. Empty: COCO's where the image's name holds the number as
            COCO writes it, else the data set's own.

    Returns:
        One entry for each split, in the records' order.
    """
    splits: dict[str, set[tuple[str, int]]] = {}
    for record in records:
        number = (_numbering(record, data_set, numbering), record.image_id)
        splits.setdefault(record.split, set()).add(number)
    return [SplitImages(data_set, split, frozenset(found)) for split, found in splits.items()]


def numbering_of(source: Source, reading: Reading) -> str:
    """Whose image numbers records have; "" where only the images' names can tell.

    Args:
        source: Where the records come from.
        reading: The records.
    """
    if any(published_origin(count)[1] for count in reading.published_expressions.values()):
        return "COCO"  # whatever the images are called in this copy
    if source.form == "referit" or reading.title.lower().startswith(("referit", "refclef")):
        return "SAIAPR TC-12"
    return ""


def find_leaks(splits: Sequence[SplitImages]) -> list[Leak]:
    """Compares every training split with every evaluation split.

    The "val" of a data set is part of its own "trainval" by design and is no leak.

    Args:
        splits: Of every data set that one may train on together.

    Returns:
        Those pairs that share images, the pairs within one data set first.
    """
    leaks = []
    for training in (split for split in splits if split.is_training):
        for evaluation in (split for split in splits if not split.is_training):
            is_own = training.data_set == evaluation.data_set
            if is_own and (training.split, evaluation.split) == ("trainval", "val"):
                continue
            shared = sorted(training.numbers & evaluation.numbers)
            for numbering in dict.fromkeys(whose for whose, _ in shared):
                leaks.append(
                    Leak(
                        (training.data_set, training.split),
                        (evaluation.data_set, evaluation.split),
                        numbering,
                        tuple(number for whose, number in shared if whose == numbering),
                    )
                )
    return sorted(leaks, key=lambda leak: not leak.is_within)


def exclusions(leaks: Iterable[Leak]) -> dict[str, list[int]]:
    """The images to leave out of every training split, so that none is evaluated on.

    Args:
        leaks: As `find_leaks` returns them.

    Returns:
        Ascending numbers under each numbering.
    """
    found: dict[str, set[int]] = {}
    for leak in leaks:
        found.setdefault(leak.numbering, set()).update(leak.images)
    return {numbering: sorted(numbers) for numbering, numbers in sorted(found.items())}


def read_exclusions(path: Path) -> dict[str, frozenset[int]]:
    """Reads what `cmsa-fast data check --write-exclusions` wrote.

    Args:
        path: A JSON file `{"images": {numbering: [number, ...], ...}}`.

    Returns:
        The numbers under each numbering.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file has another form.
    """
    try:
        content = load_json(path)
        is_old = isinstance(content, dict) and "images" not in content and "pictures" in content
        key = "pictures" if is_old else "images"
        images = field(content, key, (path,))
        if not isinstance(images, dict):
            raise ValueError(f"{path} has {kind(images)} as its {key!r}, not a dictionary")
        found = {}
        for numbering in images:
            where = (path, key)
            numbers = listing(images, numbering, where)
            if not all(type(number) is int for number in numbers):
                raise ValueError(f"{place(where)} has something else than numbers in {numbering!r}")
            found[numbering] = frozenset(numbers)
    except ValueError as error:
        raise ValueError(
            f"{error}: images to exclude must be listed as `cmsa-fast data check "
            "--write-exclusions` writes them"
        ) from error
    return found


def excluded_images(
    source: Source, reading: Reading, exclude: Mapping[str, Collection[int]]
) -> frozenset[int]:
    """The images of some records that are to be left out; the log says where none can be.

    Args:
        source: Where the records come from.
        reading: The records.
        exclude: Numbers under each numbering, as `read_exclusions` returns them.

    Returns:
        Those of the records' `image_id` that are among the numbers of their own numbering.
    """
    whose = numbering_of(source, reading)
    numbers = {
        (_numbering(record, reading.title, whose), record.image_id) for record in reading.records
    }
    numberings = {numbering for numbering, _ in numbers}
    if exclude and numberings.isdisjoint(exclude):
        _logger.warning(
            "%s: no image is excluded: its images have numbers of %s, and those to exclude are of %s",
            reading.title,
            " and ".join(sorted(numberings)),
            " and ".join(sorted(exclude)),
        )
    return frozenset(
        number for numbering, number in numbers if number in exclude.get(numbering, ())
    )


def _numbering(record: Record, data_set: str, numbering: str) -> str:
    return numbering or ("COCO" if _is_named_as_coco(record) else data_set)


def _is_named_as_coco(record: Record) -> bool:
    image = record.image
    name = image.file_name if isinstance(image, ImageFile) else image.name
    match = _COCO_NAME.fullmatch(PurePath(name).name)
    return match is not None and int(match[1]) == record.image_id
