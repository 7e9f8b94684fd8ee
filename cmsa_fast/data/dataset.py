"""Records as a data set with one item per sentence."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor

from .pictures import PictureCache
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
        recorded_sentences: Sentences the files have for the split, before any is left out.
        sentences: Items of the data set.
        pictures: Distinct pictures of the items.
        sentences_naming_nothing: Items whose sentence names nothing in its picture, by intent.
        empty_sentences: Sentences without a word (see `tokenize`), blank or ".", left out.
        degenerate_parts: Polygons that enclose nothing, left out of their mask.
        objects_without_mask: References whose masks have no part left.
        sentences_without_mask: Their sentences: left out where one learns from the split, kept with
            an empty mask in every other.
        unusable_records: Records left out because they are damaged (none where that is an error).
        excluded_sentences: Sentences left out because their picture is to be excluded.
        excluded_pictures: Their distinct pictures.
        published_sentences: The published number of sentences of this split, None where unknown.
    """

    references: int
    recorded_sentences: int
    sentences: int
    pictures: int
    sentences_naming_nothing: int
    empty_sentences: int
    degenerate_parts: int
    objects_without_mask: int
    sentences_without_mask: int
    unusable_records: int
    excluded_sentences: int
    excluded_pictures: int
    published_sentences: int | None


