"""The files of a converted data set: what they hold, and that they hold together.

A converted data set is a folder with `dataset.json`, one safetensors file for each split, and the
pictures where they were copied. Nothing in it can run code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from cmsa_fast.data.fields import field, integer, kind, listing, load_json, place, string

FORMAT = "cmsa_fast data set"
VERSION = 1
DESCRIPTION = "dataset.json"
PICTURES = "pictures"

Arrays = Mapping[str, NDArray[Any]]

_Shape = tuple[str | int, ...]

# Each array of a split with its type and shape. Text and masks lie end to end as bytes: entry i of
# X is X[X_starts[i] : X_starts[i + 1]]. Sizes are height and width, -1 where they are not known.
_LAYOUT: Mapping[str, tuple[type[np.generic], _Shape]] = {
    "ref_id": (np.int64, ("records",)),
    "image_id": (np.int64, ("records",)),
    "size": (np.int32, ("records", 2)),
    "order": (np.int64, ("records",)),  # place among the records of all splits
    "picture": (np.int64, ("records",)),
    "sentences_starts": (np.int64, ("records + 1",)),
    "objects_starts": (np.int64, ("records + 1",)),
    "objects": (np.int64, ("objects",)),  # places among the masks, which records may share
    "sent_id": (np.int64, ("sentences",)),
    "text": (np.uint8, ("bytes of text",)),  # UTF-8
    "text_starts": (np.int64, ("sentences + 1",)),
    "mask": (np.uint8, ("bytes of masks",)),  # compressed run lengths; none: the mask is empty
    "mask_starts": (np.int64, ("masks + 1",)),
    "mask_size": (np.int32, ("masks", 2)),
    "mask_dropped": (np.int64, ("masks",)),
    "picture_name": (np.uint8, ("bytes of names",)),  # UTF-8
    "picture_name_starts": (np.int64, ("pictures + 1",)),
    "picture_folders": (np.int64, ("pictures",)),  # places among the description's folders
}

# What each `_starts` divides.
_DIVIDED = {
    "sentences_starts": "sent_id",
    "objects_starts": "objects",
    "text_starts": "text",
    "mask_starts": "mask",
    "picture_name_starts": "picture_name",
}


@dataclass(frozen=True)
class PictureFolders:
    """Where some pictures lie.

    Attributes:
        absolute: Folders by their full path, as they were at the conversion.
        relative: The same folders relative to the data set's, taken where no full path is there:
            the data set was moved together with its pictures.
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
            f"the pictures of {folder} are not where they were at its conversion, in "
            f"{' or '.join(asked)}: name their folder by image_folder"
        )


@dataclass(frozen=True)
class SplitEntry:
    """What `dataset.json` says of a split.

    Attributes:
        file: The name of its file.
        sha256: Digest of that file, hexadecimal.
        references: Number of records.
        sentences: Number of sentences.
        masks: Number of distinct masks.
        pictures: Number of distinct pictures.
    """

    file: str
    sha256: str
    references: int
    sentences: int
    masks: int
    pictures: int


