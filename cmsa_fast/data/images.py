"""Reads image files as uint8 RGB tensors; `ImageCache` keeps the last ones."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePath
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .types import EmbeddedImage, ImageSource

# Without formats that start another program (EPS) or that no data set uses.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
# Formats whose 32-bit integer mode holds 16-bit grey; elsewhere that mode has no defined white.
_GREY16_AS_INTEGER = ("PNG", "PPM")
_SHOWN_FOLDERS = 3
_ON_SIDE = (5, 6, 7, 8)  # the EXIF orientations that swap height and width


def read_image(
    source: str | os.PathLike[str] | IO[bytes], *, apply_orientation: bool = True, max_pixels: int | None = None
) -> Tensor:
    """Reads an image of any mode as 8-bit RGB.

    Grey and palette images get three channels; 16-bit grey is divided by 257 and rounded, so that 65535
    is white; CMYK is converted without its colour profile; transparent pixels are composed over white.
    Of several frames the first is read.

    Args:
        source: A path, or a file opened for reading bytes: JPEG, PNG, WebP, BMP, GIF, TIFF, PPM or
            JPEG 2000.
        apply_orientation: Turn the image upright as its EXIF orientation states. COCO's polygons and most
            masks refer to the pixels as stored and need False. (Pillow always turns TIFF files upright.)
        max_pixels: The largest number of pixels to decode. None: `PIL.Image.MAX_IMAGE_PIXELS`.

    Returns:
        uint8 `[3, H, W]`, RGB, contiguous.

    Raises:
        TypeError: `source` is neither a path nor a file of bytes.
        FileNotFoundError: There is no such file.
        ValueError: The file is no image of a known format, is truncated, has pixels of undefined range
            (floating point, 32-bit integers), or has more pixels than allowed.
    """
    with _as_file(source) as (file, name), _opened(file, name, max_pixels) as image:
        return _decode(image, name, apply_orientation)


def convert_image(image: Image.Image) -> Tensor:
    """Converts an image of Pillow as `read_image` does, upright, with its errors.

    Of an animation the current frame is converted. The image is not changed.
    """
    name = getattr(image, "filename", "") or "the given image"
    with _errors_of_pillow(name):
        _refuse_bomb(image.size, name)
        return _decode(image, name, apply_orientation=True)


def read_image_size(
    source: str | os.PathLike[str] | IO[bytes], *, apply_orientation: bool = True
) -> tuple[int, int]:
    """Height and width of what `read_image` returns, for most formats without decoding the pixels.

    A PNG is decoded to apply its orientation, which may come last.
    """
    with _as_file(source) as (file, name), _opened(file, name) as image:
        if image.format == "TIFF":
            image.load()  # turns it upright
        width, height = image.size
        if apply_orientation and image.getexif().get(ExifTags.Base.Orientation) in _ON_SIDE:
            width, height = height, width
    return height, width


@contextmanager
def _as_file(source: str | os.PathLike[str] | IO[bytes]) -> Iterator[tuple[IO[bytes], str]]:
    """Yields the file and its name; a path is opened and closed."""
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        try:
            with open(path, "rb") as file:
                yield file, path
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no image at {path}") from None
    elif hasattr(source, "read"):
        yield source, str(getattr(source, "name", "the given file"))
    else:
        raise TypeError(f"source must be a path or a file opened for reading bytes, not {type(source).__name__}")


@contextmanager
def _opened(file: IO[bytes], name: str, max_pixels: int | None = None) -> Iterator[Image.Image]:
    """Opens an image without decoding it; errors from damaged files become ValueError."""
    with _errors_of_pillow(name), Image.open(file, formats=_FORMATS) as image:
        _refuse_bomb(image.size, name, max_pixels)
        yield image


@contextmanager
def _errors_of_pillow(name: str) -> Iterator[None]:
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name} is refused as an image: {error}") from error
    except _RefusedImage as error:
        raise ValueError(str(error)) from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # an error of the disk; EINVAL is a damaged offset inside the image
        # Pillow's decoders raise many kinds of exception for damaged files. About an unknown format its message
        # names only the Python object that it read.
        detail = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise ValueError(
            f"{name} cannot be read as an image: it is truncated, damaged, or none of "
            f"{', '.join(_FORMATS)}{detail}"
        ) from error


class _RefusedImage(Exception):
    """The file is intact, but its pixels are not supported."""


def _refuse_bomb(size: tuple[int, int], name: str, max_pixels: int | None = None) -> None:
    # Pillow only warns up to twice its limit.
    limit = Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels
    if limit is not None and size[0] * size[1] > limit:
        by = "that PIL.Image.MAX_IMAGE_PIXELS allows" if max_pixels is None else "that are allowed"
        raise _RefusedImage(
            f"{name} is refused as an image: its {size[0]} x {size[1]} pixels are more than the {limit} {by}"
        )


def _decode(image: Image.Image, name: str, apply_orientation: bool) -> Tensor:
    image.load()
    kind = image.format
    upright = ImageOps.exif_transpose(image) if apply_orientation else image
    pixels = _rgb8(upright, kind, name)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()  # [3, H, W]


def _rgb8(image: Image.Image, kind: str | None, name: str) -> NDArray[np.uint8]:
    if image.mode.startswith("I;16") or (image.mode == "I" and kind in _GREY16_AS_INTEGER):
        return _grey16_to_rgb8(image)
    if image.mode in ("I", "F"):
        raise _RefusedImage(
            f"{name} has pixels of mode {image.mode!r}, which have no defined white; save it "
            "with 8 or 16 bits a channel"
        )
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image.convert("RGBA"))
        image = page
    return np.array(image.convert("RGB"))


def _grey16_to_rgb8(image: Image.Image) -> NDArray[np.uint8]:
    wide = np.asarray(image).astype(np.uint32)
    grey = ((wide * 255 + 32767) // 65535).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[wide == transparent] = 255
    return np.repeat(grey[:, :, None], 3, axis=2)


@dataclass(frozen=True)
class ImageFile:
    """An image file, searched for in folders when it is read."""

    folders: tuple[Path, ...]  # in order of search
    file_name: str  # a name, or a relative path whose last part is the name

    @property
    def name(self) -> str:
        """The path of the file if it is found, else its name."""
        return str(self._find() or self.file_name)

    def locate(self) -> Path:
        """The first file of that name in the folders."""
        if (path := self._find()) is not None:
            return path
        shown = [str(folder) for folder in self.folders[:_SHOWN_FOLDERS]]
        if len(self.folders) > _SHOWN_FOLDERS:
            shown.append(f"{len(self.folders) - _SHOWN_FOLDERS} more folders")
        raise FileNotFoundError(f"there is no image {self.file_name} in {', '.join(shown)}")

    def read(self, *, apply_orientation: bool) -> Tensor:
        """`read_image`, with its errors."""
        return read_image(self.locate(), apply_orientation=apply_orientation)

    def _find(self) -> Path | None:
        relative = PurePath(self.file_name)
        candidates = (path for folder in self.folders for path in (folder / relative, folder / relative.name))
        return next((path for path in candidates if _is_file(path)), None)


def image_file(folders: Sequence[Path], file_name: str) -> ImageFile:
    """An image that the files of a data set name; ValueError if the name leads out of the folders.

    Backslashes, which files written on Windows have, separate folders as well.
    """
    file_name = file_name.replace("\\", "/")
    relative = PurePath(file_name)
    if relative.is_absolute() or ".." in relative.parts or not relative.name:
        raise ValueError(
            f"an image is named {file_name!r}, which is not the name of a file inside the image folder"
        )
    return ImageFile(tuple(folders), file_name)


def image_size(image: ImageSource, *, apply_orientation: bool) -> tuple[int, int]:
    """Height and width of the image of a record, for most files without decoding the pixels."""
    if isinstance(image, ImageFile):
        return read_image_size(image.locate(), apply_orientation=apply_orientation)
    if isinstance(image, EmbeddedImage):
        stream = BytesIO(image.read_bytes())
        stream.name = image.name
        return read_image_size(stream, apply_orientation=apply_orientation)
    height, width = image.read(apply_orientation=apply_orientation).shape[1:]
    return height, width


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise


class ImageCache:
    """Keeps the last images read, so that the expressions of one image decode it once.

    It can be shared between threads. A copy in another process starts empty.
    """

    def __init__(self, capacity: int = 4) -> None:
        self.capacity = capacity
        # Replaced as a whole: another thread sees either the old entries or the new ones, and there is no
        # lock that would have to survive pickling or a fork.
        self._entries: tuple[tuple[tuple[ImageSource, bool], Tensor], ...] = ()

    def read(self, source: ImageSource, *, apply_orientation: bool) -> Tensor:
        """Reads an image, or returns the tensor of an earlier call, which other callers may share."""
        key = (source, apply_orientation)
        entries = self._entries
        image = next((image for known, image in entries if known == key), None)
        if image is None:
            image = source.read(apply_orientation=apply_orientation)
        others = tuple(entry for entry in entries if entry[0] != key)
        self._entries = ((key, image), *others[: self.capacity - 1])
        return image

    def __reduce__(self) -> tuple[type[ImageCache], tuple[int]]:
        return ImageCache, (self.capacity,)
