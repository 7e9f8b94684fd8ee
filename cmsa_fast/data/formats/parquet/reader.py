"""RefCOCO, RefCOCO+ and RefCOCOg in the Parquet forms of Hugging Face repositories, as local files.

The form is recognised by the columns of the files.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from ...errors import ErrorCollector
from ...masks import MaskSource
from ...source import Reading, Source, Text
from ...types import ImageSource, Record
from ..converted import is_converted, read_converted
from ..parsing import (
    RepeatedReferences,
    Where,
    check_same,
    field,
    integer,
    listing,
    paused_collection,
    place,
    read_expressions,
    read_image,
    read_mask,
    read_size,
    string,
    typed_field,
)
from ..published import PUBLISHED_EXPRESSIONS, usual_split_by
from ..refer import missing_split
from ..refer_layout import COCO_FOLDERS, existing_folder, image_folders
from .files import Row, choose_files, dataset_of, find_files, open_table, read_rows

_logger = logging.getLogger(__name__)

_IMAGE_FOLDERS = (*COCO_FOLDERS, "coco/train2014")
_REFCOCO_M_EXPRESSIONS = 5_598  # of the only split, as its card states

_Files = Mapping[str, list[Path]]  # by split
_ReadFiles = Callable[..., list[Record]]  # `_read_files` without its first two arguments


@paused_collection()
def read_parquet(source: Source, split: str | None, errors: ErrorCollector) -> Reading:
    """Reads a data set in one of the Parquet forms (`cmsa_fast.data.source.read_records`).

    `find_files` describes the root. Known forms:

    - jxu124/refcoco, refcocoplus, refcocog: one row per reference, without pixels; the images are COCO's.
      Splits have their published names and those of the files ("validation" is the published val; "test"
      of RefCOCO and RefCOCO+ is the published testA).
    - jxu124/refcoco-benchmark: one row per image, with its pixels. Its splits are named "refcoco_unc_val"
      and so on; "val" suffices with `source.name` ("refcoco") and, where needed, `source.split_by`.
    - moondream/refcoco-m: new masks for a part of RefCOCO's val.
    - The files of `cmsa-fast data convert` (`read_converted`).

    The form of lmms-lab/RefCOCO is refused, and the message says why.
    """
    files = find_files(source)
    path = next(iter(files.values()))[0]
    if is_converted(path):
        return read_converted(source, split, errors)
    with open_table(path) as table:
        names = table.physical_schema.names
    for columns, read in _FORMS.values():
        if set(columns) <= set(names):
            return read(source, split, files, partial(_read_files, columns, errors))
    if {"question_id", "answer", "segmentation"} <= set(names):
        raise ValueError(
            f"{path} is a copy of RefCOCO by lmms-lab, which is not supported: its 'val' unites the val splits by "
            "google and by UNC or UMD, its 'test' is the google test, and it has only one polygon of an object, "
            "so that results on it do not compare with published ones; use jxu124/refcoco-benchmark"
        )
    known = "; ".join(f"{form}: {', '.join(columns)}" for form, (columns, _) in _FORMS.items())
    raise ValueError(
        f"{path} has the columns {', '.join(names)}, which are those of no known form. Known are {known}"
    )


def _read_refcoco(source: Source, split: str | None, files: _Files, read_files: _ReadFiles) -> Reading:
    """Reads one row per reference, its annotation and image as JSON text.

    The column `split` is REFER's own and decides; the names of the files are the uploader's. A row whose
    split cannot be in its file is an error.
    """
    folder = next(iter(files.values()))[0].parent
    dataset = _find_dataset(source, folder)
    split_by = usual_split_by(dataset) if dataset else ""
    if dataset and source.split_by not in ("", split_by):
        raise ValueError(f"split_by {source.split_by!r} of {dataset!r} is not in this copy, which has {split_by}")
    wanted = None if split is None else _published_names(split, dataset) or {split}
    held = {name: _published_names(name, dataset) for name in files}
    chosen = choose_files(
        source, split, files, lambda name: not (wanted and held[name]) or bool(wanted & held[name])
    )
    folders = _find_images(source, folder)
    masks: dict[object, MaskSource] = {}
    splits: Counter[str] = Counter()

    def read(name: str, row: Row, where: Where, values: Any) -> Record | None:
        recorded = string(values, "split", where)
        if held[name] and recorded not in held[name]:
            raise ValueError(
                f"{place(where)} is of split {recorded!r}, but its file is that of {name!r}, which holds "
                f"{' or '.join(sorted(held[name]))}"
            )
        splits[recorded] += 1
        if wanted is not None and recorded not in wanted:
            return None
        image = partial(read_image, folders, where=where)
        return _record(values, ("raw_anns", "raw_image_info"), where, recorded, image, source.text, masks)

    records = read_files(chosen, read)
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


def _find_dataset(source: Source, folder: Path) -> str | None:
    """The data set of a copy, from the source's name or the folders; None if neither names one."""
    asked = dataset_of(source.name)
    named = folder.absolute()
    if named.name == "data":
        named = named.parent
    if named.parent.name == "snapshots":  # of a revision in the cache of downloads
        named = named.parent.parent
    found = dataset_of(named.name)
    if asked and found and asked != found:
        raise ValueError(f"name {source.name!r} contradicts the folder {folder}, which is {found} by its name")
    return asked or found


