"""The parquet copy of the evaluation splits with pixels and all polygons (jxu124/refcoco-benchmark).

A row is an image with every reference to an object in it.
"""

from __future__ import annotations

import re
from typing import Any

from ...errors import ErrorCollector
from ...masks import MaskSource
from ...source import Reading, Source, Text
from ...types import Record
from ..parsing import Where, field, integer, listing, place, string
from ..record_parts import check_same, read_expressions, read_mask, read_size
from ..refer_layout import PUBLISHED_EXPRESSIONS, usual_split_by
from .files import DATASET_NAMES, Shard, check_complete, nothing_read, split_names
from .images import EncodedImage
from .tables import Row, read_rows

_Masks = dict[int, tuple[Any, MaskSource]]  # of one image, by annotation
_SPLIT = re.compile(
    r"(?P<dataset>refcoco|refcoco_?plus|refcoco\+|refcocog)_(?P<split_by>unc|google|umd)_"
    r"(?P<split>train|val|test|testA|testB)"
)


def read_benchmark(
    source: Source, shards: list[Shard], split: str | None, errors: ErrorCollector
) -> Reading:
    """Reads the records of a split.

    Args:
        source: The data set. `name` and `split_by` leave the splits of others out.
        shards: Its files.
        split: As the files have it ("refcoco_unc_val"), or its last part alone where only one fits.
            None: all splits.
        problems: Takes the references that cannot be used.

    Returns:
        The records; their split is that of the files, for several data sets have a "val".

    Raises:
        FileNotFoundError: A part of the split is missing.
        ValueError: The split is not there, or a file is damaged.
    """
    chosen = _choose(source, shards, split)
    check_complete(chosen, source)
    records: list[Record] = []
    for shard in chosen:
        for row in read_rows(shard.path, ("image_info", "ref_list")):
            masks: _Masks = {}
            with errors:
                for i, entry in enumerate(listing(row.values(), "ref_list", row.where)):
                    with errors:
                        where = (*row.where, "reference", i)
                        records.append(_record(row, entry, where, shard.split, source.text, masks))
    if not records:
        raise nothing_read(split, chosen, ())
    published: dict[str, int] = {}
    for name in {shard.split for shard in chosen}:
        known = _published(name)
        if known is not None:
            published[name] = known
            if split is not None:
                published[split] = known
    names = split_names(chosen)
    title = "RefCOCO benchmark (parquet)"
    if split is not None and names != split:
        title = f"RefCOCO benchmark (parquet, {names})"
    return Reading(records, title, published)


def _choose(source: Source, shards: list[Shard], split: str | None) -> list[Shard]:
    dataset, split_by = DATASET_NAMES.get(source.name), source.split_by
    exact = [shard for shard in shards if shard.split == split]
    if exact:
        return exact
    fitting = [
        shard
        for shard in shards
        if (parts := _SPLIT.fullmatch(shard.split)) is not None
        and (split is None or parts["split"] == split)
        and (dataset is None or DATASET_NAMES[parts["dataset"]] == dataset)
        and (not split_by or parts["split_by"] == split_by)
    ]
    if split is None:
        fitting = fitting if dataset or split_by else shards
    elif dataset and not split_by:
        usual = usual_split_by(dataset)
        fitting = [shard for shard in fitting if f"_{usual}_" in shard.split]
    if fitting and (split is None or len({shard.split for shard in fitting}) == 1):
        return fitting
    folder, there = shards[0].path.parent, split_names(shards)
    if fitting:
        raise ValueError(
            f"split {split!r} may be any of {split_names(fitting)} in {folder}: give one of these, or "
            "say by name and split_by which data set is meant"
        )
    of = " ".join(part for part in (source.name, split_by) if part)
    wanted = "a split" if split is None else f"split {split!r}"
    raise ValueError(f"{wanted}{f' of {of}' if of else ''} is not in {folder}, which has {there}")


def _published(name: str) -> int | None:
    parts = _SPLIT.fullmatch(name)
    if parts is None:
        return None
    by_split = PUBLISHED_EXPRESSIONS[DATASET_NAMES[parts["dataset"]]]
    return by_split.get(parts["split_by"], {}).get(parts["split"])


def _record(
    row: Row,
    entry: Any,
    where: Where,
    split: str,
    text: Text,
    masks: _Masks,
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
    parts = _SPLIT.fullmatch(split)
    if parts is not None:
        check_same(reference.get("split"), parts["split"], "split", where)
    # References to one annotation share its mask.
    known, mask = masks.get(ann_id, (None, None))
    if mask is None or known != annotation.get("segmentation"):
        mask = read_mask(annotation, in_annotation)
        masks[ann_id] = annotation["segmentation"], mask
    return Record(
        image=EncodedImage(
            row.path, row.group, row.number_in_group, string(info, "file_name", inside)
        ),
        size=read_size(info, inside),
        objects=(mask,),
        expressions=read_expressions(reference, text, in_reference),
        image_id=image_id,
        ref_id=integer(reference, "ref_id", in_reference),
        split=split,
        where=place(where),
    )
