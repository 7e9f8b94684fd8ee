"""Where a converted data set finds its images: in their old folders, or as files of its own."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path, PurePath
from typing import Protocol, runtime_checkable

from ...images import ImageFile, read_image_size
from ...types import ImageSource
from .description import IMAGES, ImageFolders

_OWN = ImageFolders(absolute=(), relative=(IMAGES,))


@runtime_checkable
class EmbeddedImage(Protocol):
    """An image inside a larger file, such as `cmsa_fast.data.formats.parquet.images.EncodedImage`."""

    @property
    def file_name(self) -> str:
        """What the image is called."""
        ...

    def read_bytes(self) -> bytes:
        """The encoded image, byte for byte."""
        ...


class ImageStore:
    """Gives every image of a data set its place, and writes those that must be written.

    Args:
        folder: The data set's folder as it is filled.
        destination: Where the folder will lie in the end, without symbolic links.
        copy: Copy image files too. Images inside other files are always written.

    Attributes:
        folders: Where the images lie.
        written: Number of image files written.
        written_bytes: What they hold.
    """

    def __init__(self, folder: Path, destination: Path, *, copy: bool) -> None:
        self.folders: list[ImageFolders] = []
        self.written = self.written_bytes = 0
        self._folder = folder / IMAGES
        self._destination = destination
        self._copy = copy
        self._places: dict[ImageSource, tuple[int, str]] = {}
        self._sizes: dict[ImageSource, tuple[int, int]] = {}
        self._names: dict[object, str] = {}  # by what they are copies of
        self._taken: set[str] = set()
        self._waiting: dict[str, bytes] = {}

    def place(self, image: ImageSource) -> tuple[int, str]:
        """Where an image can be found: a place among `folders`, and its name there.

        Raises:
            FileNotFoundError: It must be written, and is missing.
            TypeError: It can neither be found again nor written.
            ValueError: It must be written, and cannot be read.
        """
        known = self._places.get(image)
        if known is None:
            known = self._places[image] = self._find_place(image)
        return known

    def size(self, image: ImageSource) -> tuple[int, int]:
        """Height and width in pixels as stored.

        Raises:
            FileNotFoundError, ValueError: It is missing or cannot be read.
        """
        if image not in self._sizes:
            if isinstance(image, ImageFile):
                self._sizes[image] = read_image_size(image.locate(), apply_orientation=False)
            else:
                _, height, width = image.read(apply_orientation=False).shape
                self._sizes[image] = (height, width)
        return self._sizes[image]

    def write(self) -> None:
        """Writes the images whose place was asked for since the last call.

        Apart from `place`, so that a full disk is not taken for the fault of a record.

        Raises:
            OSError: An image cannot be written.
        """
        for name, data in self._waiting.items():
            self._folder.mkdir(exist_ok=True)
            (self._folder / name).write_bytes(data)
            self.written += 1
            self.written_bytes += len(data)
        self._waiting.clear()

    def _find_place(self, image: ImageSource) -> tuple[int, str]:
        if isinstance(image, ImageFile) and not self._copy:
            return self._folders(self._where(image.folders)), image.file_name
        key: object
        if isinstance(image, ImageFile):
            path = image.locate()
            key, data = os.path.realpath(path), path.read_bytes()
        elif isinstance(image, EmbeddedImage):
            data = image.read_bytes()
            key = (image.file_name, hashlib.sha256(data).digest())
        else:
            raise TypeError(
                f"{image.name} is an image of type {type(image).__name__}, which has neither a "
                "file nor bytes that a converted data set could keep"
            )
        if key not in self._names:
            self._names[key] = name = self._free_name(PurePath(image.file_name).name or "picture")
            self._waiting[name] = data
        return self._folders(_OWN), self._names[key]

    def _free_name(self, base: str) -> str:
        name, count = base, 1
        while name.lower() in self._taken:  # some file systems do not tell cases apart
            count += 1
            name = f"{count}-{base}"
        self._taken.add(name.lower())
        return name

    def _where(self, folders: tuple[Path, ...]) -> ImageFolders:
        absolute = tuple(os.path.abspath(folder) for folder in folders)
        relative = tuple(
            os.path.relpath(os.path.realpath(folder), self._destination) for folder in folders
        )
        return ImageFolders(absolute, relative)

    def _folders(self, folders: ImageFolders) -> int:
        if folders not in self.folders:
            self.folders.append(folders)
        return self.folders.index(folders)
