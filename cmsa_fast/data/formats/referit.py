"""ReferIt in the Berkeley form: the files of text_objseg, which the papers on CMSA and RMI use.

Kazemzadeh, Ordonez, Matten, Berg: ReferItGame, EMNLP 2014; Hu, Rohrbach, Darrell: Segmentation from
Natural Language Expressions, ECCV 2016 (ronghanghu/text_objseg). RefCLEF of the REFER toolbox has the same
images with other splits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ErrorCollector
from ..images import image_file
from ..mask_files import MatlabMask, import_loadmat
from ..source import Reading, Source
from ..types import Record
from .parsing import Where, kind, listing, load_json, place
from .refer_layout import SAIAPR_FOLDERS, image_folders, require_folder

_TITLE = "ReferIt (berkeley)"
_PUBLISHED_EXPRESSIONS = {"test": 60_105}
_SPLITS = ("train", "val", "trainval", "test")

# Relative to the root, as in text_objseg and natural-language-object-retrieval.
RECORD_FOLDERS = (".", "data", "data/split", "data/metadata", "exp-referit/data", "referit")
_DATA_FOLDERS = (
    "",
    "referit-dataset/",
    "../referit-dataset/",
    "exp-referit/referit-dataset/",
    "datasets/ReferIt/ImageCLEF/",
)
_IMAGE_FOLDERS = (*(f"{folder}images" for folder in _DATA_FOLDERS), *SAIAPR_FOLDERS)
_MASK_FOLDERS = tuple(f"{folder}mask" for folder in _DATA_FOLDERS)
_SAIAPR_MASKS = "*/segmentation_masks"  # as the SAIAPR TC-12 archive unpacks: 00/, 01/, ...

_ALL_QUERIES = ("referit_query_all.json", "referit_query_dict.json")
_SIZES = ("referit_imsize.json", "referit_imsize_dict.json")

_REGION = re.compile(r"(\d{1,9})_(\d{1,4})", re.ASCII)
_REGIONS = 10_000  # above the number of regions of an image, by the pattern above
_EXPRESSIONS = 10_000  # above the number of expressions of a region

_WHAT_BELONGS = (
    "A ReferIt folder in the Berkeley form holds referit_query_<split>.json (or "
    "referit_query_all.json and referit_<split>_imlist.txt), referit_imsize.json, the masks "
    "mask/<image>_<region>.mat and the images images/<image>.jpg; masks and images may also "
    "lie in referit-dataset, here or beside this folder."
)


class _Files(NamedTuple):
    queries: dict[str, tuple[Path, Path | None]]  # by split: JSON file, list of its images
    sizes: Path | None
    masks: tuple[Path, ...]
    images: tuple[Path, ...]


def read_referit(source: Source, split: str | None, errors: ErrorCollector) -> Reading:
    """Reads ReferIt in the Berkeley form (`cmsa_fast.data.source.read_records`).

    The root, or `data` or `exp-referit/data` inside it, holds `referit_query_<split>.json` for "train",
    "val", "trainval" and "test", each a dictionary from `<image>_<region>` to a list of expressions (or
    `referit_query_all.json` with the image numbers of a split in `referit_<split>_imlist.txt`), and
    optionally `referit_imsize.json` with width and height of every image. Masks are
    `mask/<image>_<region>.mat`, images `images/<image>.jpg`. "trainval" is the union of "train" and
    "val", so reading all splits gives their expressions twice.

    The number of a reference is 10 000 times its image plus its region, that of an expression 10 000
    times its reference plus its index; they are the same in every split. There is one version of the
    expressions, as typed.
    """
    for argument, value, known in (("name", source.name, "referit"), ("split_by", source.split_by, "berkeley")):
        if value not in ("", known):
            raise ValueError(f"{argument} of this form is {known!r}, not {value!r}")
    files = _locate(source.root, source.image_folder)
    if split is not None and split not in files.queries:
        raise ValueError(f"split {split!r} is not in {source.root}, which has {', '.join(files.queries)}")
    import_loadmat()  # fails here rather than at the first mask
    sizes = {} if files.sizes is None else _read_dictionary(files.sizes)
    contents: dict[Path, dict[str, Any]] = {}
    masks: dict[str, MatlabMask] = {}  # shared by "train" and "trainval"
    records: list[Record] = []
    for name in files.queries if split is None else (split,):
        for file, key, expressions in _queries(*files.queries[name], contents):
            with errors:
                mask = masks.setdefault(key, MatlabMask(files.masks, f"{key}.mat"))
                records.append(_read_record((file, key), expressions, mask, name, sizes, files))
    if not records:
        what = "there is no region" if split is None else f"split {split!r} has no region"
        raise ValueError(f"{what} in {source.root}")
    return Reading(records, _TITLE, _PUBLISHED_EXPRESSIONS)


def _queries(
    file: Path, images: Path | None, contents: dict[Path, dict[str, Any]]
) -> Iterator[tuple[Path, str, Any]]:
    """Yields file, region and expressions of every region of a split."""
    if file not in contents:
        contents[file] = _read_dictionary(file)
    wanted = None if images is None else _read_list(images)
    for key, expressions in contents[file].items():
        if wanted is None or key.split("_", 1)[0] in wanted:
            yield file, key, expressions


def _read_record(
    where: Where, expressions: Any, mask: MatlabMask, split: str, sizes: dict[str, Any], files: _Files
) -> Record:
    file, key = where
    match = _REGION.fullmatch(str(key))
    if match is None:
        raise ValueError(f"{file} has the key {key!r}, where <image>_<region> is expected")
    if not isinstance(expressions, list):
        raise ValueError(f"{place(where)} has {kind(expressions)}, not a list of expressions")
    if len(expressions) > _EXPRESSIONS:
        raise ValueError(f"{place(where)} has {len(expressions)} expressions, more than {_EXPRESSIONS}")
    for i, expression in enumerate(expressions):
        if not isinstance(expression, str):
            raise ValueError(f"{place((*where, 'sentence', i))} is {kind(expression)}, not text")
    image_id = int(match[1])
    ref_id = image_id * _REGIONS + int(match[2])
    name = f"{match[1]}.jpg"
    return Record(
        image=image_file(files.images, name),
        size=_size(sizes, name, files.sizes),
        objects=(mask,),
        expressions=tuple((ref_id * _EXPRESSIONS + i, one) for i, one in enumerate(expressions)),
        image_id=image_id,
        ref_id=ref_id,
        split=split,
        where=place(where),
    )


def _size(sizes: dict[str, Any], name: str, file: Path | None) -> tuple[int, int] | None:
    """Height and width of an image; the file has width first."""
    # The keys are file names in text_objseg and numbers in natural-language-object-retrieval.
    key = next((key for key in (name, name.removesuffix(".jpg")) if key in sizes), None)
    if key is None:
        return None
    size = listing(sizes, key, (file,))
    if len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise ValueError(f"{file} has {size} as size of {key}, not width and height in pixels")
    width, height = size
    return height, width


def _locate(root: Path, image_folder: Path | None) -> _Files:
    require_folder(root, _WHAT_BELONGS)
    everything = _find(root, *_ALL_QUERIES)
    queries: dict[str, tuple[Path, Path | None]] = {}
    for split in _SPLITS:
        own = _find(root, f"referit_query_{split}.json")
        images = _find(root, f"referit_{split}_imlist.txt")
        if own is not None:
            queries[split] = (own, None)
        elif everything is not None and images is not None:
            queries[split] = (everything, images)
    if not queries:
        raise FileNotFoundError(f"there is no split of ReferIt in {root}. {_WHAT_BELONGS}")
    masks = [folder for name in _MASK_FOLDERS if (folder := root / name).is_dir()]
    for name in SAIAPR_FOLDERS:
        masks += sorted(inner for inner in (root / name).glob(_SAIAPR_MASKS) if inner.is_dir())
    if not masks:
        raise FileNotFoundError(f"there is no folder of masks in {root}. {_WHAT_BELONGS}")
    images_in = image_folders(root, _IMAGE_FOLDERS, image_folder, _WHAT_BELONGS)
    return _Files(queries, _find(root, *_SIZES), tuple(masks), images_in)


def _find(root: Path, *names: str) -> Path | None:
    candidates = (root / folder / name for name in names for folder in RECORD_FOLDERS)
    return next((path for path in candidates if path.is_file()), None)


def _read_dictionary(file: Path) -> dict[str, Any]:
    content = load_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds {kind(content)} where a dictionary is expected")
    return content


def _read_list(file: Path) -> frozenset[str]:
    """Reads image numbers, one a line."""
    try:
        lines = file.read_text(encoding="utf-8").split()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not a list of image numbers: {error}") from error
    for line in lines:
        if not line.removesuffix(".jpg").isdecimal():
            raise ValueError(f"{file} has the line {line!r}, where the number of an image is expected")
    return frozenset(line.removesuffix(".jpg") for line in lines)
