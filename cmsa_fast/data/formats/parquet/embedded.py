"""Reads the Parquet forms that embed the images: jxu124/refcoco-benchmark and moondream/refcoco-m."""

from __future__ import annotations

import re
from typing import Any

from ...errors import ErrorCollector
from ...masks import MaskSource
from ...source import Reading, Source
from ...types import Record
from ..parsing import (
    RepeatedReferences,
    Where,
    check_same,
    field,
    integer,
    listing,
    place,
    read_expressions,
    read_mask,
    read_size,
    string,
)
from ..published import PUBLISHED_EXPRESSIONS, usual_split_by
from .files import (
    DATASET_NAMES,
    EncodedImage,
    Row,
    Shard,
    check_complete,
    read_rows,
    split_names,
)

_REFCOCO_M_EXPRESSIONS = 5_598  # of the only split, as its card states
_BENCHMARK_SPLIT = re.compile(
    r"(?P<dataset>refcoco|refcoco_?plus|refcoco\+|refcocog)_(?P<split_by>unc|google|umd)_"
    r"(?P<split>train|val|test|testA|testB)"
)


def read_benchmark(source: Source, shards: list[Shard], split: str | None, errors: ErrorCollector) -> Reading:
    """Reads jxu124/refcoco-benchmark: one row per image with all references to its objects.

    `split` is named as in the files ("refcoco_unc_val"), or by its last part if only one fits. `source.name`
    and `source.split_by` select among the splits of several data sets.
    """
    chosen = _choose_benchmark(source, shards, split)
    check_complete(chosen, source, split, shards)
    records: list[Record] = []
    for shard in chosen:
        repeated = RepeatedReferences()
        for row in read_rows(shard.path, ("image_info", "ref_list")):
            masks: dict[int, tuple[Any, MaskSource]] = {}
            with errors:
                for i, entry in enumerate(listing(row.values(), "ref_list", row.where)):
                    with errors:
                        where = (*row.where, "reference", i)
                        record = _benchmark_record(row, entry, where, shard.split, source, masks)
                        repeated.check(record.ref_id, (record.image_id, record.expressions), where)
                        records.append(record)
    published: dict[str, int] = {}
    for name in {shard.split for shard in chosen}:
        if parts := _BENCHMARK_SPLIT.fullmatch(name):
            made = PUBLISHED_EXPRESSIONS[DATASET_NAMES[parts["dataset"]]]
            count = made.get(parts["split_by"], {}).get(parts["split"])
            if count is not None:
                published |= {name: count, split or name: count}
    names = split_names(chosen)
    note = f", {names}" if split is not None and names != split else ""
    return Reading(records, f"RefCOCO benchmark (parquet{note})", published)


def _choose_benchmark(source: Source, shards: list[Shard], split: str | None) -> list[Shard]:
    """The files of a split, given by its name in the files or by the last part of it alone."""
    dataset, split_by = DATASET_NAMES.get(source.name), source.split_by
    if exact := [shard for shard in shards if shard.split == split]:
        return exact
    if dataset and split is not None:
        split_by = split_by or usual_split_by(dataset)
    fitting = [
        shard
        for shard in shards
        if (parts := _BENCHMARK_SPLIT.fullmatch(shard.split)) is not None
        and split in (None, parts["split"])
        and dataset in (None, DATASET_NAMES[parts["dataset"]])
        and split_by in ("", parts["split_by"])
    ]
    if split is None and not (dataset or split_by):
        fitting = shards
    if fitting and (split is None or len({shard.split for shard in fitting}) == 1):
        return fitting
    folder = shards[0].path.parent
    if fitting:
        raise ValueError(
            f"split {split!r} may be any of {split_names(fitting)} in {folder}: give one of these, or "
            "say by name and split_by which data set is meant"
        )
    of = " ".join(part for part in (source.name, source.split_by) if part)
    wanted = "a split" if split is None else f"split {split!r}"
    raise ValueError(f"{wanted}{f' of {of}' if of else ''} is not in {folder}, which has {split_names(shards)}")


def _benchmark_record(
    row: Row,
    entry: Any,
    where: Where,
    split: str,
    source: Source,
    masks: dict[int, tuple[Any, MaskSource]],
) -> Record:
    info = field(row.values(), "image_info", row.where)
    inside = (*row.where, "image_info")
    image_id = integer(info, "id", inside)
    annotation, reference = field(entry, "ann_info", where), field(entry, "ref_info", where)
    in_annotation, in_reference = (*where, "ann_info"), (*where, "ref_info")
    ann_id = integer(reference, "ann_id", in_reference)
    check_same(integer(annotation, "id", in_annotation), ann_id, "ann_id", where)
    check_same(annotation.get("image_id"), image_id, "image_id", where)
    check_same(reference.get("image_id"), image_id, "image_id", where)
    if parts := _BENCHMARK_SPLIT.fullmatch(split):
        check_same(reference.get("split"), parts["split"], "split", where)
    known, mask = masks.get(ann_id, (None, None))  # references to one annotation share its mask
    if mask is None or known != annotation.get("segmentation"):
        mask = read_mask(annotation, in_annotation)
        masks[ann_id] = annotation["segmentation"], mask
    return Record(
        image=EncodedImage(row.path, row.group, row.number_in_group, string(info, "file_name", inside)),
        size=read_size(info, inside),
        objects=(mask,),
        expressions=read_expressions(reference, source.text, in_reference),
        image_id=image_id,
        ref_id=integer(reference, "ref_id", in_reference),
        split=split,
        where=place(where),
    )


def read_refcoco_m(source: Source, shards: list[Shard], split: str | None, errors: ErrorCollector) -> Reading:
    """Reads moondream/refcoco-m: one row per image with its objects.

    The only split is "validation", or "val". Its expressions have no numbers and are counted.
    """
    names = ("val", "validation") if split == "val" else (split,)
    chosen = [shard for shard in shards if split is None or shard.split in names]
    check_complete(chosen, source, split, shards)
    records: list[Record] = []
    count = 0
    for shard in chosen:
        for row in read_rows(shard.path, ("image_id", "samples"), optional=("file_name",)):
            with errors:
                for i, sample in enumerate(listing(row.values(), "samples", row.where)):
                    with errors:
                        where = (*row.where, "sample", i)
                        records.append(_refcoco_m_record(row, sample, where, shard.split, count))
                        count += len(records[-1].expressions)
    title = (
        "RefCOCO-M (parquet; a re-annotation of a part of RefCOCO val, whose results do not compare "
        "with RefCOCO's)"
    )
    return Reading(records, title, dict.fromkeys((split or "validation",), _REFCOCO_M_EXPRESSIONS))


def _refcoco_m_record(row: Row, sample: Any, where: Where, split: str, first: int) -> Record:
    values = row.values()
    image_id = integer(values, "image_id", row.where)
    ref_id = integer(sample, "id", where)
    check_same(sample.get("image_id"), image_id, "image_id", where)
    name = values.get("file_name")
    mask = read_mask(sample, where, "mask")
    sentences = listing(sample, "sentences", where)
    for i, sentence in enumerate(sentences):
        string({"text": sentence}, "text", (*where, "sentence", i))
    file_name = str(image_id) if name is None else string(values, "file_name", where)
    return Record(
        image=EncodedImage(row.path, row.group, row.number_in_group, file_name),
        size=mask.size,
        objects=(mask,),
        expressions=tuple(enumerate(sentences, start=first)),
        image_id=image_id,
        ref_id=ref_id,
        split=split,
        where=place(where),
    )