@dataclass(frozen=True)
class Description:
    """What `dataset.json` says.

    Attributes:
        title: What the data set is, for messages.
        origin: Form, root, name, split_by and text of what was converted.
        published_sentences: Number of sentences of each published split, as far as known.
        picture_folders: Where the pictures lie.
        splits: Each split under its recorded name.
        problems: One line for each record that the conversion left out.
    """

    title: str
    origin: Mapping[str, str]
    published_sentences: Mapping[str, int]
    picture_folders: tuple[PictureFolders, ...]
    splits: Mapping[str, SplitEntry]
    problems: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """What `read_description` reads again."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "title": self.title,
            "origin": dict(self.origin),
            "published_sentences": dict(self.published_sentences),
            "picture_folders": [vars(folders) for folders in self.picture_folders],
            "splits": {name: vars(entry) for name, entry in self.splits.items()},
            "problems": list(self.problems),
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
    published = _dictionary(content, "published_sentences", where)
    return Description(
        title=string(content, "title", where),
        origin={key: string(origin, key, (*where, "origin")) for key in origin},
        published_sentences={
            key: integer(published, key, (*where, "published_sentences")) for key in published
        },
        picture_folders=tuple(
            PictureFolders(
                absolute=_texts(entry, "absolute", (*where, "picture_folders", i)),
                relative=_texts(entry, "relative", (*where, "picture_folders", i)),
            )
            for i, entry in enumerate(listing(content, "picture_folders", where))
        ),
        splits={
            name: _read_entry(entry, (*where, "split", name))
            for name, entry in _dictionary(content, "splits", where).items()
        },
        problems=_texts(content, "problems", where),
    )


def read_arrays(folder: Path, entry: SplitEntry, number_of_folders: int) -> Arrays:
    """Reads and checks the arrays of a split.

    Args:
        folder: The converted data set.
        entry: Of the split.
        number_of_folders: How many `picture_folders` the description has.

    Returns:
        The arrays under the names of the layout above. Every place in them leads to an entry;
        what the masks' bytes hold is left to whoever draws them.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: It is not the file that was written, or does not hold together.
    """
    path = folder / entry.file
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}, which {DESCRIPTION} names")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise ValueError(
            f"{path} is not the file that was written: it is cut short, damaged or edited (its "
            f"SHA-256 is not the one in {DESCRIPTION}); convert the data set anew"
        )
    try:
        arrays = load(content)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a safetensors file that numpy can hold: {error}") from None
    faults = _faults(arrays, entry, number_of_folders)
    if (fault := next(faults, None)) is not None:
        raise ValueError(f"{path} is damaged: {fault}")
    return arrays


def divide(content: NDArray[Any], starts: NDArray[np.int64]) -> Iterator[bytes]:
    """The entries of one of the arrays that lie end to end."""
    everything, places = content.tobytes(), starts.tolist()
    return (everything[a:b] for a, b in zip(places[:-1], places[1:], strict=True))


def encode_text(text: str) -> bytes:
    """UTF-8, where JSON's lone halves of surrogate pairs are let through."""
    return text.encode("utf-8", "surrogatepass")


def decode_text(text: bytes) -> str:
    """What `encode_text` was given; ValueError where it is not UTF-8."""
    return text.decode("utf-8", "surrogatepass")


def _faults(arrays: Arrays, entry: SplitEntry, number_of_folders: int) -> Iterator[str]:
    """What is wrong, the first fault first: later checks rely on earlier ones."""
    if arrays.keys() != _LAYOUT.keys():
        odd = sorted(arrays.keys() ^ _LAYOUT.keys())
        yield f"it should not have, or lacks, {', '.join(odd)}"
    lengths = {"records": entry.references, "sentences": entry.sentences}
    lengths |= {"masks": entry.masks, "pictures": entry.pictures}
    lengths |= {f"{key} + 1": value + 1 for key, value in lengths.items()}
    for name, (dtype, symbols) in _LAYOUT.items():
        array = arrays[name]
        free = array.shape[0] if array.ndim else 0
        shape = tuple(
            symbol if isinstance(symbol, int) else lengths.get(symbol, free) for symbol in symbols
        )
        if array.dtype != dtype or array.shape != shape:
            yield (
                f"{name} has the type {array.dtype} and the shape {list(array.shape)}, not "
                f"{np.dtype(dtype)} and {list(shape)}"
            )
    for name, divided in _DIVIDED.items():
        starts, end = arrays[name], arrays[divided].size
        if starts[0] != 0 or starts[-1] != end or (np.diff(starts) < 0).any():
            yield f"{name} does not divide the {end} entries of {divided}"
    for name, end in (
        ("objects", entry.masks),
        ("picture", entry.pictures),
        ("picture_folders", number_of_folders),
    ):
        places = arrays[name]
        if places.size and not 0 <= places.min() <= places.max() < end:
            yield f"{name} points beyond its {end} entries"
    for name in ("size", "mask_size"):
        sizes = arrays[name]
        if not ((sizes > 0).all(axis=1) | (sizes == -1).all(axis=1)).all():
            yield f"{name} has entries that are no height and width"
    if (arrays["mask_dropped"] < 0).any():
        yield "mask_dropped has negative entries"
    drawn = np.diff(arrays["mask_starts"]) > 0
    if (arrays["mask_size"][drawn] < 0).any():
        yield "mask_size lacks the size of a mask that is not empty"


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
