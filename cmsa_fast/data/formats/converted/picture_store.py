"""Where a converted data set finds its pictures: in their old folders, or as files of its own."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path, PurePath
from typing import Protocol, runtime_checkable

from ...images import read_image_size
from ...pictures import PictureFile
from ...types import Picture
from .description import PICTURES, PictureFolders

_OWN = PictureFolders(absolute=(), relative=(PICTURES,))


@runtime_checkable
class EmbeddedPicture(Protocol):
    """A picture inside a larger file, such as `cmsa_fast.data.formats.parquet.pictures.EncodedPicture`."""

    @property
    def file_name(self) -> str:
        """What the picture is called."""
        ...

    def read_bytes(self) -> bytes:
        """The encoded picture, byte for byte."""
        ...


class PictureStore:
    """Gives every picture of a data set its place, and writes those that must be written.

    Args:
        folder: The data set's folder as it is filled.
        destination: Where the folder will lie in the end, without symbolic links.
        copy: Copy picture files too. Pictures inside other files are always written.

    Attributes:
        folders: Where the pictures lie.
        written: Number of picture files written.
        written_bytes: What they hold.
    """

    def __init__(self, folder: Path, destination: Path, *, copy: bool) -> None:
        self.folders: list[PictureFolders] = []
        self.written = self.written_bytes = 0
        self._folder = folder / PICTURES
        self._destination = destination
        self._copy = copy
        self._places: dict[Picture, tuple[int, str]] = {}
        self._sizes: dict[Picture, tuple[int, int]] = {}
        self._names: dict[object, str] = {}  # by what they are copies of
        self._taken: set[str] = set()
        self._waiting: dict[str, bytes] = {}

    def place(self, picture: Picture) -> tuple[int, str]:
        """Where a picture can be found: a place among `folders`, and its name there.

        Raises:
            FileNotFoundError: It must be written, and is missing.
            TypeError: It can neither be found again nor written.
            ValueError: It must be written, and cannot be read.
        """
        known = self._places.get(picture)
        if known is None:
            known = self._places[picture] = self._find_place(picture)
        return known

    def size(self, picture: Picture) -> tuple[int, int]:
        """Height and width in pixels as stored.

        Raises:
            FileNotFoundError, ValueError: It is missing or cannot be read.
        """
        if picture not in self._sizes:
            if isinstance(picture, PictureFile):
                self._sizes[picture] = read_image_size(picture.locate(), apply_orientation=False)
            else:
                _, height, width = picture.read(apply_orientation=False).shape
                self._sizes[picture] = (height, width)
        return self._sizes[picture]

    def write(self) -> None:
        """Writes the pictures whose place was asked for since the last call.

        Apart from `place`, so that a full disk is not taken for the fault of a record.

        Raises:
            OSError: A picture cannot be written.
        """
        for name, data in self._waiting.items():
            self._folder.mkdir(exist_ok=True)
            (self._folder / name).write_bytes(data)
            self.written += 1
            self.written_bytes += len(data)
        self._waiting.clear()

    def _find_place(self, picture: Picture) -> tuple[int, str]:
        if isinstance(picture, PictureFile) and not self._copy:
            return self._folders(self._where(picture.folders)), picture.file_name
        key: object
        if isinstance(picture, PictureFile):
            path = picture.locate()
            key, data = os.path.realpath(path), path.read_bytes()
        elif isinstance(picture, EmbeddedPicture):
            data = picture.read_bytes()
            key = (picture.file_name, hashlib.sha256(data).digest())
        else:
            raise TypeError(
                f"{picture.name} is a picture of type {type(picture).__name__}, which has neither a "
                "file nor bytes that a converted data set could keep"
            )
        if key not in self._names:
            self._names[key] = name = self._free_name(PurePath(picture.file_name).name or "picture")
            self._waiting[name] = data
        return self._folders(_OWN), self._names[key]

    def _free_name(self, base: str) -> str:
        name, count = base, 1
        while name.lower() in self._taken:  # some file systems do not tell cases apart
            count += 1
            name = f"{count}-{base}"
        self._taken.add(name.lower())
        return name

    def _where(self, folders: tuple[Path, ...]) -> PictureFolders:
        absolute = tuple(os.path.abspath(folder) for folder in folders)
        relative = tuple(
            os.path.relpath(os.path.realpath(folder), self._destination) for folder in folders
        )
        return PictureFolders(absolute, relative)

    def _folders(self, folders: PictureFolders) -> int:
        if folders not in self.folders:
            self.folders.append(folders)
        return self.folders.index(folders)
