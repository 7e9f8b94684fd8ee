"""What `dataset.json` says of a converted data set.

Such a data set is a folder with `dataset.json`, one safetensors file for each split
(`cmsa_fast.data.formats.converted.arrays`), and the images where they were copied. Nothing in it can run
code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from ..parsing import field, integer, kind, listing, load_json, place, string

FORMAT = "cmsa_fast data set"
VERSION = 1
DESCRIPTION = "dataset.json"
IMAGES = "pictures"


@dataclass(frozen=True)
class ImageFolders:
    """Where some images lie.

    Attributes:
        absolute: Folders by their full path, as they were at the conversion.
        relative: The same folders relative to the data set's, taken where no full path is there:
            the data set was moved together with its images.
    """

    absolute: tuple[str, ...]
    relative: tuple[str, ...]

    def find(self, folder: Path) -> tuple[Path, ...]:
        """The folders that are there.

        Args:
            folder: The data set's.

        Raises:
            FileNotFoundError: None is.
        """
        for paths in (self.absolute, self.relative):
            found = tuple(path for name in paths if (path := folder / name).is_dir())
            if found:
                return found
        asked = self.absolute or tuple(str(folder / name) for name in self.relative)
        raise FileNotFoundError(
            f"the images of {folder} are not where they were at its conversion, in "
            f"{' or '.join(asked)}: name their folder by image_folder"
        )


@dataclass(frozen=True)
class SplitEntry:
    """What `dataset.json` says of a split.

    Attributes:
        file: The name of its file.
        sha256: Digest of that file, hexadecimal.
        references: Number of records.
        expressions: Number of expressions.
        masks: Number of distinct masks.
        images: Number of distinct images.
    """

    file: str
    sha256: str
    references: int
    expressions: int
    masks: int
    images: int


@dataclass(frozen=True)
class Description:
    """What `dataset.json` says.

    Attributes:
        title: What the data set is, for messages.
        origin: Form, root, name, split_by and text of what was converted.
        published_expressions: Number of expressions of each published split, as far as known.
        image_folders: Where the images lie.
        splits: Each split under its recorded name.
        problems: One line for each record that the conversion left out.
    """

    title: str
    origin: Mapping[str, str]
    published_expressions: Mapping[str, int]
    image_folders: tuple[ImageFolders, ...]
    splits: Mapping[str, SplitEntry]
    errors: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """What `read_description` reads again."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "title": self.title,
            "origin": dict(self.origin),
            "published_expressions": dict(self.published_expressions),
            "image_folders": [vars(folders) for folders in self.image_folders],
            "splits": {name: vars(entry) for name, entry in self.splits.items()},
            "problems": list(self.errors),
        }


def read_description(folder: Path) -> Description:
    """Reads `dataset.json`.

    Args:
        folder: The converted data set.

    Raises:
        FileNotFoundError: The folder or the file is missing.
        ValueError: The file is damaged, none of ours, or of a version not known here.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        there = sorted(file.parent.name for file in folder.glob(f"*/{DESCRIPTION}"))
        hint = f"; folders with one are {', '.join(there)} (name)" if there else ""
        raise FileNotFoundError(f"{folder} is no converted data set: it has no {DESCRIPTION}{hint}")
    where = (path,)
    content = load_json(path)
    if string(content, "format", where) != FORMAT:
        raise ValueError(f"{path} has the format {content['format']!r}, not {FORMAT!r}")
    if (version := integer(content, "version", where)) != VERSION:
        raise ValueError(
            f"{path} is of version {version} and this cmsa_fast reads version {VERSION}: convert "
            "the data set anew, or install the cmsa_fast that wrote it"
        )
    origin = _dictionary(content, "origin", where)
    published = _dictionary(content, "published_expressions", where)
    return Description(
        title=string(content, "title", where),
        origin={key: string(origin, key, (*where, "origin")) for key in origin},
        published_expressions={
            key: integer(published, key, (*where, "published_expressions")) for key in published
        },
        image_folders=tuple(
            ImageFolders(
                absolute=_texts(entry, "absolute", (*where, "image_folders", i)),
                relative=_texts(entry, "relative", (*where, "image_folders", i)),
            )
            for i, entry in enumerate(listing(content, "image_folders", where))
        ),
        splits={
            name: _read_entry(entry, (*where, "split", name))
            for name, entry in _dictionary(content, "splits", where).items()
        },
        errors=_texts(content, "problems", where),
    )


def _read_entry(entry: Any, where: tuple[object, ...]) -> SplitEntry:
    file = string(entry, "file", where)
    if file in ("", "..") or PurePath(file).name != file:
        raise ValueError(f"{place(where)} has the file {file!r}, which is no name of a file in it")
    counts = {}
    for key in ("references", "sentences", "masks", "pictures"):
        counts[key] = integer(entry, key, where)
        if counts[key] < 0:
            raise ValueError(f"{place(where)} has {counts[key]} as its {key!r}")
    return SplitEntry(file, string(entry, "sha256", where), **counts)


def _dictionary(record: Any, key: str, where: tuple[object, ...]) -> dict[str, Any]:
    value = field(record, key, where)
    if not isinstance(value, dict):
        raise ValueError(f"{place(where)} has {kind(value)} as its {key!r}, not a dictionary")
    return value


def _texts(record: Any, key: str, where: tuple[object, ...]) -> tuple[str, ...]:
    values = listing(record, key, where)
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"{place(where)} has something else than text in its {key!r}")
    return tuple(values)
