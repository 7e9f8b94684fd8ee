"""RefCOCO, RefCOCO+ and RefCOCOg in the Parquet forms of Hugging Face repositories, as local files.

The form is recognised by the columns of the files.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from ...errors import ErrorCollector
from ...masks import MaskSource
from ...source import Reading, Source
from ...types import Record
from ..converted import is_converted, read_converted
from ..parsing import (
    RepeatedReferences,
    Where,
    check_same,
    field,
    integer,
    place,
    read_expressions,
    read_image,
    read_mask,
    read_size,
    string,
)
from ..published import PUBLISHED_EXPRESSIONS, usual_split_by
from ..refer import missing_split
from ..refer_layout import COCO_FOLDERS, existing_folder
from .embedded import read_benchmark, read_refcoco_m
from .files import (
    DATASET_NAMES,
    Row,
    Shard,
    check_complete,
    find_shards,
    open_table,
    read_rows,
)

_logger = logging.getLogger(__name__)

_IMAGE_FOLDERS = (*COCO_FOLDERS, "coco/train2014")
_FILE_SPLITS = ("train", "validation", "val", "test", "testA", "testB")
_REFCOCO_COLUMNS = (
    "ref_id",
    "ann_id",
    "image_id",
    "split",
    "sentences",
    "raw_anns",
    "raw_image_info",
)
_Read = Callable[[Source, list[Shard], str | None, ErrorCollector], Reading]


def read_parquet(source: Source, split: str | None, errors: ErrorCollector) -> Reading:
    """Reads a data set in one of the Parquet forms (`cmsa_fast.data.source.read_records`).

    The root is the repository's folder, its folder `data`, or one file; or a folder of several
    repositories, one of which `source.name` names. Known forms:

    - jxu124/refcoco, refcocoplus, refcocog: one row per reference, without pixels; the images are COCO's.
      Splits have their published names and those of the files ("validation" is the published val; "test"
      of RefCOCO and RefCOCO+ is the published testA).
    - jxu124/refcoco-benchmark: one row per image, with its pixels. Its splits are named "refcoco_unc_val"
      and so on; "val" suffices with `source.name` ("refcoco") and, where needed, `source.split_by`.
    - moondream/refcoco-m: new masks for a part of RefCOCO's val.
    - The files of `cmsa-fast data convert` (`read_converted`).

    The form of lmms-lab/RefCOCO is refused, and the message says why.
    """
    shards = find_shards(source)
    if is_converted(shards[0].path):
        return read_converted(source, split, errors)
    with open_table(shards[0].path) as table:
        columns = table.schema_arrow.names
    for form_columns, read in _FORMS.values():
        if set(form_columns) <= set(columns):
            return read(source, shards, split, errors)
    known = "; ".join(f"{name}: {', '.join(form[0])}" for name, form in _FORMS.items())
    raise ValueError(
        f"{shards[0].path} has the columns {', '.join(columns)}, which are those of no known form. "
        f"Known are {known}"
    )


def _refuse_mixed(source: Source, shards: list[Shard], split: str | None, errors: ErrorCollector) -> Reading:
    raise ValueError(
        f"{shards[0].path} is a copy of RefCOCO by lmms-lab, which is not supported: its 'val' is the union "
        "of the val splits by google and by UNC or UMD, its 'test' is RefCOCO's google test, and of every "
        "object it has only one polygon, so that results on it do not compare with published ones; use "
        "jxu124/refcoco-benchmark"
    )


def _read_refcoco(source: Source, shards: list[Shard], split: str | None, errors: ErrorCollector) -> Reading:
    """Reads jxu124/refcoco and relatives: one row per reference, its annotation and image as JSON text.

    The column `split` is REFER's own and decides; the names of the files are the uploader's. A row whose
    split cannot be in its file is an error.
    """
    dataset = _find_dataset(source, shards)
    split_by = usual_split_by(dataset) if dataset else ""
    if dataset and source.split_by not in ("", split_by):
        raise ValueError(f"split_by {source.split_by!r} of {dataset!r} is not in this copy, which has {split_by}")
    wanted = None if split is None else _published_names(split, dataset)
    held = {  # the published splits that a file may hold; empty if its name does not tell
        shard: _published_names(shard.split, dataset) if shard.split in _FILE_SPLITS else set() for shard in shards
    }
    chosen = [shard for shard in shards if wanted is None or not held[shard] or held[shard] & wanted]
    folder = shards[0].path.parent
    check_complete(chosen, source, split, shards)
    folders = _image_folders(source, folder)
    masks: dict[tuple[int, int], MaskSource] = {}
    splits: Counter[str] = Counter()
    records: list[Record] = []
    repeated = RepeatedReferences()
    for shard in chosen:
        for row in read_rows(shard.path, _REFCOCO_COLUMNS, optional=("image_path",)):
            with errors:
                recorded = string(row.values(), "split", row.where)
                if held[shard] and recorded not in held[shard]:
                    raise ValueError(
                        f"{place(row.where)} is of split {recorded!r}, but its file is that of "
                        f"{shard.split!r}, which holds {' or '.join(sorted(held[shard]))}"
                    )
                splits[recorded] += 1
                if wanted is None or recorded in wanted:
                    record = _refcoco_record(row, source, folders, masks)
                    repeated.check(record.ref_id, (recorded, record.expressions), row.where)
                    records.append(record)
    if not records:
        raise ValueError(missing_split(split, folder, splits.elements()))
    names = {record.split for record in records}
    note = ""
    if split is not None and names != {split}:
        renamed = f"{split!r} is the published {' and '.join(sorted(names))}"
        level = logging.WARNING if split == "test" else logging.INFO
        _logger.log(level, "this copy's split %s", renamed)
        note = f"; its {renamed}"
    published = dict(PUBLISHED_EXPRESSIONS[dataset][split_by]) if dataset else {}
    if split is not None:
        published.update((split, published[name]) for name in names if name in published)
    title = f"{dataset} ({split_by}, parquet{note})" if dataset else f"{folder} (parquet{note})"
    return Reading(records, title, published)


def _find_dataset(source: Source, shards: Sequence[Shard]) -> str | None:
    """The data set of a copy, from the source's name or the folders; None if neither names one."""
    asked = DATASET_NAMES.get(source.name)
    folder = shards[0].path.absolute().parent
    named = folder.parent.name if folder.name == "data" else folder.name
    if folder.parent.parent.name == "snapshots":  # of a revision in the cache of downloads
        named = folder.parent.parent.parent.name
    found = DATASET_NAMES.get(named.lower().rpartition("--")[2])
    if asked and found and asked != found:
        raise ValueError(f"name {source.name!r} contradicts the folder {folder}, which is {found} by its name")
    return asked or found