class RecordDataset:
    """One item per sentence, in the order of the records.

    Masks lie over the pixels as the picture file stores them, whose EXIF orientation is therefore
    ignored; only where the stored size does not fit the mask and the upright one does, the upright
    picture is taken and the log says so.

    What is left out (sentences without a word, polygons that enclose nothing, and where one learns
    from the split objects with no mask at all) is counted in `report` and logged once. Sentences are
    never de-duplicated.

    Args:
        records: The records.
        title: What they are, for messages: "refcoco (unc) val".
        for_training: Leave sentences out whose objects have lost their masks.
        excluded: The `image_id` of pictures whose sentences are left out.
        published_sentences: How many sentences the published split has, where that is known.
        unusable_records: How many records the reader had to leave out.

    Attributes:
        records: The records, as given.
        report: What was found and what was left out.

    Raises:
        ValueError: No record has a usable sentence.
    """

    report: DatasetReport

    def __init__(
        self,
        records: Sequence[Record],
        *,
        title: str,
        for_training: bool,
        excluded: Collection[int] = (),
        published_sentences: int | None = None,
        unusable_records: int = 0,
    ) -> None:
        self.title = title
        self.records = records
        self._items: list[tuple[int, int, str]] = []  # place of the record, sent_id, sentence
        self.report = self._collect(
            for_training, frozenset(excluded), published_sentences, unusable_records
        )
        self._log(for_training)
        if not self._items:
            raise ValueError(f"{title} has no usable sentence: {self.report}")
        self._pictures = PictureCache()
        self._turned: set[str] = set()

    def __len__(self) -> int:
        """Number of sentences."""
        return len(self._items)

    def __getitem__(self, index: int) -> Sample:
        """Reads one sentence with its picture and mask.

        Args:
            index: 0 to `len(self) - 1`; from the end where negative.

        Returns:
            The sample. Its picture may be shared with samples of the same picture.

        Raises:
            IndexError: There is no such item.
            FileNotFoundError: The picture is missing.
            ValueError: The picture is damaged, or the mask does not fit it.
        """
        place, sent_id, sentence = self._items[index]
        record = self.records[place]
        image = self._read_picture(record)
        mask = record.mask(image.shape[1], image.shape[2])
        return Sample(
            image,
            mask,
            sentence,
            record.image_id,
            record.ref_id,
            sent_id,
            names_nothing=record.names_nothing,
        )

    def sentences(self) -> list[str]:
        """The sentence of every item, in order, without loading a picture."""
        return [sentence for _, _, sentence in self._items]

    def image_ids(self) -> list[int]:
        """The picture number of every item, in order, without loading a picture."""
        return [self.records[place].image_id for place, _, _ in self._items]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.title}): {len(self)} sentences"

    def _collect(
        self,
        for_training: bool,
        excluded: frozenset[int],
        published: int | None,
        unusable_records: int,
    ) -> DatasetReport:
        empty_sentences = objects_without_mask = sentences_without_mask = excluded_sentences = 0
        recorded = naming_nothing = 0
        excluded_pictures: set[int] = set()
        parts: dict[int, int] = {}  # by object: two references may share one
        for place, record in enumerate(self.records):
            recorded += len(record.sentences)
            if record.image_id in excluded:
                excluded_sentences += len(record.sentences)
                excluded_pictures.add(record.image_id)
                continue
            full = [(place, *entry) for entry in record.sentences if _has_word(entry[1])]
            empty_sentences += len(record.sentences) - len(full)
            parts |= {id(one): one.dropped for one in record.objects}
            if record.has_lost_mask:
                objects_without_mask += 1
                sentences_without_mask += len(full)
                if for_training:
                    continue
            naming_nothing += len(full) * record.names_nothing
            self._items += full
        return DatasetReport(
            references=len(self.records),
            recorded_sentences=recorded,
            sentences=len(self._items),
            pictures=len(set(self.image_ids())),
            sentences_naming_nothing=naming_nothing,
            empty_sentences=empty_sentences,
            degenerate_parts=sum(parts.values()),
            objects_without_mask=objects_without_mask,
            sentences_without_mask=sentences_without_mask,
            unusable_records=unusable_records,
            excluded_sentences=excluded_sentences,
            excluded_pictures=len(excluded_pictures),
            published_sentences=published,
        )

    def _log(self, for_training: bool) -> None:
        report, title = self.report, self.title
        _logger.info("%s: %d sentences, %d pictures", title, report.sentences, report.pictures)
        if report.empty_sentences:
            _logger.warning(
                "%s: left out %d sentences without a word", title, report.empty_sentences
            )
        if report.degenerate_parts:
            _logger.warning(
                "%s: left out %d polygons that enclose nothing", title, report.degenerate_parts
            )
        if report.objects_without_mask:
            _logger.warning(
                "%s: %d objects have no mask; their %d sentences are %s",
                title,
                report.objects_without_mask,
                report.sentences_without_mask,
                "left out" if for_training else "kept with an empty mask",
            )
        if report.excluded_pictures:
            _logger.info(
                "%s: left out %d sentences about %d pictures that are to be excluded",
                title,
                report.excluded_sentences,
                report.excluded_pictures,
            )
        if report.unusable_records:
            _logger.warning("%s: left out %d damaged records", title, report.unusable_records)
        if report.published_sentences not in (None, report.recorded_sentences):
            _logger.warning(
                "%s: the files have %d sentences, the published split has %d; results on this copy "
                "are not comparable with published ones",
                title,
                report.recorded_sentences,
                report.published_sentences,
            )

    def _read_picture(self, record: Record) -> Tensor:
        size = record.mask_size
        stored = self._pictures.read(record.picture, apply_orientation=False)
        if size is None or stored.shape[1:] == size:
            return stored
        upright = self._pictures.read(record.picture, apply_orientation=True)
        if upright.shape[1:] == size:
            if record.picture.name not in self._turned:
                self._turned.add(record.picture.name)
                _logger.warning(
                    "%s is turned upright: only so does its mask fit it", record.picture.name
                )
            return upright
        raise ValueError(
            f"{record.picture.name} is {stored.shape[1]} x {stored.shape[2]} (height x width), but "
            f"the mask of ref_id {record.ref_id} in {record.where} is for {size[0]} x {size[1]}"
        )


def _has_word(sentence: str) -> bool:
    if _WORD_CHARACTER.search(sentence):
        return True  # as `tokenize` would find, at a tenth of the time
    try:
        return bool(tokenize(sentence))
    except ValueError:
        return False
