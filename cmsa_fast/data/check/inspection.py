"""Checks all data sets under a root folder: records, masks, images, counts, leaks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import ErrorCollector, one_line
from ..exclusions import numbering_of
from ..formats.published import published_origin
from ..formats.refer_layout import COCO_FOLDERS
from ..source import Reading, Source, read_records
from ..types import Record
from ..vocabulary import tokenize
from .discovery import discover
from .findings import (
    KINDS,
    PUBLISHED_IMAGES,
    PUBLISHED_REFERENCES,
    CheckResult,
    DataSetCheck,
    Finding,
    Kind,
    SplitCount,
)
from .images import check_images
from .leakage import Images, SplitName, find_leaks, split_images


def inspect_root(
    root: Path, *, image_folder: Path | None = None, read_images: bool = False, num_workers: int = 0
) -> CheckResult:
    """Reads every data set under a root, decodes every mask and checks every image; changes nothing.

    Without `read_images` only the start of each image file is read. `num_workers=0` uses this process.
    """
    discovery = discover(root, image_folder=image_folder)
    data_sets: list[DataSetCheck] = []
    findings = [Finding("", "incomplete", discovery.gaps)] if discovery.gaps else []
    splits: dict[SplitName, Images] = {}
    images = 0
    for source in discovery.sources:
        details: dict[Kind, list[str]] = {}
        reading, has_images = _read(source, root, details)
        label = _label(source, reading, {one.label for one in data_sets})
        counts: list[SplitCount] = []
        if reading is not None:
            counts = _count(reading, details)
            _check_expressions(reading.records, details)
            checked = check_images(
                reading.records, title=label, read=has_images, decode=read_images, num_workers=num_workers
            )
            for image_findings in checked:
                images += has_images
                for kind, message in image_findings:
                    details.setdefault(kind, []).append(message)
            splits |= split_images(reading.records, label, numbering_of(source, reading))
        data_sets.append(DataSetCheck(label, source.form, source.root, tuple(counts)))
        findings += [Finding(label, kind, tuple(details[kind])) for kind in KINDS if kind in details]
    return CheckResult(root, tuple(data_sets), tuple(findings), tuple(find_leaks(splits)), images, read_images)


def _read(source: Source, root: Path, details: dict[Kind, list[str]]) -> tuple[Reading | None, bool]:
    """The records, and whether a folder of images exists."""
    errors = ErrorCollector(strict=False)
    reading = None
    has_images = True
    try:
        reading = read_records(source, None, errors)
    except FileNotFoundError as error:
        # If only the image folder is missing, the records can be checked nevertheless.
        has_images = False
        for folder, has_image_folder in _other_folders(source, root):
            try:
                errors = ErrorCollector(strict=False)
                reading = read_records(replace(source, image_folder=folder), None, errors)
            except (OSError, ValueError, TypeError, ImportError):
                continue
            has_images = has_image_folder
            break
        if not has_images:
            details["incomplete"] = [one_line(error)]
    except (OSError, ValueError, TypeError, ImportError) as error:
        details["not-readable"] = [one_line(error)]
    if errors.messages:
        details["record-unusable"] = errors.messages
    return reading, has_images


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
        author = f" ({source.split_by})" if source.split_by else ""
        label = (source.name or source.root.name) + author
    if label in taken:
        label = f"{label}, {source.form}"
    if label in taken:
        label = f"{label} in {source.root}"
    numbered = (f"{label} ({number})" for number in itertools.count(2))
    return next(unique for unique in itertools.chain([label], numbered) if unique not in taken)


def _count(reading: Reading, details: dict[Kind, list[str]]) -> list[SplitCount]:
    by_split: dict[str, list[Record]] = {split: [] for split in reading.published_expressions}
    for record in reading.records:
        by_split.setdefault(record.split, []).append(record)
    counts = []
    for split, records in by_split.items():
        published = reading.published_expressions.get(split)
        origin, its_name = published_origin(published)  # a copy may use another name
        count = SplitCount(
            split,
            len(records),
            sum(len(record.expressions) for record in records),
            len({record.image_id for record in records}),
            PUBLISHED_REFERENCES.get(origin, {}).get(its_name),
            published,
            PUBLISHED_IMAGES.get(origin, {}).get(its_name),
        )
        counts.append(count)
        wrong = [
            f"{actual} {what} (published: {expected})"
            for what, actual, expected in count.compared()
            if actual != expected
        ]
        if wrong:
            missing = f"is missing (published: {published} expressions)"
            message = f"has {', '.join(wrong)}" if records else missing
            details.setdefault("count", []).append(f"split {split} {message}")
    return counts


def _check_expressions(records: Sequence[Record], details: dict[Kind, list[str]]) -> None:
    def add(kind: Kind, record: Record, sent_id: int, expression: str) -> None:
        message = f"{record.split}: ref_id {record.ref_id}, sent_id {sent_id}: {expression!r}"
        details.setdefault(kind, []).append(message)

    for record in records:
        seen: set[str] = set()
        for sent_id, expression in record.expressions:
            try:
                tokenize(expression)
            except ValueError:
                add("expression-without-word", record, sent_id, expression)
            if not expression.isascii():
                add("expression-non-ascii", record, sent_id, expression)
            if expression in seen:
                add("expression-repeated", record, sent_id, expression)
            if record.names_nothing:
                add("names-nothing", record, sent_id, expression)
            seen.add(expression)
