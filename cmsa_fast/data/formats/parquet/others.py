"""Parquet copies whose figures do not compare with those of the published splits."""

from __future__ import annotations

import re
from typing import Any

from ...errors import ErrorCollector
from ...source import Reading, Source
from ...types import Record
from ..parsing import Where, field, integer, listing, place, string
from ..record_parts import check_same, read_mask
from .files import Shard, check_complete, nothing_read, split_names
from .images import EncodedImage
from .tables import Row, read_rows

# As its card says: expressions of the only split.
_REANNOTATED_EXPRESSIONS = 5_598
_COCO_NUMBER = re.compile(r"COCO_(?:train|val)2014_(\d{12})(?:_\d+)?\.jpg")


def read_reannotated(
    source: Source, shards: list[Shard], split: str | None, errors: ErrorCollector
) -> Reading:
    """Reads RefCOCO-M (moondream/refcoco-m): new masks for a part of RefCOCO's val.

    A row is an image with its objects. The expressions have no numbers: they are counted. There is
    one writing of them.

    Args:
        source: The data set.
        shards: Its files.
        split: "validation"; "val" means the same. None: all splits.
        problems: Takes the objects that cannot be used.

    Returns:
        The records.

    Raises:
        FileNotFoundError: A part of the split is missing.
        ValueError: The split is not there, or a file is damaged.
    """
    chosen = _choose(source, shards, split)
    records: list[Record] = []
    counted = 0
    for shard in chosen:
        for row in read_rows(shard.path, ("image_id", "samples"), optional=("file_name",)):
            with errors:
                samples = listing(row.values(), "samples", row.where)
                for i, sample in enumerate(samples):
                    with errors:
                        where = (*row.where, "sample", i)
                        record = _reannotated(row, sample, where, shard.split, counted)
                        records.append(record)
                        counted += len(record.expressions)
    if not records:
        raise nothing_read(split, chosen, ())
    published = {"validation": _REANNOTATED_EXPRESSIONS}
    if split == "val":
        published[split] = _REANNOTATED_EXPRESSIONS
    return Reading(
        records,
        "RefCOCO-M (parquet; a re-annotation of a part of RefCOCO val, whose figures do not compare "
        "with RefCOCO's)",
        published,
    )


def read_mixed(
    source: Source, shards: list[Shard], split: str | None, errors: ErrorCollector
) -> Reading:
    """Reads the copies of lmms-lab: a row for each reference, with its image.

    There is one writing of the expressions, without numbers: they are counted.

    Args:
        source: The data set; `allow_mixed_splits` must be set.
        shards: Its files.
        split: As the files have it. None: all splits.
        problems: Takes the rows that cannot be used.

    Returns:
        The records. Images have COCO's numbers where their names show them, else numbers below 0.

    Raises:
        FileNotFoundError: A part of the split is missing.
        ValueError: The copy is refused, the split is not there, or a file is damaged.
    """
    if not source.allow_mixed_splits:
        raise ValueError(
            f"{shards[0].path} is a copy of RefCOCO as lmms-lab has it, and it is refused: its "
            "'val' is the val of the google split and that of the UNC or UMD split in one, its "
            "'test' is RefCOCO's google test, and of every object it has one polygon alone, so that "
            "figures on it compare with no published ones. allow_mixed_splits (--mixed-splits) reads "
            "it all the same"
        )
    chosen = _choose(source, shards, split)
    records: list[Record] = []
    numbers: dict[str, int] = {}
    counted = 0
    for shard in chosen:
        columns = ("question_id", "answer", "segmentation", "file_name")
        for row in read_rows(shard.path, columns):
            with errors:
                record = _mixed(row, shard.split, len(records), counted, numbers)
                records.append(record)
                counted += len(record.expressions)
    if not records:
        raise nothing_read(split, chosen, ())
    title = (
        "RefCOCO of lmms-lab (parquet; mixed splits, one polygon an object: figures do not compare)"
    )
    return Reading(records, title)


def _choose(source: Source, shards: list[Shard], split: str | None) -> list[Shard]:
    names = {split, "validation"} if split == "val" else {split}
    chosen = [shard for shard in shards if split is None or shard.split in names]
    if not chosen:
        raise ValueError(
            f"split {split!r} is not in {shards[0].path.parent}, which has {split_names(shards)}"
        )
    check_complete(chosen, source)
    return chosen


def _reannotated(row: Row, sample: Any, where: Where, split: str, first: int) -> Record:
    values = row.values()
    image_id = integer(values, "image_id", row.where)
    ref_id = integer(sample, "id", where)
    check_same(sample.get("image_id"), image_id, "image_id", where)
    name = values.get("file_name")
    mask = read_mask(sample, where, "mask")
    return Record(
        image=_image(row, str(image_id) if name is None else string(values, "file_name", where)),
        size=mask.size,
        objects=(mask,),
        expressions=_counted(sample, "sentences", where, first),
        image_id=image_id,
        ref_id=ref_id,
        split=split,
        where=place(where),
    )


def _mixed(row: Row, split: str, ref_id: int, first: int, numbers: dict[str, int]) -> Record:
    values, where = row.values(), row.where
    file_name = string(values, "file_name", where)
    number = _COCO_NUMBER.fullmatch(file_name)
    image_id = int(number[1]) if number else numbers.setdefault(file_name, -1 - len(numbers))
    return Record(
        image=_image(row, file_name),
        size=None,
        objects=(read_mask(values, where),),
        expressions=_counted(values, "answer", where, first),
        image_id=image_id,
        ref_id=ref_id,
        split=split,
        where=f"{place(where)} (question {field(values, 'question_id', where)})",
    )


def _image(row: Row, file_name: str) -> EncodedImage:
    return EncodedImage(row.path, row.group, row.number_in_group, file_name)


def _counted(record: Any, key: str, where: Where, first: int) -> tuple[tuple[int, str], ...]:
    expressions = listing(record, key, where)
    for i, expression in enumerate(expressions):
        string({"text": expression}, "text", (*where, key, i))
    return tuple(enumerate(expressions, start=first))
