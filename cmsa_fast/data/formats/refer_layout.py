"""Finds the files of a REFER data set, and says what belongs where if one is missing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from .published import PUBLISHED_EXPRESSIONS

COCO_FOLDERS = ("images/mscoco/images/train2014", "images/train2014")
SAIAPR_FOLDERS = ("images/saiapr_tc-12", "images/saiaprtc12")
_SAIAPR_INNER = "*/images"  # as the archive of SAIAPR TC-12 unpacks: 00/images, 01/images, ...


@dataclass(frozen=True)
class ReferFiles:
    """The files of one REFER data set."""

    references: Path  # refs(<split_by>).p, or .json with the same records
    instances: Path  # COCO-style, with sizes and masks
    image_folders: tuple[Path, ...]  # in order of search


def locate_refer_files(
    root: str | os.PathLike[str], name: str, split_by: str, image_folder: str | os.PathLike[str] | None = None
) -> ReferFiles:
    """Finds the files of a REFER data set.

    The layout is `<root>/<name>/refs(<split_by>).p` (or `.json` if there is no pickle),
    `<root>/<name>/instances.json`, and images in `<root>/images/mscoco/images/train2014` or
    `<root>/images/train2014`; RefCLEF's images in `<root>/images/saiapr_tc-12` or
    `<root>/images/saiaprtc12`, directly or in the archive's `NN/images` folders. Any other data set in
    this layout may have any name; its images are searched for in all of these folders.

    Every path in the result exists. FileNotFoundError says what belongs where; ValueError if `name` or
    `split_by` is neither published nor present.
    """
    root = Path(root)
    check_names(name=name, split_by=split_by)
    what_belongs = _what_belongs(name, split_by)
    require_folder(root, what_belongs)
    folder = root / name
    if not folder.is_dir() and name not in PUBLISHED_EXPRESSIONS:
        there = sorted(file.parent.name for file in root.glob("*/instances.json"))
        raise ValueError(
            f"name {name!r} is none of the published data sets ({', '.join(PUBLISHED_EXPRESSIONS)}) "
            f"and no folder of {root}, which has {', '.join(there) or 'no data set'}"
        )
    references = folder / f"refs({split_by}).p"
    if not references.is_file() and (as_json := references.with_suffix(".json")).is_file():
        references = as_json
    published = PUBLISHED_EXPRESSIONS.get(name, {})
    if not references.is_file() and split_by not in published:
        there = sorted({file.stem[len("refs(") : -1] for file in folder.glob("refs(*).*")})
        raise ValueError(
            f"split_by {split_by!r} of {name!r} is none of the published ones "
            f"({', '.join(published) or 'there are none'}) and not in {folder}, which has "
            f"{', '.join(there) or 'no refs(...).p'}"
        )
    instances = folder / "instances.json"
    for file in (references, instances):
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {file}. {what_belongs}")
    folders = image_folders(root, _usual_folders(name), image_folder, what_belongs)
    return ReferFiles(references, instances, folders)


def check_names(**arguments: str) -> None:
    """Raises ValueError for an argument that is not a plain name of a file or folder."""
    for argument, value in arguments.items():
        if value in ("", "..") or PurePath(value).name != value:
            raise ValueError(f"{argument} must be the name of a data set or split, not {value!r}")


def require_folder(folder: Path, what_belongs: str) -> None:
    """Raises FileNotFoundError, which ends with the description of the layout, for a missing folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}. {what_belongs}")


def existing_folder(image_folder: str | os.PathLike[str]) -> Path:
    """The given image folder as a path; FileNotFoundError if it is missing."""
    folder = Path(image_folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} (image_folder)")
    return folder


def image_folders(
    root: Path, usual: Sequence[str], image_folder: str | os.PathLike[str] | None, what_belongs: str
) -> tuple[Path, ...]:
    """The folders to search for images: `image_folder`, or those of `usual` (relative to `root`) that exist.

    Those of SAIAPR TC-12 may have the archive's `NN/images` folders inside. FileNotFoundError, which ends
    with `what_belongs`, if there is none.
    """
    if image_folder is not None:
        return (existing_folder(image_folder),)
    found: list[Path] = []
    for relative in usual:
        if (folder := root / relative).is_dir():
            found.append(folder)
            if relative in SAIAPR_FOLDERS:
                found += sorted(inner for inner in folder.glob(_SAIAPR_INNER) if inner.is_dir())
    if not found:
        raise FileNotFoundError(f"there is no folder of images in {root}. {what_belongs}")
    return tuple(found)


def _usual_folders(name: str) -> tuple[str, ...]:
    if name == "refclef":
        return SAIAPR_FOLDERS
    return COCO_FOLDERS if name in PUBLISHED_EXPRESSIONS else COCO_FOLDERS + SAIAPR_FOLDERS


def _what_belongs(name: str, split_by: str) -> str:
    images = "SAIAPR TC-12" if name == "refclef" else "COCO train2014"
    folders = " or ".join(_usual_folders(name))
    return (
        f"A REFER folder holds {name}/refs({split_by}).p, {name}/instances.json and the images "
        f"of {images} in {folders}. The server that published the records is gone: use a copy "
        "(`cmsa-fast data download`, or a web archive)."
    )
