"""Records as a data set with one item per expression."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor

from .images import ImageCache
from .sample import Sample
from .types import Record
from .vocabulary import tokenize

_logger = logging.getLogger(__name__)
_WORD_CHARACTER = re.compile("[0-9A-Za-z]")


@dataclass(frozen=True)
class DatasetReport:
    """What was found in a split, and what was left out of it.

    Attributes:
        references: Records of the split.
        recorded_expressions: Expressions the files have for the split, before any is left out.
        expressions: Items of the data set.
        images: Distinct images of the items.
        expressions_naming_nothing: Items whose expression names nothing in its image, by intent.
        empty_expressions: Expressions without a word (see `tokenize`), blank or ".", left out.
        degenerate_parts: Polygons that enclose nothing, left out of their mask.
        objects_without_mask: References whose masks have no part left.
        expressions_without_mask: Their expressions: left out where one learns from the split, kept with
            an empty mask in every other.
        unusable_records: Records left out because they are damaged (none where that is an error).
        excluded_expressions: Expressions left out because their image is to be excluded.
        excluded_images: Their distinct images.
        published_expressions: The published number of expressions of this split, None where unknown.
    """

    references: int
    recorded_expressions: int
    expressions: int
    images: int
    expressions_naming_nothing: int
    empty_expressions: int
    degenerate_parts: int
    objects_without_mask: int
    expressions_without_mask: int
    unusable_records: int
    excluded_expressions: int
    excluded_images: int
    published_expressions: int | None


class RecordDataset:
    """One item per expression, in the order of the records.

    Masks lie over the pixels as the image file stores them, whose EXIF orientation is therefore
    ignored; only where the stored size does not fit the mask and the upright one does, the upright
    image is taken and the log says so.

    What is left out (expressions without a word, polygons that enclose nothing, and where one learns
    from the split objects with no mask at all) is counted in `report` and logged once. Expressions are
    never de-duplicated.

    Args:
        records: The records.
        title: What they are, for messages: "refcoco (unc) val".
        for_training: Leave expressions out whose objects have lost their masks.
        excluded: The `image_id` of images whose expressions are left out.
        published_expressions: How many expressions the published split has, where that is known.
        unusable_records: How many records the reader had to leave out.

    Attributes:
        records: The records, as given.
        report: What was found and what was left out.

    Raises:
        ValueError: No record has a usable expression.
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
        self._items: list[tuple[int, int, str]] = []  # place of the record, sent_id, expression
        self.report = self._collect(
            for_training, frozenset(excluded), published_expressions, unusable_records
        )
        self._log(for_training)
        if not self._items:
            raise ValueError(f"{title} has no usable expression: {self.report}")
        self._images = ImageCache()
        self._turned: set[str] = set()

    def __len__(self) -> int:
        """Number of expressions."""
        return len(self._items)

    def __getitem__(self, index: int) -> Sample:
        """Reads one expression with its image and mask.

        Args:
            index: 0 to `len(self) - 1`; from the end where negative.

        Returns:
            The sample. Its image may be shared with samples of the same image.

        Raises:
            IndexError: There is no such item.
            FileNotFoundError: The image is missing.
            ValueError: The image is damaged, or the mask does not fit it.
        """
        place, sent_id, expression = self._items[index]
        record = self.records[place]
        image = self._read_image(record)
        mask = record.mask(image.shape[1], image.shape[2])
        return Sample(
            image,
            mask,
            expression,
            record.image_id,
            record.ref_id,
            sent_id,
            names_nothing=record.names_nothing,
        )

    def expressions(self) -> list[str]:
        """The expression of every item, in order, without loading an image."""
        return [expression for _, _, expression in self._items]

    def image_ids(self) -> list[int]:
        """The image number of every item, in order, without loading an image."""
        return [self.records[place].image_id for place, _, _ in self._items]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.title}): {len(self)} expressions"

    def _collect(
        self,
        for_training: bool,
        excluded: frozenset[int],
        published: int | None,
        unusable_records: int,
    ) -> DatasetReport:
        empty_expressions = objects_without_mask = expressions_without_mask = (
            excluded_expressions
        ) = 0
        recorded = naming_nothing = 0
        excluded_images: set[int] = set()
        parts: dict[int, int] = {}  # by object: two references may share one
        for place, record in enumerate(self.records):
            recorded += len(record.expressions)
            if record.image_id in excluded:
                excluded_expressions += len(record.expressions)
                excluded_images.add(record.image_id)
                continue
            full = [(place, *entry) for entry in record.expressions if _has_word(entry[1])]
            empty_expressions += len(record.expressions) - len(full)
            parts |= {id(one): one.dropped for one in record.objects}
            if record.has_lost_mask:
                objects_without_mask += 1
                expressions_without_mask += len(full)
                if for_training:
                    continue
            naming_nothing += len(full) * record.names_nothing
            self._items += full
        return DatasetReport(
            references=len(self.records),
            recorded_expressions=recorded,
            expressions=len(self._items),
            images=len(set(self.image_ids())),
            expressions_naming_nothing=naming_nothing,
            empty_expressions=empty_expressions,
            degenerate_parts=sum(parts.values()),
            objects_without_mask=objects_without_mask,
            expressions_without_mask=expressions_without_mask,
            unusable_records=unusable_records,
            excluded_expressions=excluded_expressions,
            excluded_images=len(excluded_images),
            published_expressions=published,
        )

    def _log(self, for_training: bool) -> None:
        report, title = self.report, self.title
        _logger.info("%s: %d expressions, %d images", title, report.expressions, report.images)
        if report.empty_expressions:
            _logger.warning(
                "%s: left out %d expressions without a word", title, report.empty_expressions
            )
        if report.degenerate_parts:
            _logger.warning(
                "%s: left out %d polygons that enclose nothing", title, report.degenerate_parts
            )
        if report.objects_without_mask:
            _logger.warning(
                "%s: %d objects have no mask; their %d expressions are %s",
                title,
                report.objects_without_mask,
                report.expressions_without_mask,
                "left out" if for_training else "kept with an empty mask",
            )
        if report.excluded_images:
            _logger.info(
                "%s: left out %d expressions about %d images that are to be excluded",
                title,
                report.excluded_expressions,
                report.excluded_images,
            )
        if report.unusable_records:
            _logger.warning("%s: left out %d damaged records", title, report.unusable_records)
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
        stored = self._images.read(record.image, apply_orientation=False)
        if size is None or stored.shape[1:] == size:
            return stored
        upright = self._images.read(record.image, apply_orientation=True)
        if upright.shape[1:] == size:
            if record.image.name not in self._turned:
                self._turned.add(record.image.name)
                _logger.warning(
                    "%s is turned upright: only so does its mask fit it", record.image.name
                )
            return upright
        raise ValueError(
            f"{record.image.name} is {stored.shape[1]} x {stored.shape[2]} (height x width), but "
            f"the mask of ref_id {record.ref_id} in {record.where} is for {size[0]} x {size[1]}"
        )


def _has_word(expression: str) -> bool:
    if _WORD_CHARACTER.search(expression):
        return True  # as `tokenize` would find, at a tenth of the time
    try:
        return bool(tokenize(expression))
    except ValueError:
        return False
