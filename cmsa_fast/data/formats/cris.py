"""The folders `anns` and `masks` that the scripts of CRIS, ETRIS, VLT and MCN generate."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ErrorCollector
from ..mask_files import PngMask
from ..source import Reading, Source
from ..types import Record
from .parsing import (
    COCO_NAME,
    RepeatedReferences,
    Where,
    image_number,
    integer,
    kind,
    load_json,
    place,
    read_expressions,
    read_image,
    string,
)
from .published import PUBLISHED_EXPRESSIONS
from .refer import missing_split
from .refer_layout import COCO_FOLDERS, SAIAPR_FOLDERS, check_names, image_folders, require_folder

# VLT writes `anns` into a folder beside `images`.
_IMAGE_FOLDERS = (*COCO_FOLDERS, *SAIAPR_FOLDERS, "../images/train2014")
_SAIAPR_NAME = re.compile(r"(\d{1,9})\.\w+")


# The names that the folder of a published data set, by name and author of the split, has in copies. The
# scripts name RefCOCOg's folder "refcocog" for either split; users of CRIS rename it by hand.
_FOLDERS = {
    ("refcoco", "unc"): ("refcoco", "refcoco_unc"),
    ("refcoco+", "unc"): ("refcoco+", "refcocop", "refcocoplus", "refcoco+_unc"),
    ("refcocog", "umd"): ("refcocog_u", "refcocog_umd"),
    ("refcocog", "google"): ("refcocog_g", "refcocog_google"),
}


@dataclass(frozen=True)
class _Files:
    """Paths of one data set, and its title for messages."""

    anns: Path
    masks: Path
    images: tuple[Path, ...]
    title: str
    published_expressions: Mapping[str, int]


def read_anns_masks(source: Source, split: str | None, errors: ErrorCollector) -> Reading:
    """Reads `anns` and `masks` (`cmsa_fast.data.source.read_records`).

    The layout is `<root>/anns/<name>/<split>.json`, `<root>/masks/<name>/<segment_id>.png`, and the
    images as REFER has them or in `<root>/../images/train2014`. The name is "refcoco", "refcoco+",
    "refcocog_u", "refcocog_g" or any other folder of `anns`; "refcocog" means "refcocog_u" unless
    `split_by` is "google". A split is matched by its exact name. The files have only the text version
    "sent" of the expressions.

    The number of an image is COCO's, from its name. Images with other names get a negative number that
    depends on the name alone.
    """
    if source.text != "sent":
        raise ValueError(
            f"text is {source.text!r}, but the files in {source.root / 'anns'} have only the "
            "normalised expressions ('sent')"
        )
    files = _locate(source)
    records: list[Record] = []
    for file in _split_files(files.anns, split):
        content = load_json(file)
        if not isinstance(content, list):
            raise ValueError(f"{file} holds {kind(content)} where a list of records is expected")
        repeated = RepeatedReferences()
        for i, entry in enumerate(content):
            with errors:
                where = (file, "record", i)
                record = _read_record(entry, where, file.stem, files)
                repeated.check(record.ref_id, (record.image, record.expressions), where)
                records.append(record)
    if not records:
        raise ValueError(missing_split(split, files.anns, ()))
    return Reading(records, files.title, files.published_expressions)


def _read_record(entry: Any, where: Where, split: str, files: _Files) -> Record:
    ref_id = integer(entry, "segment_id", where)
    file_name = string(entry, "img_name", where)
    expressions = read_expressions(entry, "sent", where)
    if "sentences_num" in entry and integer(entry, "sentences_num", where) != len(expressions):
        raise ValueError(
            f"{place(where)} has {len(expressions)} sentences, but its 'sentences_num' is {entry['sentences_num']}"
        )
    return Record(
        image=read_image(files.images, file_name, where),
        size=None,
        objects=(PngMask((files.masks,), f"{ref_id}.png"),),
        expressions=expressions,
        image_id=image_number(Path(file_name).name, _SAIAPR_NAME if files.anns.name == "refclef" else COCO_NAME),
        ref_id=ref_id,
        split=split,
        where=place(where),
    )


def _locate(source: Source) -> _Files:
    root, name = source.root, source.name or "refcoco"
    check_names(name=name)
    what_belongs = (
        f"A root holds anns/{name}/<split>.json and masks/{name}/<segment_id>.png, as the scripts "
        "of CRIS and VLT write them with --generate_mask, and the images in "
        f"{' or '.join(_IMAGE_FOLDERS)}."
    )
    require_folder(root, what_belongs)
    anns = root / "anns"
    if not anns.is_dir() and ((root / "lmdb").is_dir() or any(root.glob("*.lmdb"))):
        raise ValueError(
            f"{root} has LMDB files and no folder anns; LMDB files are not supported, because their "
            "serialisation differs between versions and may run code: generate anns and masks from "
            "REFER's files with CRIS's tools/data_process.py --generate_mask, or read REFER's files "
            "themselves (form 'refer')"
        )
    require_folder(anns, what_belongs)
    folder = _folder(anns, name, source.split_by)
    masks = root / "masks" / folder
    require_folder(masks, what_belongs)
    if not any(masks.glob("*.png")):
        raise FileNotFoundError(f"{masks} has no PNG file. {what_belongs}")
    images = image_folders(root, _IMAGE_FOLDERS, source.image_folder, what_belongs)
    title, expressions = _identity(folder, source.split_by)
    return _Files(anns / folder, masks, images, title, expressions)


def _folder(anns: Path, name: str, split_by: str) -> str:
    """The folder of `anns` that the name and the author of the split stand for."""
    known = {key[1]: made for key, made in _FOLDERS.items() if name in (key[0], *made)}
    if split_by and known and split_by not in known:
        raise ValueError(f"split_by {split_by!r} of {name!r} is not {' or '.join(sorted(known))}")
    usual = [folder for key, made in known.items() if split_by in ("", key) for folder in made]
    candidates = [*usual, name] if split_by and name not in usual else [name, *usual]
    found = next((folder for folder in candidates if (anns / folder).is_dir()), None)
    if found is None:
        there = sorted(folder.name for folder in anns.iterdir() if folder.is_dir())
        raise ValueError(f"name {name!r} is no folder of {anns}, which has {', '.join(there) or 'no folder'}")
    return found


def _identity(folder: str, split_by: str) -> tuple[str, Mapping[str, int]]:
    """The title and the published numbers of expressions."""
    for (name, made_by), folders in _FOLDERS.items():
        if folder in folders or (folder, split_by) == (name, made_by):
            return f"{name} ({made_by})", PUBLISHED_EXPRESSIONS[name][made_by]
    return f"{folder} ({split_by})" if split_by else folder, {}


def _split_files(anns: Path, split: str | None) -> list[Path]:
    there = sorted(file for file in anns.glob("*.json") if file.is_file())
    chosen = [file for file in there if split in (None, file.stem)]
    if not chosen:
        names = ", ".join(file.stem for file in there) or "no JSON file"
        what = "there is no split" if split is None else f"split {split!r} is not"
        raise ValueError(f"{what} in {anns}, which has {names}")
    return chosen
