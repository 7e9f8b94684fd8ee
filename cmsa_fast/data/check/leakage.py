"""Finds images that are in both a training split and an evaluation split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..exclusions import record_numbering
from ..types import Record

_TRAINING = ("train", "trainval")


@dataclass(frozen=True)
class SplitName:
    """A split of a data set."""

    data_set: str
    split: str

    def __str__(self) -> str:
        return f"{self.data_set} {self.split}"


@dataclass(frozen=True)
class SplitImages:
    """The images of one split.

    Attributes:
        name: Label of the data set, and the split.
        numbers: `(numbering, number)` of each image. Only numbers of the same numbering are compared: "COCO",
            "SAIAPR TC-12", or the data set itself.
    """

    name: SplitName
    numbers: frozenset[tuple[str, int]]

    @property
    def is_training(self) -> bool:
        """Whether it is a training split."""
        return self.name.split in _TRAINING


@dataclass(frozen=True)
class Leak:
    """Images of a training split that are also in an evaluation split.

    Attributes:
        training: Data set and split for training.
        evaluation: Data set and split for evaluation.
        numbering: Numbering of the images.
        images: Image numbers, ascending.
    """

    training: SplitName
    evaluation: SplitName
    numbering: str
    images: tuple[int, ...]

    @property
    def is_within(self) -> bool:
        """Whether both splits belong to one data set."""
        return self.training.data_set == self.evaluation.data_set


def split_images(
    records: Iterable[Record], data_set: str, *, numbering: str = ""
) -> list[SplitImages]:
    """Collects the image numbers of each split.

    Args:
        records: Records of one data set.
        data_set: Label of the data set.
        numbering: Numbering of the images, as `numbering_of` returns it.

    Returns:
        One entry per split, in the order of the records.
    """
    splits: dict[str, set[tuple[str, int]]] = {}
    for record in records:
        number = (record_numbering(record, data_set, numbering), record.image_id)
        splits.setdefault(record.split, set()).add(number)
    return [
        SplitImages(SplitName(data_set, split), frozenset(numbers))
        for split, numbers in splits.items()
    ]


def find_leaks(splits: Sequence[SplitImages]) -> list[Leak]:
    """Compares every training split with every evaluation split.

    The "val" split of a data set is part of its own "trainval" by design and is no leak.

    Args:
        splits: Splits of all data sets.

    Returns:
        Pairs that share images, pairs within one data set first.
    """
    leaks = []
    for training in (split for split in splits if split.is_training):
        for evaluation in (split for split in splits if not split.is_training):
            is_own = training.name.data_set == evaluation.name.data_set
            if is_own and (training.name.split, evaluation.name.split) == ("trainval", "val"):
                continue
            shared: dict[str, list[int]] = {}
            for numbering, number in sorted(training.numbers & evaluation.numbers):
                shared.setdefault(numbering, []).append(number)
            for numbering, numbers in shared.items():
                leaks.append(Leak(training.name, evaluation.name, numbering, tuple(numbers)))
    return sorted(leaks, key=lambda leak: not leak.is_within)


def exclusions(leaks: Iterable[Leak]) -> dict[str, list[int]]:
    """Returns the images to exclude from training: ascending numbers for each numbering."""
    images: dict[str, set[int]] = {}
    for leak in leaks:
        images.setdefault(leak.numbering, set()).update(leak.images)
    return {numbering: sorted(numbers) for numbering, numbers in sorted(images.items())}