def _published_names(split: str, dataset: str | None) -> set[str]:
    """The published splits that a name may mean; none if it is no usual name of a split."""
    if split == "test":
        return {"refcocog": {"test"}, None: {"test", "testA"}}.get(dataset, {"testA"})
    if split == "validation":
        return {"val"}
    return {split} & {"train", "val", "testA", "testB"}


def _find_images(source: Source, folder: Path) -> tuple[Path, ...]:
    if source.image_folder is not None:
        return image_folders(existing_folder(source.image_folder), ("", "train2014", "coco/train2014"), None, "")
    bases = dict.fromkeys((folder.parent if folder.name == "data" else folder, source.root))
    return image_folders(
        folder,
        [str(base / inner) for base in bases for inner in _IMAGE_FOLDERS],
        None,
        "This copy has no pixels: put the images of COCO train2014 in "
        f"{' or '.join(_IMAGE_FOLDERS)}, or name their folder as image_folder",
    )


def _read_benchmark(source: Source, split: str | None, files: _Files, read_files: _ReadFiles) -> Reading:
    """Reads one row per image with all references to its objects.

    `split` is named as in the files ("refcoco_unc_val"), or by its last part if only one fits. `source.name`
    and `source.split_by` select among the splits of several data sets.
    """
    dataset = dataset_of(source.name)
    usual = usual_split_by(dataset) if dataset and split else ""
    asked = (dataset, source.split_by or usual, split)

    def fits(name: str) -> bool:
        if split in files:
            return name == split
        return all(one in (part, None, "") for one, part in zip(asked, _benchmark_split(name), strict=True))

    chosen = choose_files(source, split, files, fits)
    if split is not None and len(chosen) > 1:
        raise ValueError(
            f"split {split!r} may be any of {', '.join(chosen)} in {source.root}: give one of these, or say by "
            "name and split_by which data set is meant"
        )
    masks: dict[object, MaskSource] = {}

    def read(name: str, row: Row, where: Where, entry: Any) -> Record:
        reference = _dictionary(entry, "ref_info", where)
        dataset, _, recorded = _benchmark_split(name)
        if dataset:
            check_same(reference.get("split"), recorded, "split", where)
        fields = {**reference, **entry, **row.values}
        return _record(fields, ("ann_info", "image_info"), where, name, row.image, source.text, masks)

    records = read_files(chosen, read, ("ref_list", "reference"))
    published: dict[str, int] = {}
    for name in chosen:
        dataset, split_by, part = _benchmark_split(name)
        if number := PUBLISHED_EXPRESSIONS.get(dataset or "", {}).get(split_by, {}).get(part):
            published |= {name: number, split or name: number}
    note = f", {', '.join(chosen)}" if split is not None and split not in chosen else ""
    return Reading(records, f"RefCOCO benchmark (parquet{note})", published)


def _benchmark_split(name: str) -> tuple[str | None, str, str]:
    """Data set, author of the split, and split by the name of a file; no data set if it has another form."""
    dataset, split_by, split = ("", "", *name.rsplit("_", 2))[-3:]
    return dataset_of(dataset), split_by, split


