"""Pictures in files, looked for when they are read, and the last few of them kept."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from torch import Tensor

from .images import read_image
from .types import Picture

_SHOWN_FOLDERS = 3


@dataclass(frozen=True)
class PictureFile:
    """A picture in one of some folders, looked for when it is read.

    Attributes:
        folders: Where to look, in order.
        file_name: A name, or a relative path whose last part is the name.
    """

    folders: tuple[Path, ...]
    file_name: str

    @property
    def name(self) -> str:
        """The file, where it is found, else its name."""
        return str(self._find() or self.file_name)

    def locate(self) -> Path:
        """The first file of that name in the folders.

        Raises:
            FileNotFoundError: No folder has it.
        """
        found = self._find()
        if found is not None:
            return found
        shown = [str(folder) for folder in self.folders[:_SHOWN_FOLDERS]]
        if len(self.folders) > _SHOWN_FOLDERS:
            shown.append(f"{len(self.folders) - _SHOWN_FOLDERS} more folders")
        raise FileNotFoundError(f"there is no picture {self.file_name} in {', '.join(shown)}")

    def read(self, *, apply_orientation: bool) -> Tensor:
        """`read_image`, with its errors."""
        return read_image(self.locate(), apply_orientation=apply_orientation)

    def _find(self) -> Path | None:
        relative = PurePath(self.file_name)
        candidates = (
            path for folder in self.folders for path in (folder / relative, folder / relative.name)
        )
        return next((path for path in candidates if _is_file(path)), None)


def picture_file(folders: Sequence[Path], file_name: str) -> PictureFile:
    """A picture that a data set's files name.

    Args:
        folders: Where to look for it, in order.
        file_name: A name, or a relative path whose last part is the name.

    Raises:
        ValueError: The name leads out of the folders.
    """
    relative = PurePath(file_name)
    if relative.is_absolute() or ".." in relative.parts or not relative.name:
        raise ValueError(
            f"a picture is named {file_name!r}, which is not the name of a file inside the picture "
            "folder"
        )
    return PictureFile(tuple(folders), file_name)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise


class PictureCache:
    """The last few pictures read, so that the sentences of one picture decode it once.

    Safe to share between threads. A copy sent to another process starts empty.

    Args:
        capacity: How many pictures to keep.
    """

    def __init__(self, capacity: int = 4) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, not {capacity}")
        self.capacity = capacity
        # Replaced as a whole and never changed: a thread that reads it while another writes sees
        # either the old entries or the new ones, and no lock has to survive pickling or a fork.
        self._entries: tuple[tuple[tuple[str | Picture, bool], Tensor], ...] = ()

    def read(
        self, picture: str | os.PathLike[str] | Picture, *, apply_orientation: bool = True
    ) -> Tensor:
        """`read_image`, or the very tensor that the last reading of this picture returned.

        Args:
            picture: A file, or a picture of a record.
            apply_orientation: As for `read_image`.

        Returns:
            uint8 `[3, H, W]`, RGB. To be read, not written: others may hold it too.

        Raises:
            FileNotFoundError, ValueError: As `read_image`.
        """
        source = os.fspath(picture) if isinstance(picture, str | os.PathLike) else picture
        key = (source, apply_orientation)
        entries = self._entries
        image = next((image for known, image in entries if known == key), None)
        if image is None:
            if isinstance(source, str):
                image = read_image(source, apply_orientation=apply_orientation)
            else:
                image = source.read(apply_orientation=apply_orientation)
        others = tuple(entry for entry in entries if entry[0] != key)
        self._entries = ((key, image), *others[: self.capacity - 1])
        return image

    def __reduce__(self) -> tuple[type[PictureCache], tuple[int]]:
        return PictureCache, (self.capacity,)
