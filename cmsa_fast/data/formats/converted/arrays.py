"""The arrays of one split of a converted data set, and that they hold together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from .description import DESCRIPTION, SplitEntry

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
    "expressions_starts": (np.int64, ("records + 1",)),
    "objects_starts": (np.int64, ("records + 1",)),
    "objects": (np.int64, ("objects",)),  # places among the masks, which records may share
    "sent_id": (np.int64, ("sentences",)),
    "text": (np.uint8, ("bytes of text",)),  # UTF-8
    "text_starts": (np.int64, ("expressions + 1",)),
    "mask": (np.uint8, ("bytes of masks",)),  # compressed run lengths; none: the mask is empty
    "mask_starts": (np.int64, ("masks + 1",)),
    "mask_size": (np.int32, ("masks", 2)),
    "mask_dropped": (np.int64, ("masks",)),
    "image_name": (np.uint8, ("bytes of names",)),  # UTF-8
    "image_name_starts": (np.int64, ("images + 1",)),
    "image_folders": (np.int64, ("pictures",)),  # places among the description's folders
}

# What each `_starts` divides.
_DIVIDED = {
    "expressions_starts": "sent_id",
    "objects_starts": "objects",
    "text_starts": "text",
    "mask_starts": "mask",
    "image_name_starts": "image_name",
}


def read_arrays(folder: Path, entry: SplitEntry, number_of_folders: int) -> Arrays:
    """Reads and checks the arrays of a split.

    Args:
        folder: The converted data set.
        entry: Of the split.
        number_of_folders: How many `image_folders` the description has.

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
    lengths = {"records": entry.references, "sentences": entry.expressions}
    lengths |= {"masks": entry.masks, "pictures": entry.images}
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
        ("picture", entry.images),
        ("image_folders", number_of_folders),
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
