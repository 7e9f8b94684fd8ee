"""The parquet copies of RefCOCO, RefCOCO+ and RefCOCOg without pixels (jxu124/refcoco and others).

A row is a reference of REFER with its annotation and its image's entry as JSON text.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path, PurePath
from typing import Any

from ...errors import ErrorCollector
from ...masks import MaskSource
from ...source import Reading, Source, Text
from ...types import Record
from ..parsing import Where, field, integer, place, string
from ..record_parts import check_same, read_expressions, read_image, read_mask, read_size
from ..refer_layout import COCO_FOLDERS, PUBLISHED_EXPRESSIONS, existing_folder, usual_split_by
from .files import Shard, check_complete, find_dataset, nothing_read, split_names
from .tables import Row, read_rows

_logger = logging.getLogger(__name__)

_COLUMNS = (
    "ref_id",
    "ann_id",
    "image_id",
    "split",
    "sentences",
    "raw_anns",
    "raw_image_info",
)
_IMAGE_FOLDERS = (*COCO_FOLDERS, "coco/train2014")


def read_refcoco(
    source: Source, shards: list[Shard], split: str | None, errors: ErrorCollector
) -> Reading:
    """Reads the records of a split.

    The column `split` is REFER's own and is believed; the files' names are the uploader's. A row
    whose split cannot be in its file is a problem.

    Args:
        source: The data set.
        shards: Its files.
        split: By its published name or by that of its files. None: all splits.
        problems: Takes the rows that cannot be used.

    Returns:
        The records; their split is the published one.

    Raises:
        FileNotFoundError: A part of the split or the images' folder is missing.
        ValueError: The split is not there, or a file is damaged.
    """
    dataset = find_dataset(source, shards)
    split_by = _split_by(source, dataset)
    chosen = [shard for shard in shards if split is None or _may_hold(shard.split, split, dataset)]
    folder = shards[0].path.parent
    if not chosen:
        raise ValueError(f"split {split!r} is not in {folder}, which has {split_names(shards)}")
    check_complete(chosen, source)
    folders = _image_folders(source, folder)
    wanted = None if split is None else _published_names(split, dataset)
    masks: dict[tuple[int, int], MaskSource] = {}
    splits: Counter[str] = Counter()
    records = []
    for shard in chosen:
        for row in read_rows(shard.path, _COLUMNS, optional=("image_path",)):
            with errors:
                values = row.values()
                recorded = _check_split(values, row.where, shard, dataset)
                splits[recorded] += 1
                if wanted is None or recorded in wanted:
                    records.append(_record(row, values, source.text, folders, masks))
    if not records:
        raise nothing_read(split, chosen, splits.elements())
    note = _note(split, records)
    published: dict[str, int] = {}
    if dataset is not None and split_by is not None:
        published.update(PUBLISHED_EXPRESSIONS[dataset][split_by])
    if split is not None and wanted is not None:
        published.update((split, published[name]) for name in wanted if name in published)
    origin = f"{dataset} ({split_by}, parquet{note})" if dataset else f"{folder} (parquet{note})"
    return Reading(records, origin, published)


def _split_by(source: Source, dataset: str | None) -> str | None:
    known = None if dataset is None else usual_split_by(dataset)
    if source.split_by and known and source.split_by != known:
        raise ValueError(
            f"split_by {source.split_by!r} of {dataset!r} is not in this copy, which has {known}"
        )
    return known


def _published_names(split: str, dataset: str | None) -> set[str]:
    """The published splits that one may mean by a name."""
    if split == "validation":
        return {"val"}
    if split == "test":
        return {"refcocog": {"test"}, None: {"test", "testA"}}.get(dataset, {"testA"})
    return {split}


def _rows_of(file_split: str, dataset: str | None) -> set[str] | None:
    """The published splits that a file may hold, None where its name says nothing."""
    if file_split not in ("train", "validation", "val", "test", "testA", "testB"):
        return None
    return _published_names(file_split, dataset)


def _may_hold(file_split: str, asked: str, dataset: str | None) -> bool:
    held = _rows_of(file_split, dataset)
    return held is None or bool(held & _published_names(asked, dataset))


def _check_split(values: dict[str, Any], where: Where, shard: Shard, dataset: str | None) -> str:
    recorded = string(values, "split", where)
    held = _rows_of(shard.split, dataset)
    if held is not None and recorded not in held:
        raise ValueError(
            f"{place(where)} is of split {recorded!r}, but its file is that of {shard.split!r}, "
            f"which holds {' or '.join(sorted(held))}"
        )
    return recorded


def _record(
    row: Row,
    values: dict[str, Any],
    text: Text,
    folders: tuple[Path, ...],
    masks: dict[tuple[int, int], MaskSource],
) -> Record:
    where = row.where
    ann_id, image_id = integer(values, "ann_id", where), integer(values, "image_id", where)
    written = string(values, "raw_anns", where)
    key = (ann_id, hash(written))  # references to one annotation share its mask
    if key not in masks:
        annotation = _from_json(written, "raw_anns", where)
        check_same(annotation.get("id"), ann_id, "ann_id", where)
        check_same(annotation.get("image_id"), image_id, "image_id", where)
        masks[key] = read_mask(annotation, (*where, "raw_anns"))
    image = _from_json(string(values, "raw_image_info", where), "raw_image_info", where)
    check_same(image.get("id"), image_id, "image_id", where)
    inside = (*where, "raw_image_info")
    file_name = string(image, "file_name", inside)
    size = read_size(image, inside)
    path = values.get("image_path")
    if path is not None:
        check_same(PurePath(string(values, "image_path", where)).name, file_name, "picture", where)
    return Record(
        image=read_image(folders, path or file_name, where),
        size=size,
        objects=(masks[key],),
        expressions=read_expressions(values, text, where),
        image_id=image_id,
        ref_id=integer(values, "ref_id", where),
        split=string(values, "split", where),
        where=place(where),
    )


def _from_json(text: str, key: str, where: Where) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place(where)} has a {key!r} that is no JSON: {error}") from error
    if not isinstance(value, dict):
        field(value, key, (*where, key))  # says what it is instead
    return value


def _note(split: str | None, records: list[Record]) -> str:
    """What to add to the title where a split goes by another name than the published one."""
    published = {record.split for record in records}
    if split is None or not published or published == {split}:
        return ""
    names = " and ".join(sorted(published))
    level = logging.WARNING if split == "test" else logging.INFO
    _logger.log(level, "this copy's split %r is the published %s", split, names)
    return f"; its {split!r} is the published {names}"


def _image_folders(source: Source, folder: Path) -> tuple[Path, ...]:
    if source.image_folder is not None:
        given = existing_folder(source.image_folder)
        return tuple(one for one in (given, given / "train2014") if one.is_dir())
    bases = [folder.parent, folder] if folder.name == "data" else [folder]
    if source.root.is_dir() and source.root not in bases:
        bases.append(source.root)
    found = [base / inner for base in bases for inner in _IMAGE_FOLDERS]
    found = [one for one in found if one.is_dir()]
    if not found:
        raise FileNotFoundError(
            f"there is no folder of images in {' or '.join(map(str, bases))}. This copy has no "
            f"pixels: the images of COCO train2014 belong in {' or '.join(_IMAGE_FOLDERS)}, or "
            "are named as image_folder"
        )
    return tuple(found)
