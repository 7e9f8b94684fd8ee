"""Data sets with one item per expression: `open_split`, `load`, and the shuffled control."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import ErrorCollector, located
from .exclusions import excluded_images
from .images import ImageCache, image_size
from .source import Form, Source, read_records
from .types import ColumnarRecords, Record, RecordColumns, ReferringDataset, Sample
from .vocabulary import tokenize

_logger = logging.getLogger(__name__)
_WORD_CHARACTER = re.compile("[0-9A-Za-z]")


@dataclass(frozen=True)
class DatasetReport:
    """What a split contains and what was left out of it."""

    references: int  # number of usable records of the split
    recorded_expressions: int  # number of expressions in these records
    expressions: int  # number of items of the data set
    images: int  # number of distinct images of the items
    expressions_naming_nothing: int  # items whose expression refers to nothing in its image
    empty_expressions: int  # expressions without a word (see `tokenize`), which are left out
    degenerate_parts: int  # polygons that enclose no area, which are left out of their mask
    objects_without_mask: int  # references all of whose masks are empty
    expressions_without_mask: int  # their expressions: left out for training, otherwise kept with an empty mask
    unusable_records: int  # damaged records that were left out when the split was opened
    excluded_expressions: int  # expressions left out because their image is excluded
    excluded_images: int  # number of their distinct images
    published_expressions: int | None  # number of expressions of the published split, None if unknown


class RecordDataset:
    """One item per expression, in the order of the records.

    Masks apply to the pixels as stored in the image file, so its EXIF orientation is ignored. Only if
    the stored size does not fit the mask and the upright size does, the upright image is used and a
    warning is logged. Expressions are never de-duplicated.

    Args:
        records: The records.
        title: Name of the data set for messages, such as "refcoco (unc) val".
        for_training: Leave out expressions whose objects have no mask left.
        excluded: The `image_id` of images whose expressions are left out.
        published_expressions: Number of expressions of the published split, if known.
        unusable_records: Number of records that the reader left out.

    Attributes:
        records: The records as given.
        report: Counts of what the data set contains and of what was left out.

    Raises:
        ValueError: No expression is usable.
    """

    report: DatasetReport

    def __init__(
        self,
        records: Sequence[Record],
        *,
        title: str,
        for_training: bool,
        excluded: Collection[int] = (),
        published_expressions: int | None = None,
        unusable_records: int = 0,
    ) -> None:
        self.title = title
        self.records = records
        columns = (
            records.columns() if isinstance(records, ColumnarRecords) else RecordColumns.from_records(records)
        )
        row = np.repeat(np.arange(len(records)), columns.lengths)  # [expressions]
        search = _WORD_CHARACTER.search  # finds most words in a tenth of the time of `tokenize`
        has_word = np.array([bool(search(one)) or _has_word(one) for one in columns.expressions], bool)
        is_excluded = np.isin(columns.image_ids, list(excluded))
        lost = columns.has_lost_mask & ~is_excluded
        kept = has_word & ~is_excluded[row]
        without_mask = int((kept & lost[row]).sum())
        if for_training:
            kept &= ~lost[row]
        self._rows = row[kept]
        self._sent_ids = columns.sent_ids[kept]
        self._image_ids = columns.image_ids[self._rows]
        self._expressions = [columns.expressions[i] for i in np.flatnonzero(kept)]
        self.report = DatasetReport(
            references=len(records),
            recorded_expressions=len(row),
            expressions=len(self._rows),
            images=len(np.unique(self._image_ids)),
            expressions_naming_nothing=int(columns.names_nothing[self._rows].sum()),
            empty_expressions=int((~has_word & ~is_excluded[row]).sum()),
            degenerate_parts=int(columns.degenerate_parts[~is_excluded].sum()),
            objects_without_mask=int(lost.sum()),
            expressions_without_mask=without_mask,
            unusable_records=unusable_records,
            excluded_expressions=int(is_excluded[row].sum()),
            excluded_images=len(np.unique(columns.image_ids[is_excluded])),
            published_expressions=published_expressions,
        )
        self._log(for_training)
        if not len(self):
            raise ValueError(f"{title} has no usable expression: {self.report}")
        self._images = ImageCache()
        self._turned: set[str] = set()

    def __len__(self) -> int:
        """Number of expressions."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        """Reads one expression with its image and mask.

        Args:
            index: 0 to `len(self) - 1`, or negative to count from the end.

        Returns:
            The sample. Its image may be shared with other samples of the same image.

        Raises:
            IndexError: There is no such item.
            FileNotFoundError: The image is missing.
            ValueError: The image is damaged, or the mask does not fit it.
        """
        record = self.records[int(self._rows[index])]
        return self._sample(index, record, self._read_image(record))

    def without_pixels(self, index: int) -> Sample:
        """Reads one expression as `dataset[index]` does, except for the pixels of the image.

        The image of the sample has a shape and no pixels (it is on PyTorch's meta device). Its file is opened only
        if neither record nor mask states its size.
        """
        record = self.records[int(self._rows[index])]
        with located(record.where):
            size = record.mask_size or image_size(record.image, apply_orientation=False)
        return self._sample(index, record, torch.empty(3, *size, dtype=torch.uint8, device="meta"))

    def _sample(self, index: int, record: Record, image: Tensor) -> Sample:
        height, width = image.shape[1:]
        return Sample(
            image,
            record.mask(height, width),
            self._expressions[index],
            record.image_id,
            record.ref_id,
            int(self._sent_ids[index]),
            kind=record.kind,
            names_nothing=record.names_nothing,
            ignore=record.ignore(height, width),
        )

    def expressions(self) -> list[str]:
        """The expression of every item in order, without loading an image."""
        return list(self._expressions)

    def image_ids(self) -> list[int]:
        """The image number of every item in order, without loading an image."""
        ids: list[int] = self._image_ids.tolist()
        return ids

    def ids(self) -> list[tuple[int, int, int]]:
        """`image_id`, `ref_id` and `sent_id` of every item in order, without loading an image."""
        numbers = [(record.image_id, record.ref_id) for record in self.records]
        return [(*numbers[row], sent_id) for row, sent_id in zip(self._rows, self._sent_ids.tolist(), strict=True)]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.title}): {len(self)} expressions"

    def _log(self, for_training: bool) -> None:
        report, title = self.report, self.title
        _logger.info("%s: %d expressions, %d images", title, report.expressions, report.images)
        if report.excluded_images:
            _logger.info(
                "%s: left out %d expressions about %d excluded images",
                title,
                report.excluded_expressions,
                report.excluded_images,
            )
        for count, what in (
            (report.empty_expressions, "expressions without a word"),
            (report.degenerate_parts, "polygons that enclose nothing"),
            (report.unusable_records, "damaged records"),
        ):
            if count:
                _logger.warning("%s: left out %d %s", title, count, what)
        if report.objects_without_mask:
            _logger.warning(
                "%s: %d objects have no mask; their %d expressions are %s",
                title,
                report.objects_without_mask,
                report.expressions_without_mask,
                "left out" if for_training else "kept with an empty mask",
            )
        if report.published_expressions not in (None, report.recorded_expressions):
            _logger.warning(
                "%s: the files have %d expressions, the published split has %d; results on this copy "
                "are not comparable with published ones",
                title,
                report.recorded_expressions,
                report.published_expressions,
            )

    def _read_image(self, record: Record) -> Tensor:
        size = record.mask_size
        with located(record.where):
            stored = self._images.read(record.image, apply_orientation=False)
            if size is None or stored.shape[1:] == size:
                return stored
            upright = self._images.read(record.image, apply_orientation=True)
        name = record.image.name
        if upright.shape[1:] == size:
            if name not in self._turned:
                self._turned.add(name)
                _logger.warning("%s is turned upright, because only so its mask fits", name)
            return upright
        raise ValueError(
            f"{name} is {stored.shape[1]} x {stored.shape[2]} (height x width), but "
            f"the mask of ref_id {record.ref_id} in {record.where} is for {size[0]} x {size[1]}"
        )


class ShuffledExpressions:
    """Control: pairs each image with another image's expression, to measure how much the model uses language.

    Images and masks stay in place and the expressions are permuted among them. Every expression moves
    to another image, unless one image has more than half of all expressions: then as few as possible
    stay, and a warning gives their number. `Sample.kind` is left empty.

    Args:
        dataset: A data set with at least two images.
        seed: Seed of the permutation.

    Raises:
        ValueError: There is only one image.
    """

    def __init__(self, dataset: ReferringDataset, seed: int = 0) -> None:
        images = np.asarray(dataset.image_ids())
        names, counts = np.unique(images, return_counts=True)
        if len(names) < 2:
            raise ValueError("dataset must have at least two images to shuffle expressions among.")
        self.dataset = dataset
        self._expressions = dataset.expressions()
        # Sort expressions by image, images in random order, and rotate by the largest group: if no image
        # has more than half of the expressions, none keeps one of its own.
        order = np.random.default_rng(seed).permutation(len(names))
        rank = np.empty(len(names), dtype=int)
        rank[order] = np.arange(len(names))
        by_image = np.argsort(rank[np.searchsorted(names, images)], kind="stable")
        self._source = np.empty(len(images), dtype=int)
        self._source[by_image] = np.roll(by_image, counts.max())
        kept = int((images[self._source] == images).sum())
        if kept:
            _logger.warning(
                "%d of %d expressions stay with their image when shuffled: it has more than half of them.",
                kept,
                len(images),
            )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        expression = self._expressions[self._source[index]]
        return replace(self.dataset[index], expression=expression, kind="")

    def expressions(self) -> list[str]:
        return [self._expressions[source] for source in self._source]

    def image_ids(self) -> list[int]:
        return self.dataset.image_ids()


def open_split(
    source: Source,
    split: str,
    *,
    for_training: bool = False,
    exclude: Mapping[str, Collection[int]] | None = None,
    errors: ErrorCollector | None = None,
) -> RecordDataset:
    """Opens a split as a data set with one item per expression.

    Args:
        source: The data set.
        split: Name of the split in this form.
        for_training: Leave out expressions whose objects have no mask left.
        exclude: Numbers of images to leave out, by numbering, as
            `cmsa_fast.data.exclusions.read_exclusions` returns them.
        errors: Collects the records that cannot be used. None: the first one is raised.

    Returns:
        The data set; its `report` counts what was left out.

    Raises:
        FileNotFoundError, ValueError, ImportError: As `read_records`.
    """
    errors = errors or ErrorCollector(strict=True)
    before = errors.count - errors.repeated
    reading = read_records(source, split, errors)
    return RecordDataset(
        reading.records,
        title=f"{reading.title} {split}",
        for_training=for_training,
        excluded=excluded_images(source, reading, exclude) if exclude else (),
        published_expressions=reading.published_expressions.get(split),
        unusable_records=errors.count - errors.repeated - before,
    )


def load(form: Form, root: str | os.PathLike[str], split: str, **options: Any) -> RecordDataset:
    """Opens a split in one line: `load("refer", "data", "val", name="refcoco+")`.

    Args:
        form: Layout of the files, as in `Source`.
        root: Folder (or file) that holds the data set.
        split: Name of the split in this form.
        **options: Further fields of `Source`: `name`, `split_by`, `text`, `image_folder`.

    Returns:
        The data set. The first record that cannot be used is an error; `open_split` can collect them.

    Raises:
        FileNotFoundError, ValueError, ImportError: As `read_records`.
    """
    return open_split(Source(form=form, root=Path(root), **options), split)


def _has_word(expression: str) -> bool:
    try:
        return bool(tokenize(expression))
    except ValueError:
        return False
