"""RefCOCO, RefCOCO+, RefCOCOg and RefCLEF as the REFER toolbox lays them out on disk."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ..dataset import RecordDataset
from ..errors import ErrorCollector
from ..source import Reading, Source, Text, read_records
from ..types import Record
from .refer_layout import PUBLISHED_EXPRESSIONS, ReferFiles, locate_refer_files, usual_split_by
from .refer_records import Reference, read_references, read_targets


class ReferDataset(RecordDataset):
    """A split of a data set in the REFER layout; one item per expression, in the files' order.

    `locate_refer_files` describes the layout. A split is matched as REFER does it: "testA" takes
    what the file calls "testA", "testAB" or "testAC" (likewise "testB", "testC"), "test" takes
    every split whose name begins with "test", and any other name takes that split alone.

    `RecordDataset` says how masks lie over images, and what is left out and counted. Expressions
    whose object has lost its mask are left out of "train" and kept, with an empty mask, elsewhere.

    Args:
        root: The folder with the data sets and the images.
        name: "refcoco", "refcoco+", "refcocog", "refclef", or the folder of one's own data.
        split_by: Who made the split: "unc", "umd", "google", "berkeley".
        split: The split.
        text: Which writing of the expressions to give: "sent" is cleaned and in lower case, "raw" is
            as it was typed.
        image_folder: The folder of the images, where it is not one of REFER's.
        problems: Takes the records that cannot be used. None: the first one is an error.

    Raises:
        FileNotFoundError: The root, a file or the images' folder is missing; the message says
            what belongs where.
        ValueError: An argument names what is not there (the message lists what is), the split has
            no item, or a file is damaged (the message names file, record and field).
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        name: str = "refcoco",
        split_by: str = "unc",
        split: str = "train",
        *,
        text: Text = "sent",
        image_folder: str | os.PathLike[str] | None = None,
        errors: ErrorCollector | None = None,
    ) -> None:
        source = Source(
            form="refer",
            root=Path(root),
            name=name,
            split_by=split_by,
            text=text,
            image_folder=None if image_folder is None else Path(image_folder),
        )
        errors = errors or ErrorCollector(strict=True)
        before = errors.count
        reading = read_records(source, split, errors)
        super().__init__(
            reading.records,
            title=f"{reading.title} {split}",
            for_training=split == "train",
            published_expressions=reading.published_expressions.get(split),
            unusable_records=errors.count - before,
        )


def read_refer(source: Source, split: str | None, errors: ErrorCollector) -> Reading:
    """Reads a data set in the layout of REFER (`cmsa_fast.data.source.read_records`)."""
    name = source.name or "refcoco"
    split_by = source.split_by or usual_split_by(name)
    files = locate_refer_files(source.root, name, split_by, source.image_folder)
    everything = read_references(files.references, source.text, errors)
    references = [ref for ref in everything if split is None or is_in_split(ref.split, split)]
    if not references:
        raise ValueError(missing_split(split, files.references, (ref.split for ref in everything)))
    return Reading(
        refer_records(files, references, errors),
        f"{name} ({split_by})",
        PUBLISHED_EXPRESSIONS.get(name, {}).get(split_by, {}),
    )


def refer_records(
    files: ReferFiles,
    references: list[Reference],
    errors: ErrorCollector,
    skip_crowds: bool = False,
) -> list[Record]:
    """Joins references with their annotations and images.

    Args:
        files: Of the data set.
        references: The references wanted.
        problems: Takes the references that cannot be used.
        skip_crowds: As for `read_targets`.

    Returns:
        One record for each usable reference, in order.

    Raises:
        ValueError: As `read_targets`.
    """
    records = []
    targets = read_targets(files.instances, references, errors, skip_crowds)
    for reference, target in zip(references, targets, strict=True):
        if target is None:
            continue
        with errors:
            records.append(
                Record(
                    image=files.source(target.file_name),
                    size=target.size,
                    objects=target.masks,
                    expressions=reference.expressions,
                    image_id=reference.image_id,
                    ref_id=reference.ref_id,
                    split=reference.split,
                    where=_where(files, reference),
                )
            )
    return records


def is_in_split(recorded: str, asked: str) -> bool:
    """Whether REFER counts a reference recorded under one split to the split asked for."""
    if asked == "test":
        return recorded.startswith("test")
    if asked in ("testA", "testB", "testC"):
        return recorded.startswith("test") and asked[-1] in recorded[len("test") :]
    return recorded == asked


def missing_split(split: str | None, origin: object, recorded: Iterable[str]) -> str:
    """What to say where a file has no reference of the split asked for, and what it has instead."""
    counts = Counter(recorded).items()
    listing = ", ".join(f"{key} ({count} references)" for key, count in counts)
    if split is None:
        return f"there is no reference in {origin}"
    return f"split {split!r} has no reference in {origin}, which has {listing or 'none at all'}"


def _where(files: ReferFiles, reference: Reference) -> str:
    return f"{files.instances}: annotation {' and '.join(reference.annotations) or 'none'}"
