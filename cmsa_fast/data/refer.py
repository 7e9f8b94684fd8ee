"""RefCOCO, RefCOCO+, RefCOCOg and RefCLEF as the REFER toolbox lays them out on disk."""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from cmsa_fast.data.images import PictureCache
from cmsa_fast.data.refer_files import PUBLISHED_SENTENCES, locate_refer_files
from cmsa_fast.data.refer_records import Reference, Target, read_references, read_targets
from cmsa_fast.data.sample import Sample
from cmsa_fast.data.vocabulary import tokenize

_logger = logging.getLogger(__name__)

Text = Literal["sent", "raw"]


@dataclass(frozen=True)
class ReferReport:
    """What was found in a split, and what was left out of it.

    Attributes:
        references: Referred objects of the split.
        recorded_sentences: Sentences the files have for the split, before any is left out.
        sentences: Items of the data set.
        pictures: Distinct pictures of the items.
        empty_sentences: Sentences without a word (see `tokenize`), blank or ".", left out.
        degenerate_parts: Polygons that enclose nothing, left out of their mask.
        objects_without_mask: References whose mask has no part left.
        sentences_without_mask: Their sentences: left out of "train", kept with an empty mask in
            every other split.
        published_sentences: The published number of sentences of this split, None where unknown.
    """

    references: int
    recorded_sentences: int
    sentences: int
    pictures: int
    empty_sentences: int
    degenerate_parts: int
    objects_without_mask: int
    sentences_without_mask: int
    published_sentences: int | None


