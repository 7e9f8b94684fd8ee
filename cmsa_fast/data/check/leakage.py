"""Images that are both learnt from and evaluated on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..exclusions import record_numbering
from ..types import Record

_TRAINING = ("train", "trainval")


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
        number = (record_numbering(record, data_set, numbering), record.image_id)
        splits.setdefault(record.split, set()).add(number)
    return [SplitImages(data_set, split, frozenset(found)) for split, found in splits.items()]


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
