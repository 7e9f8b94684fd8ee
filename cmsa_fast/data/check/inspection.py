"""What a root folder holds, what is wrong with it, and how it compares with what was published."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import Problems, in_one_line
from ..formats.refer_layout import COCO_FOLDERS, published_origin
from ..source import Reading, Source, read_records
from ..types import Record
from ..vocabulary import tokenize
from .discovery import discover
from .findings import (
    KINDS,
    PUBLISHED_PICTURES,
    PUBLISHED_REFERENCES,
    CheckResult,
    DataSetCheck,
    Finding,
    Kind,
    SplitCount,
)
from .images import check_pictures
from .leakage import SplitPictures, find_leaks, numbering_of, split_pictures


def inspect_root(
    root: Path,
    *,
    image_folder: Path | None = None,
    read_pictures: bool = False,
    num_workers: int = 0,
) -> CheckResult:
    """Reads every data set under a root, draws every mask and looks at every picture.

    Args:
        root: The folder.
        image_folder: The folder of the pictures, where it is none of the usual ones.
        read_pictures: Decode every picture, where otherwise the start of its file is read.
        num_workers: Processes that look at pictures beside this one; 0: none.

    Returns:
        What was found. Nothing is changed on the disk.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    discovery = discover(root, image_folder=image_folder)
    data_sets: list[DataSetCheck] = []
    findings = [Finding("", "incomplete", discovery.gaps)] if discovery.gaps else []
    splits: list[SplitPictures] = []
    pictures = 0
    for source in discovery.sources:
        details: dict[Kind, list[str]] = {}
        reading, has_pictures = _read(source, root, details)
        label = _label(source, reading, {one.label for one in data_sets})
        counts: list[SplitCount] = []
        if reading is not None:
            counts = _count(reading, details)
            _check_sentences(reading.records, details)
            checked = check_pictures(
                reading.records,
                title=label,
                look=has_pictures,
                decode=read_pictures,
                num_workers=num_workers,
            )
            for found in checked:
                pictures += has_pictures
                for trouble, message in found.troubles:
                    details.setdefault(trouble, []).append(message)
            splits += split_pictures(
                reading.records, label, numbering=numbering_of(source, reading)
            )
        data_sets.append(DataSetCheck(label, source.form, source.root, tuple(counts)))
        findings += [
            Finding(label, kind, tuple(details[kind])) for kind in KINDS if kind in details
        ]
    return CheckResult(
        root,
        tuple(data_sets),
        tuple(findings),
        tuple(find_leaks(splits)),
        pictures,
        read_pictures,
    )


def _read(
    source: Source, root: Path, details: dict[Kind, list[str]]
) -> tuple[Reading | None, bool]:
    """The records, and whether there are folders of pictures to look into."""
    problems = Problems(strict=False)
    reading = None
    has_pictures = True
    try:
        reading = read_records(source, None, problems)
    except FileNotFoundError as error:
        # Where only the pictures' folder is missing, the records can be checked all the same.
        has_pictures = False
        for folder, is_of_pictures in _other_folders(source, root):
            try:
                problems = Problems(strict=False)
                reading = read_records(replace(source, image_folder=folder), None, problems)
            except (OSError, ValueError, TypeError, ImportError):
                continue
            has_pictures = is_of_pictures
            break
        if not has_pictures:
            details["incomplete"] = [in_one_line(error)]
    except (OSError, ValueError, TypeError, ImportError) as error:
        details["not-readable"] = [in_one_line(error)]
    if problems.messages:
        details["record-unusable"] = problems.messages
    return reading, has_pictures


def _other_folders(source: Source, root: Path) -> Iterator[tuple[Path, bool]]:
    if source.image_folder is not None:
        return
    if source.root != root:
        for relative in COCO_FOLDERS:
            if (root / relative).is_dir():
                yield root / relative, True
    yield source.root, False


def _label(source: Source, reading: Reading | None, taken: set[str]) -> str:
    if reading is not None:
        label = reading.title
    else:
        made = f" ({source.split_by})" if source.split_by else ""
        label = (source.name or source.root.name) + made
    if label in taken:
        label = f"{label}, {source.form}"
    if label in taken:
        label = f"{label} in {source.root}"
    unique, number = label, 2
    while unique in taken:
        unique, number = f"{label} ({number})", number + 1
    return unique


def _count(reading: Reading, details: dict[Kind, list[str]]) -> list[SplitCount]:
    by_split: dict[str, list[Record]] = {split: [] for split in reading.published_sentences}
    for record in reading.records:
        by_split.setdefault(record.split, []).append(record)
    counts = []
    for split, records in by_split.items():
        published = reading.published_sentences.get(split)
        origin, its_name = published_origin(published)  # a copy may call the split otherwise
        count = SplitCount(
            split,
            len(records),
            sum(len(record.sentences) for record in records),
            len({record.image_id for record in records}),
            PUBLISHED_REFERENCES.get(origin, {}).get(its_name),
            published,
            PUBLISHED_PICTURES.get(origin, {}).get(its_name),
        )
        counts.append(count)
        compared = (
            ("references", count.references, count.published_references),
            ("sentences", count.sentences, count.published_sentences),
            ("pictures", count.pictures, count.published_pictures),
        )
        wrong = [
            f"{found} {what} (published: {expected})"
            for what, found, expected in compared
            if expected not in (None, found)
        ]
        if wrong and not records:
            message = f"split {split} is not there (published: {published} sentences)"
            details.setdefault("count", []).append(message)
        elif wrong:
            message = f"split {split} has {', '.join(wrong)}"
            details.setdefault("count", []).append(message)
    return counts


def _check_sentences(records: Sequence[Record], details: dict[Kind, list[str]]) -> None:
    def add(kind: Kind, record: Record, sent_id: int, sentence: str) -> None:
        message = f"{record.split}: ref_id {record.ref_id}, sent_id {sent_id}: {sentence!r}"
        details.setdefault(kind, []).append(message)

    for record in records:
        said: set[str] = set()
        for sent_id, sentence in record.sentences:
            try:
                tokenize(sentence)
            except ValueError:
                add("sentence-without-word", record, sent_id, sentence)
            if not sentence.isascii():
                add("sentence-non-ascii", record, sent_id, sentence)
            if sentence in said:
                add("sentence-repeated", record, sent_id, sentence)
            if record.names_nothing:
                add("names-nothing", record, sent_id, sentence)
            said.add(sentence)
