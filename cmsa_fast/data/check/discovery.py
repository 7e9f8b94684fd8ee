"""Recognises the data sets under a folder by the names of their files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..formats.converted import is_converted
from ..formats.manifest import is_manifest
from ..formats.published import PUBLISHED_EXPRESSIONS
from ..formats.referit import RECORD_FOLDERS
from ..source import Form, Source

# Folders of the root that do not hold a data set of the layout of REFER.
_NO_DATA_SET = ("images", "anns", "masks", "lmdb", "grefcoco")
# Forms of which a folder holds one data set, with the files that identify them.
_WHOLE_FOLDERS: Mapping[Form, tuple[str, ...]] = {
    "converted": ("dataset.json",),  # of the former format, which its reader explains
    "referit": tuple(f"{folder}/referit_query_*.json" for folder in RECORD_FOLDERS),
    "parquet": ("*.parquet", "data/*.parquet"),
    "manifest": ("*.jsonl",),
}
# Files that are a data set of their own: their form, and how they are recognised.
_FILES: Mapping[str, tuple[Form, Callable[[Path], bool]]] = {
    ".parquet": ("converted", is_converted),
    ".jsonl": ("manifest", is_manifest),
}
_EXPECTED = (
    "A root holds refcoco/refs(unc).p and refcoco/instances.json (likewise refcoco+, refcocog, "
    "refclef or any other name), grefcoco/grefs(unc).json, anns/<data set>/<split>.json "
    "with masks/, Parquet files, referit_query_<split>.json, or a file written by "
    "`cmsa-fast data convert`, and images in images/; or manifests (*.jsonl)"
)


@dataclass(frozen=True)
class Discovery:
    """Recognised data sets."""

    sources: tuple[Source, ...]  # some may be incomplete; their reader reports the missing files
    gaps: tuple[str, ...]  # messages about folders that cannot be a data set


def discover(root: Path, *, image_folder: Path | None = None) -> Discovery:
    """Searches a folder and its subfolders for data sets; opens Parquet and JSONL files only.

    The root may also be a file that is a data set.
    """
    if root.is_file() and _is_data_set(root):
        return Discovery((Source(form=_FILES[root.suffix][0], root=root, image_folder=image_folder),), ())
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}. {_EXPECTED}.")
    sources: list[Source] = []
    gaps: list[str] = []
    children = sorted(child for child in root.iterdir() if _is_visible_folder(child))
    for folder in (child for child in children if child.name not in _NO_DATA_SET):
        authors = _authors(folder, "refs")
        if not authors and folder.name in PUBLISHED_EXPRESSIONS:
            authors = [""]  # its reader reports what is missing
        elif not authors and (folder / "instances.json").is_file():
            gaps.append(f"{folder} has instances.json, but no refs(<split_by>).p")
        for split_by in authors:
            sources.append(Source(form="refer", root=root, name=folder.name, split_by=split_by))
    if (root / "grefcoco").is_dir():
        for split_by in _authors(root / "grefcoco", "grefs") or [""]:
            sources.append(Source(form="grefcoco", root=root, split_by=split_by))
    sources += _anns_masks(root)
    claimed: set[Path] = set()  # a file belongs to the topmost folder that it identifies
    for folder in (root, *children):
        if folder == root or folder.name not in _NO_DATA_SET:
            sources += _whole_folder(folder, claimed)
    if not sources and not gaps:
        gaps.append(_no_data_set(root, children))
    if image_folder is not None:
        sources = [replace(source, image_folder=image_folder) for source in sources]
    return Discovery(tuple(sources), tuple(gaps))


def _anns_masks(root: Path) -> Iterator[Source]:
    if not (root / "anns").is_dir():
        if (root / "lmdb").is_dir():  # its reader explains what to do instead
            yield Source(form="anns-masks", root=root)
        return
    for folder in sorted((root / "anns").iterdir()):
        if _is_visible_folder(folder) and any(folder.glob("*.json")):
            yield Source(form="anns-masks", root=root, name=folder.name)


def _whole_folder(folder: Path, claimed: set[Path]) -> Iterator[Source]:
    """Data sets that fill a whole folder."""
    for form, patterns in _WHOLE_FOLDERS.items():
        files = {file for pattern in patterns for file in folder.glob(pattern)} - claimed
        claimed |= files
        alone = [file for file in sorted(files) if _is_data_set(file)]
        for file in alone:
            yield Source(form=_FILES[file.suffix][0], root=file)
        if len(files) > len(alone) and form != "manifest":
            yield Source(form=form, root=folder)


def _is_data_set(file: Path) -> bool:
    if file.suffix not in _FILES:
        return False
    try:
        return _FILES[file.suffix][1](file)
    except (ValueError, OSError):
        return False  # its reader reports what is wrong with it


def _no_data_set(root: Path, children: list[Path]) -> str:
    message = f"{root} holds no known data set. {_EXPECTED}."
    if _authors(root, "refs") or _authors(root, "grefs"):
        return f"{message} {root} looks like the folder of one data set: name the folder above it."
    for child in children:
        inner = [one for one in child.iterdir() if _is_visible_folder(one)]
        if any(_authors(one, "refs") for one in inner):
            return f"{message} {child} looks like such a root."
    return message


def _authors(folder: Path, start: str) -> list[str]:
    """The authors of splits in the names `<start>(<author>).p` and `.json` of the folder's files."""
    pattern = re.compile(rf"{start}\((.+)\)\.(p|json)")
    matches = (pattern.fullmatch(file.name) for file in folder.iterdir())
    return sorted({match[1] for match in matches if match})


def _is_visible_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")
