"""Picture files of every kind as one kind of tensor."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from cmsa_fast.data.record import Picture

# Left out on purpose: formats that start another program (EPS) or that no data set uses.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
# Formats whose 32-bit integer mode holds 16-bit grey; elsewhere that mode has no agreed white.
_GREY16_AS_INTEGER = ("PNG", "PPM")
_SHOWN_FOLDERS = 3
_ON_SIDE = (5, 6, 7, 8)  # the EXIF orientations that exchange height and width


def read_image(
    source: str | os.PathLike[str] | IO[bytes], *, apply_orientation: bool = True
) -> Tensor:
    """Reads a picture as 8-bit RGB, whatever the file holds.

    Grey and palette pictures get three channels; 16-bit grey is divided by 257 and rounded, so that
    65535 is white; CMYK is converted without its colour profile; what is transparent lies over
    white. Of several frames the first is read.

    Args:
        source: A path, or a file opened for reading bytes. JPEG, PNG, WebP, BMP, GIF, TIFF, PPM and
            JPEG 2000 are known.
        apply_orientation: Turn the picture upright as its EXIF orientation says. COCO's polygons
            and most masks refer to the pixels as stored: give False for these. (TIFF files are
            always turned upright; Pillow does so on its own.)

    Returns:
        uint8 `[3, H, W]`, RGB, contiguous.

    Raises:
        TypeError: `source` is neither a path nor a file of bytes.
        FileNotFoundError: There is no such file.
        ValueError: The file is no picture of a known format, is truncated, has pixels whose range
            is not defined (floating point, 32-bit integers), or has more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        try:
            with open(path, "rb") as file:
                return _read(file, path, apply_orientation)
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no picture at {path}") from None
    if not hasattr(source, "read"):
        raise TypeError(
            f"source must be a path or a file opened for reading bytes, not {type(source).__name__}"
        )
    return _read(source, str(getattr(source, "name", "the given file")), apply_orientation)


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


def read_image_size(
    source: str | os.PathLike[str] | IO[bytes], *, apply_orientation: bool = True
) -> tuple[int, int]:
    """Reads a picture's size, as a rule from the start of its file without decoding the pixels.

    Args:
        source: A path, or a file opened for reading bytes.
        apply_orientation: As for `read_image`. (PNG is then decoded: its orientation may come last.)

    Returns:
        Height and width in pixels of what `read_image` gives.

    Raises:
        FileNotFoundError, ValueError: As `read_image`, as far as what is read tells.
    """
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        try:
            with open(path, "rb") as file:
                return _read_size(file, path, apply_orientation)
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no picture at {path}") from None
    return _read_size(source, str(getattr(source, "name", "the given file")), apply_orientation)


def _read_size(file: IO[bytes], name: str, apply_orientation: bool) -> tuple[int, int]:
    with _opened(file, name) as picture:
        if picture.format == "TIFF":
            picture.load()  # only then has Pillow turned it upright
        width, height = picture.size
        if apply_orientation and picture.getexif().get(ExifTags.Base.Orientation) in _ON_SIDE:
            width, height = height, width
    return height, width


def _read(file: IO[bytes], name: str, apply_orientation: bool) -> Tensor:
    with _opened(file, name) as picture:
        picture.load()
        kind = picture.format
        upright = ImageOps.exif_transpose(picture) if apply_orientation else picture
        pixels = _rgb8(upright, kind, name)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()  # [3, H, W]


@contextmanager
def _opened(file: IO[bytes], name: str) -> Iterator[Image.Image]:
    """The picture, its pixels not yet decoded; what damage raises inside becomes ValueError."""
    try:
        with Image.open(file, formats=_FORMATS) as picture:
            _refuse_bomb(picture.size, name)
            yield picture
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name} is refused as a picture: {error}") from error
    except _RefusedPicture as error:
        raise ValueError(str(error)) from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # the disk's fault; EINVAL is a damaged offset inside the picture
        # Pillow's decoders meet damage with many kinds of exception.
        raise ValueError(
            f"{name} cannot be read as a picture: it is truncated, damaged, or none of "
            f"{', '.join(_FORMATS)} ({error})"
        ) from error


class _RefusedPicture(Exception):
    """A sound file whose pixels are not taken."""


def _refuse_bomb(size: tuple[int, int], name: str) -> None:
    # Pillow only warns up to twice its limit.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and size[0] * size[1] > limit:
        raise _RefusedPicture(
            f"{name} is refused as a picture: its {size[0]} x {size[1]} pixels are more than the "
            f"{limit} that PIL.Image.MAX_IMAGE_PIXELS allows"
        )


def _rgb8(picture: Image.Image, kind: str | None, name: str) -> NDArray[np.uint8]:
    if picture.mode.startswith("I;16") or (picture.mode == "I" and kind in _GREY16_AS_INTEGER):
        return _grey16_to_rgb8(picture)
    if picture.mode in ("I", "F"):
        raise _RefusedPicture(
            f"{name} has pixels of mode {picture.mode!r}, which have no defined white; save it "
            "with 8 or 16 bits a channel"
        )
    if picture.has_transparency_data:
        page = Image.new("RGBA", picture.size, "white")
        page.alpha_composite(picture.convert("RGBA"))
        picture = page
    return np.array(picture.convert("RGB"))


def _grey16_to_rgb8(picture: Image.Image) -> NDArray[np.uint8]:
    wide = np.asarray(picture).astype(np.uint32)
    grey = ((wide * 255 + 32767) // 65535).astype(np.uint8)
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int):
        grey[wide == transparent] = 255
    return np.repeat(grey[:, :, None], 3, axis=2)