def _published_names(split: str, dataset: str | None) -> set[str]:
    """The published splits that a name may mean."""
    if split == "test":
        return {"refcocog": {"test"}, None: {"test", "testA"}}.get(dataset, {"testA"})
    return {"val"} if split == "validation" else {split}


def _refcoco_record(
    row: Row, source: Source, folders: tuple[Path, ...], masks: dict[tuple[int, int], MaskSource]
) -> Record:
    values, where = row.values(), row.where
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
        check_same(PurePath(string(values, "image_path", where)).name, file_name, "image", where)
    return Record(
        image=read_image(folders, path or file_name, where),
        size=size,
        objects=(masks[key],),
        expressions=read_expressions(values, source.text, where),
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
        field(value, key, (*where, key))  # raises
    return value


def _image_folders(source: Source, folder: Path) -> tuple[Path, ...]:
    if source.image_folder is not None:
        given = existing_folder(source.image_folder)
        return tuple(one for one in (given, given / "train2014") if one.is_dir())
    bases = [folder.parent, folder] if folder.name == "data" else [folder]
    if source.root.is_dir() and source.root not in bases:
        bases.append(source.root)
    candidates = (base / inner for base in bases for inner in _IMAGE_FOLDERS)
    found = tuple(one for one in candidates if one.is_dir())
    if not found:
        raise FileNotFoundError(
            f"there is no folder of images in {' or '.join(map(str, bases))}. This copy has no "
            f"pixels: put the images of COCO train2014 in {' or '.join(_IMAGE_FOLDERS)}, or name their "
            "folder as image_folder"
        )
    return found


# The columns that identify a form, and its reader, by the repositories that have it.
_FORMS: Mapping[str, tuple[tuple[str, ...], _Read]] = {
    "jxu124/refcoco, refcocoplus, refcocog": (_REFCOCO_COLUMNS, _read_refcoco),
    "jxu124/refcoco-benchmark": (("image", "image_info", "ref_list"), read_benchmark),
    "moondream/refcoco-m": (("image", "image_id", "samples"), read_refcoco_m),
    "lmms-lab/RefCOCO, RefCOCOplus, RefCOCOg (not supported)": (
        ("question_id", "image", "answer", "segmentation", "file_name"),
        _refuse_mixed,
    ),
}