class ReferDataset:
    """A split of a data set in the REFER layout; one item per sentence, in the files' order.

    `locate_refer_files` describes the layout. A split is matched as REFER does it: "testA" takes
    what the file calls "testA", "testAB" or "testAC" (likewise "testB", "testC"), "test" takes
    every split whose name begins with "test", and any other name takes that split alone.

    Masks are the union of an object's parts. They lie over the pixels as the picture file stores
    them, whose EXIF orientation is therefore ignored; only where the stored size does not fit the
    mask and the upright one does, the upright picture is taken and the log says so.

    What is left out (sentences without a word, polygons that enclose nothing, and in "train"
    objects with no mask at all) is counted in `report` and logged once.

    Args:
        root: The folder with the data sets and the pictures.
        name: "refcoco", "refcoco+", "refcocog", "refclef", or the folder of one's own data.
        split_by: Who made the split: "unc", "umd", "google", "berkeley".
        split: The split.
        text: Which writing of the sentences to give: "sent" is cleaned and in lower case, "raw" is
            as it was typed.
        image_folder: The folder of the pictures, where it is not one of REFER's.

    Attributes:
        report: What was found and what was left out.

    Raises:
        FileNotFoundError: The root, a file or the pictures' folder is missing; the message says
            what belongs where.
        ValueError: An argument names what is not there (the message lists what is), the split has
            no item, or a file is damaged (the message names file, record and field).
    """

    report: ReferReport

    def __init__(
        self,
        root: str | os.PathLike[str],
        name: str = "refcoco",
        split_by: str = "unc",
        split: str = "train",
        *,
        text: Text = "sent",
        image_folder: str | os.PathLike[str] | None = None,
    ) -> None:
        if text not in get_args(Text):
            raise ValueError(f"text must be one of {', '.join(get_args(Text))}, not {text!r}")
        self.name, self.split_by, self.split, self.text = name, split_by, split, text
        self._files = locate_refer_files(root, name, split_by, image_folder)
        everything = read_references(self._files.references, text)
        self._references = [ref for ref in everything if _is_in_split(ref.split, split)]
        if not self._references:
            there = Counter(reference.split for reference in everything)
            listing = ", ".join(f"{key} ({count} references)" for key, count in there.items())
            raise ValueError(
                f"split {split!r} has no reference in {self._files.references}, which has "
                f"{listing or 'none at all'}"
            )
        self._targets = read_targets(self._files.instances, self._references)
        self._items: list[tuple[int, int, str]] = []  # place of the reference, sent_id, sentence
        self.report = self._collect()
        self._log()
        if not self._items:
            raise ValueError(f"split {split!r} of {name} has no usable sentence: {self.report}")
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
        reference, target = self._references[place], self._targets[place]
        image = self._read_picture(reference, target)
        try:
            mask = target.mask.decode(image.shape[1], image.shape[2])
        except ValueError as error:
            raise ValueError(
                f"{self._files.instances}: annotation {reference.annotation}: {error}"
            ) from error
        return Sample(image, mask, sentence, reference.image_id, reference.ref_id, sent_id)

    def sentences(self) -> list[str]:
        """The sentence of every item, in order, without loading a picture."""
        return [sentence for _, _, sentence in self._items]

    def image_ids(self) -> list[int]:
        """The picture number of every item, in order, without loading a picture."""
        return [self._references[place].image_id for place, _, _ in self._items]

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name={self.name!r}, split_by={self.split_by!r}, "
            f"split={self.split!r}, text={self.text!r}): {len(self)} sentences"
        )

    def _collect(self) -> ReferReport:
        empty_sentences = objects_without_mask = sentences_without_mask = recorded = 0
        parts: dict[str, int] = {}
        for place, (reference, target) in enumerate(
            zip(self._references, self._targets, strict=True)
        ):
            recorded += len(reference.sentences)
            full = [(place, *entry) for entry in reference.sentences if _has_word(entry[1])]
            empty_sentences += len(reference.sentences) - len(full)
            parts[reference.annotation] = target.mask.dropped
            if target.mask.is_empty:
                objects_without_mask += 1
                sentences_without_mask += len(full)
                if self.split == "train":
                    continue
            self._items += full
        published = PUBLISHED_SENTENCES.get(self.name, {}).get(self.split_by, {})
        return ReferReport(
            references=len(self._references),
            recorded_sentences=recorded,
            sentences=len(self._items),
            pictures=len(set(self.image_ids())),
            empty_sentences=empty_sentences,
            degenerate_parts=sum(parts.values()),
            objects_without_mask=objects_without_mask,
            sentences_without_mask=sentences_without_mask,
            published_sentences=published.get(self.split),
        )

    def _log(self) -> None:
        report, where = self.report, f"{self.name} ({self.split_by}) {self.split}"
        _logger.info("%s: %d sentences, %d pictures", where, report.sentences, report.pictures)
        if report.empty_sentences:
            _logger.warning(
                "%s: left out %d sentences without a word", where, report.empty_sentences
            )
        if report.degenerate_parts:
            _logger.warning(
                "%s: left out %d polygons that enclose nothing", where, report.degenerate_parts
            )
        if report.objects_without_mask:
            _logger.warning(
                "%s: %d objects have no mask; their %d sentences are %s",
                where,
                report.objects_without_mask,
                report.sentences_without_mask,
                "left out" if self.split == "train" else "kept with an empty mask",
            )
        if report.published_sentences not in (None, report.recorded_sentences):
            _logger.warning(
                "%s: the files have %d sentences, the published split has %d; results on this copy "
                "are not comparable with published ones",
                where,
                report.recorded_sentences,
                report.published_sentences,
            )

    def _read_picture(self, reference: Reference, target: Target) -> Tensor:
        path = self._files.picture(target.file_name)
        size = target.mask.size or target.size
        stored = self._pictures.read(path, apply_orientation=False)
        if stored.shape[1:] == size:
            return stored
        upright = self._pictures.read(path, apply_orientation=True)
        if upright.shape[1:] == size:
            if path.name not in self._turned:
                self._turned.add(path.name)
                _logger.warning("%s is turned upright: only so does its mask fit it", path)
            return upright
        raise ValueError(
            f"{path} is {stored.shape[1]} x {stored.shape[2]} (height x width), but the mask of "
            f"ref_id {reference.ref_id} in {self._files.instances} is for {size[0]} x {size[1]}"
        )


def _has_word(sentence: str) -> bool:
    try:
        return bool(tokenize(sentence))
    except ValueError:
        return False


def _is_in_split(recorded: str, asked: str) -> bool:
    """Whether REFER counts a reference recorded under one split to the split asked for."""
    if asked == "test":
        return recorded.startswith("test")
    if asked in ("testA", "testB", "testC"):
        return recorded.startswith("test") and asked[-1] in recorded[len("test") :]
    return recorded == asked
