"""What lies under a folder: data sets of every form, recognised by their files' names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..formats.converted import is_converted
from ..formats.published import PUBLISHED_EXPRESSIONS
from ..formats.referit import RECORD_FOLDERS
from ..source import Form, Source

# Folders of the root that hold images, masks or records of a form with a place of its own.
_NO_DATA_SET = ("images", "anns", "masks", "lmdb", "grefcoco")
# Forms of which a folder holds one, and where their readers look in it.
_WHOLE_FOLDERS: Mapping[Form, tuple[str, ...]] = {
    "converted": ("dataset.json",),  # of the former format, which its reader explains
    "referit": tuple(f"{folder}/referit_query_*.json" for folder in RECORD_FOLDERS),
    "parquet": ("*.parquet", "data/*.parquet"),
}
_SAID_BELONGS = (
    "A root holds refcoco/refs(unc).p and refcoco/instances.json (likewise refcoco+, refcocog, "
    "refclef or a folder of one's own), grefcoco/grefs(unc).json, anns/<data set>/<split>.json "
    "with masks/, parquet files, referit_query_<split>.json, or a file written by "
    "`cmsa-fast data convert`, and images in images/"
)


@dataclass(frozen=True)
class Discovery:
    """What was recognised.

    Attributes:
        sources: The data sets, as `cmsa_fast.data.source.read_records` takes them. Files of some may
            be missing; their reader says which, and where they belong.
        gaps: One expression for each thing that is there but cannot be a data set, with what it lacks.
    """

    sources: tuple[Source, ...]
    gaps: tuple[str, ...]


def discover(root: Path, *, image_folder: Path | None = None) -> Discovery:
    """Looks for data sets in a folder and the folders directly in it.

    Args:
        root: The folder.
        image_folder: The folder of the images, for every source that is found.

    Returns:
        What was recognised; only Parquet files are opened.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}. {_SAID_BELONGS}.")
    sources: list[Source] = []
    gaps: list[str] = []
    children = sorted(child for child in root.iterdir() if _is_visible_folder(child))
    for folder in children:
        if folder.name not in _NO_DATA_SET:
            sources += _refer(root, folder)
            gaps += _refer_gaps(folder)
    sources += _grefcoco(root)
    sources += _anns_masks(root)
    claimed: set[Path] = set()  # a file belongs to the highest folder that is recognised by it
    for folder in (root, *children):
        if folder == root or folder.name not in _NO_DATA_SET:
            sources += _whole_folder(folder, claimed)
    if not sources and not gaps:
        gaps.append(_nothing(root, children))
    if image_folder is not None:
        sources = [replace(source, image_folder=image_folder) for source in sources]
    return Discovery(tuple(sources), tuple(gaps))


def _refer(root: Path, folder: Path) -> Iterator[Source]:
    made = sorted({*_between(folder, "refs(", ").p"), *_between(folder, "refs(", ").json")})
    if not made and folder.name in PUBLISHED_EXPRESSIONS:
        made = [""]  # its reader says what is missing
    for split_by in made:
        yield Source(form="refer", root=root, name=folder.name, split_by=split_by)


def _refer_gaps(folder: Path) -> Iterator[str]:
    lacks_references = not any(_between(folder, "refs(", end) for end in (").p", ").json"))
    if lacks_references and folder.name not in PUBLISHED_EXPRESSIONS and _has_instances(folder):
        yield f"{folder} has instances.json, but no refs(<split_by>).p beside it"


def _has_instances(folder: Path) -> bool:
    return (folder / "instances.json").is_file()


def _grefcoco(root: Path) -> Iterator[Source]:
    folder = root / "grefcoco"
    if not folder.is_dir():
        return
    made = {*_between(folder, "grefs(", ").json"), *_between(folder, "grefs(", ").p")}
    for split_by in sorted(made) or [""]:
        yield Source(form="grefcoco", root=root, split_by=split_by)


def _anns_masks(root: Path) -> Iterator[Source]:
    if not (root / "anns").is_dir():
        if (root / "lmdb").is_dir():  # refused by the reader, which says what to do instead
            yield Source(form="anns-masks", root=root)
        return
    for folder in sorted((root / "anns").iterdir()):
        if _is_visible_folder(folder) and any(folder.glob("*.json")):
            yield Source(form="anns-masks", root=root, name=folder.name)


def _whole_folder(folder: Path, claimed: set[Path]) -> Iterator[Source]:
    """Forms of which a folder holds one."""
    for form, patterns in _WHOLE_FOLDERS.items():
        files = {file for pattern in patterns for file in folder.glob(pattern)} - claimed
        claimed |= files
        converted = [file for file in sorted(files) if form == "parquet" and _is_converted(file)]
        for file in converted:
            yield Source(form="converted", root=file)
        if len(files) > len(converted):
            yield Source(form=form, root=folder)


def _is_converted(file: Path) -> bool:
    try:
        return is_converted(file)
    except (ValueError, OSError):
        return False  # its reader reports what is wrong with it


def _nothing(root: Path, children: list[Path]) -> str:
    message = f"{root} holds no data set that is known. {_SAID_BELONGS}."
    if _between(root, "refs(", ").p") or _between(root, "grefs(", ").json"):
        return f"{message} {root} looks like one data set's folder: give the folder above it."
    for child in children:
        inner = [one for one in child.iterdir() if _is_visible_folder(one)]
        if any(_between(one, "refs(", ").p") for one in inner):
            return f"{message} {child} looks like such a root."
    return message


def _between(folder: Path, start: str, end: str) -> list[str]:
    """What stands between two ends in the names of the folder's files."""
    names = (file.name for file in folder.iterdir())
    return sorted(
        name[len(start) : -len(end)]
        for name in names
        if name.startswith(start) and name.endswith(end) and len(name) > len(start) + len(end)
    )


def _is_visible_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")
