"""Where the files of a REFER data set lie, and what to say where one is missing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from ..images import ImageFile, image_file

# Expressions in each published split; empty where the numbers were never printed. RefCOCOg's google
# release lacks its test split, so that its often quoted total of 104 560 is of more than the file.
PUBLISHED_EXPRESSIONS: Mapping[str, Mapping[str, Mapping[str, int]]] = {
    "refcoco": {
        "unc": {"train": 120_624, "val": 10_834, "testA": 5_657, "testB": 5_095},
        "google": {},
    },
    "refcoco+": {"unc": {"train": 120_191, "val": 10_758, "testA": 5_726, "testB": 4_889}},
    "refcocog": {
        "umd": {"train": 80_512, "val": 4_896, "test": 9_602},
        "google": {"train": 85_474, "val": 9_536},
    },
    "refclef": {"unc": {}, "berkeley": {}},
}

COCO_FOLDERS = ("images/mscoco/images/train2014", "images/train2014")
SAIAPR_FOLDERS = ("images/saiapr_tc-12", "images/saiaprtc12")
_SAIAPR_INNER = "*/images"  # as the SAIAPR TC-12 archive unpacks: 00/images, 01/images, ...


@dataclass(frozen=True)
class ReferFiles:
    """The files of one REFER data set.

    Attributes:
        references: The pickle with the expressions, `refs(<split_by>).p`.
        instances: The COCO-style file with sizes and masks, `instances.json`.
        image_folders: Where images are looked for, in order.
    """

    references: Path
    instances: Path
    image_folders: tuple[Path, ...]

    def image(self, file_name: str) -> Path:
        """The path of an image that `instances.json` names.

        Args:
            file_name: A name, or a relative path whose last part is the name.

        Returns:
            The first file of that name in the image folders.

        Raises:
            FileNotFoundError: No folder has it.
            ValueError: The name leads out of the image folders.
        """
        return self.source(file_name).locate()

    def source(self, file_name: str) -> ImageFile:
        """The same image, to be looked for when it is read.

        Args:
            file_name: As for `image`.

        Raises:
            ValueError: The name leads out of the image folders.
        """
        try:
            return image_file(self.image_folders, file_name)
        except ValueError as error:
            raise ValueError(f"{self.instances}: {error}") from error


def locate_refer_files(
    root: str | os.PathLike[str],
    name: str,
    split_by: str,
    image_folder: str | os.PathLike[str] | None = None,
) -> ReferFiles:
    """Finds the files of a REFER data set.

    The layout is `<root>/<name>/refs(<split_by>).p`, `<root>/<name>/instances.json`, and images
    in `<root>/images/mscoco/images/train2014` or `<root>/images/train2014`; RefCLEF's images in
    `<root>/images/saiapr_tc-12` or `<root>/images/saiaprtc12`, lying flat or in the archive's
    `NN/images` folders. A data set of one's own in this layout may have any name; its images are
    looked for in all of these.

    Args:
        root: The folder that holds all of it.
        name: The data set's folder.
        split_by: Who made the split.
        image_folder: The folder of the images, where it is none of those above.

    Returns:
        The files; every folder and file in it exists.

    Raises:
        FileNotFoundError: The root, a file of a published data set, or the images' folder is
            missing. The message says what belongs where.
        ValueError: `name` or `split_by` is neither published nor there.
    """
    root = Path(root)
    check_names(name=name, split_by=split_by)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}. {_what_belongs(name, split_by)}")
    folder = root / name
    if not folder.is_dir() and name not in PUBLISHED_EXPRESSIONS:
        there = sorted(file.parent.name for file in root.glob("*/instances.json"))
        raise ValueError(
            f"name {name!r} is none of the published data sets ({', '.join(PUBLISHED_EXPRESSIONS)}) "
            f"and no folder of {root}, which has {', '.join(there) or 'no data set'}"
        )
    references = folder / f"refs({split_by}).p"
    published = PUBLISHED_EXPRESSIONS.get(name, {})
    if not references.is_file() and split_by not in published:
        there = sorted(file.name[len("refs(") : -len(").p")] for file in folder.glob("refs(*).p"))
        raise ValueError(
            f"split_by {split_by!r} of {name!r} is none of the published ones "
            f"({', '.join(published) or 'there are none'}) and not in {folder}, which has "
            f"{', '.join(there) or 'no refs(...).p'}"
        )
    instances = folder / "instances.json"
    for file in (references, instances):
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {file}. {_what_belongs(name, split_by)}")
    folders = image_folders(root, _usual_folders(name), image_folder, _what_belongs(name, split_by))
    return ReferFiles(references, instances, folders)


def published_origin(expressions: int | None) -> tuple[tuple[str, str], str]:
    """The published split that has so many expressions, which no two have: no name lasts in copies.

    Returns:
        Data set and who split it, and the split; all empty where there is none.
    """
    for name, made in PUBLISHED_EXPRESSIONS.items():
        for split_by, splits in made.items():
            for split, count in splits.items():
                if count == expressions:
                    return (name, split_by), split
    return ("", ""), ""


def usual_split_by(name: str) -> str:
    """Whose split of a data set is meant where nobody is named."""
    return "umd" if name == "refcocog" else "unc"


def check_names(**arguments: str) -> None:
    """Refuses arguments that are no plain name of a file or folder (ValueError)."""
    for argument, value in arguments.items():
        if value in ("", "..") or PurePath(value).name != value:
            raise ValueError(f"{argument} must be the name of a data set or split, not {value!r}")


def existing_folder(image_folder: str | os.PathLike[str]) -> Path:
    """The folder named as that of the images; FileNotFoundError where it is missing."""
    folder = Path(image_folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} (image_folder)")
    return folder


def image_folders(
    root: Path,
    usual: Sequence[str],
    image_folder: str | os.PathLike[str] | None,
    what_belongs: str,
) -> tuple[Path, ...]:
    """The folders in which a data set's images are looked for.

    Args:
        root: The data set's folder.
        usual: Where images usually lie, relative to it. Those of SAIAPR TC-12 may lie in the
            archive's `NN/images` folders there.
        image_folder: The one folder to take instead.
        what_belongs: What to say about the layout where there is no folder.

    Raises:
        FileNotFoundError: `image_folder` is missing, or all of the usual ones are.
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
        f"of {images} in {folders}. The server that handed out the records is gone: take them "
        "from a copy (an archive of the web, or a colleague's)."
    )