def _read_refcoco_m(source: Source, split: str | None, files: _Files, read_files: _ReadFiles) -> Reading:
    """Reads one row per image with its objects.

    The only split is "validation", or "val". Its expressions have no numbers and are counted.
    """
    wanted = "validation" if split == "val" and "validation" in files else split
    chosen = choose_files(source, split, files, lambda name: wanted in (None, name))
    numbers = count()

    def read(name: str, row: Row, where: Where, sample: Any) -> Record:
        image_id = integer(row.values, "image_id", row.where)
        ref_id = integer(sample, "id", where)
        check_same(sample.get("image_id"), image_id, "image_id", where)
        mask = read_mask(sample, where, "mask")
        sentences = listing(sample, "sentences", where)
        for i, sentence in enumerate(sentences):
            string({"text": sentence}, "text", (*where, "sentence", i))
        return Record(
            image=row.image(str(row.values.get("file_name") or image_id)),
            size=mask.size,
            objects=(mask,),
            expressions=tuple((next(numbers), sentence) for sentence in sentences),
            image_id=image_id,
            ref_id=ref_id,
            split=name,
            where=place(where),
        )

    records = read_files(chosen, read, ("samples", "sample"))
    note = "a re-annotation of a part of RefCOCO val, whose results do not compare with RefCOCO's"
    return Reading(records, f"RefCOCO-M (parquet; {note})", {split or "validation": _REFCOCO_M_EXPRESSIONS})


def _read_files(
    columns: Sequence[str],
    errors: ErrorCollector,
    files: _Files,
    read: Callable[[str, Row, Where, Any], Record | None],
    entries: tuple[str, str] | None = None,
) -> list[Record]:
    """Reads the records of all rows, except those for which `read` returns None.

    A row is one entry, or lists several: `entries` is their column and the word for one in messages.
    """
    records: list[Record] = []
    repeated = RepeatedReferences()
    for name, path in ((name, path) for name, paths in files.items() for path in paths):
        for row in read_rows(path, columns, errors):
            with errors:
                listed = listing(row.values, entries[0], row.where) if entries else [row.values]
                for i, entry in enumerate(listed):
                    where = (*row.where, entries[1], i) if entries else row.where
                    with errors:
                        if record := read(name, row, where, entry):
                            texts = tuple(text for _, text in record.expressions)
                            repeated.check(record.ref_id, (record.image_id, record.split, texts), where)
                            records.append(record)
    return records


def _dictionary(record: Any, key: str, where: Where) -> dict[str, Any]:
    """A dictionary in a field of a record, where it may be written as JSON."""
    value = field(record, key, where)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{place(where)} has a {key!r} that is no JSON: {error}") from error
    return typed_field({key: value}, key, where, dict, "a dictionary")


def _record(
    reference: Any,
    keys: tuple[str, str],
    where: Where,
    split: str,
    image: Callable[[str], ImageSource],
    text: Text,
    masks: dict[object, MaskSource],
) -> Record:
    """The record of a reference, which has its annotation and its image's description under the two `keys`."""
    annotation, info = (_dictionary(reference, key, where) for key in keys)
    in_annotation, in_info = ((*where, key) for key in keys)
    ann_id, image_id = integer(reference, "ann_id", where), integer(reference, "image_id", where)
    check_same(integer(annotation, "id", in_annotation), ann_id, "ann_id", where)
    check_same(annotation.get("image_id"), image_id, "image_id", where)
    check_same(integer(info, "id", in_info), image_id, "image_id", where)
    key = (ann_id, hash(str(reference[keys[0]])))
    if key not in masks:  # else an earlier reference has the annotation
        masks[key] = read_mask(annotation, in_annotation)
    return Record(
        image=image(string(info, "file_name", in_info)),
        size=read_size(info, in_info),
        objects=(masks[key],),
        expressions=read_expressions(reference, text, where),
        image_id=image_id,
        ref_id=integer(reference, "ref_id", where),
        split=split,
        where=place(where),
    )


# The columns that identify a form, and its reader, by the repositories that have it.
_FORMS = {
    "jxu124/refcoco, refcocoplus, refcocog": (
        ("ref_id", "ann_id", "image_id", "split", "sentences", "raw_anns", "raw_image_info"),
        _read_refcoco,
    ),
    "jxu124/refcoco-benchmark": (("image", "image_info", "ref_list"), _read_benchmark),
    "moondream/refcoco-m": (("image", "image_id", "samples"), _read_refcoco_m),
}
