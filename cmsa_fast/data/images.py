"""Picture files of every kind as one kind of tensor."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

# Left out on purpose: formats that start another program (EPS) or that no data set uses.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
# Formats whose 32-bit integer mode holds 16-bit grey; elsewhere that mode has no agreed white.
_GREY16_AS_INTEGER = ("PNG", "PPM")
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
    with _as_file(source) as (file, name), _opened(file, name) as picture:
        picture.load()
        kind = picture.format
        upright = ImageOps.exif_transpose(picture) if apply_orientation else picture
        pixels = _rgb8(upright, kind, name)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()  # [3, H, W]


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
        TypeError, FileNotFoundError, ValueError: As `read_image`, as far as what is read tells.
    """
    with _as_file(source) as (file, name), _opened(file, name) as picture:
        if picture.format == "TIFF":
            picture.load()  # only then has Pillow turned it upright
        width, height = picture.size
        if apply_orientation and picture.getexif().get(ExifTags.Base.Orientation) in _ON_SIDE:
            width, height = height, width
    return height, width


@contextmanager
def _as_file(source: str | os.PathLike[str] | IO[bytes]) -> Iterator[tuple[IO[bytes], str]]:
    """The opened file and what it is called; a path is opened, and closed in the end."""
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        try:
            with open(path, "rb") as file:
                yield file, path
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no picture at {path}") from None
    elif hasattr(source, "read"):
        yield source, str(getattr(source, "name", "the given file"))
    else:
        raise TypeError(
            f"source must be a path or a file opened for reading bytes, not {type(source).__name__}"
        )


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
