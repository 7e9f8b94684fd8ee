"""Finds images that are in both a training split and an evaluation split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import groupby, product
from operator import itemgetter

from ..exclusions import record_numbering
from ..types import Record

_TRAINING = ("train", "trainval")

# Images of a split: `(numbering, number)`. The numbering is "COCO", "SAIAPR TC-12" or the data set itself; only
# numbers of the same numbering are compared.
Images = AbstractSet[tuple[str, int]]


@dataclass(frozen=True)
class SplitName:
    """A split of a data set."""

    data_set: str
    split: str

    def __str__(self) -> str:
        return f"{self.data_set} {self.split}"


@dataclass(frozen=True)
class Leak:
    """Images (numbers, ascending) of a training split that are also in an evaluation split."""

    training: SplitName
    evaluation: SplitName
    numbering: str
    images: tuple[int, ...]

    @property
    def is_within(self) -> bool:
        """Whether both splits belong to one data set."""
        return self.training.data_set == self.evaluation.data_set


def split_images(
    records: Iterable[Record], data_set: str, numbering: str
) -> dict[SplitName, set[tuple[str, int]]]:
    """Collects the images of each split; `numbering` is what `numbering_of` returns."""
    splits: dict[SplitName, set[tuple[str, int]]] = {}
    for record in records:
        number = (record_numbering(record, data_set, numbering), record.image_id)
        splits.setdefault(SplitName(data_set, record.split), set()).add(number)
    return splits


def find_leaks(splits: Mapping[SplitName, Images]) -> list[Leak]:
    """Compares every training split with every evaluation split; pairs within one data set come first.

    The "val" split of a data set is part of its own "trainval" by design and is no leak.
    """
    leaks = []
    for training, evaluation in product(splits, splits):
        if training.split not in _TRAINING or evaluation.split in _TRAINING:
            continue
        if training.split == "trainval" and evaluation == SplitName(training.data_set, "val"):
            continue
        shared = sorted(splits[training] & splits[evaluation])
        for numbering, numbers in groupby(shared, key=itemgetter(0)):
            images = tuple(number for _, number in numbers)
            leaks.append(Leak(training, evaluation, numbering, images))
    return sorted(leaks, key=lambda leak: not leak.is_within)


def exclusions(leaks: Iterable[Leak]) -> dict[str, list[int]]:
    """Returns the images to exclude from training: ascending numbers for each numbering."""
    images: dict[str, set[int]] = {}
    for leak in leaks:
        images.setdefault(leak.numbering, set()).update(leak.images)
    return {numbering: sorted(numbers) for numbering, numbers in sorted(images.items())}
