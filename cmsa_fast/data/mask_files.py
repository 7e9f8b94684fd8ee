"""Masks in files of their own: PNG (CRIS, VLT) and MATLAB (ReferIt).

A file is searched for and read when its mask is decoded, so that a data set of tens of thousands of masks
opens quickly.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .errors import by

MATLAB_VARIABLE = "segimg_t"

_GREY_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
_COLOUR_CHANNELS = {"LA": 1, "PA": 1, "RGB": 3, "RGBA": 3}


@dataclass(frozen=True, slots=True)
class MaskFile(ABC):
    """A mask file (`cmsa_fast.data.types.ObjectMask`), whose content is unknown until it is decoded."""

    folders: tuple[Path, ...]  # in order of search
    file_name: str
    is_empty: ClassVar[bool] = False
    size: ClassVar[None] = None
    dropped: ClassVar[int] = 0  # pixels have no parts

    def decode(self, height: int, width: int) -> Tensor:
        """Reads the mask, bool `[height, width]`; ValueError if the file is damaged or has another size."""
        path = self.locate()
        try:
            with path.open("rb") as file:
                pixels = self._read(file, path, height, width)
        except (_RefusedMask, ImportError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise  # an error of the disk; EINVAL is a damaged offset inside the file
            # Decoders raise many kinds of exception for damaged files.
            detail = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
            raise ValueError(
                f"{path} cannot be read as a mask: it is truncated, damaged, or of another format{detail}"
            ) from error
        return torch.from_numpy(np.ascontiguousarray(pixels))

    def locate(self) -> Path:
        """The first file of that name in the folders."""
        candidates = (folder / self.file_name for folder in self.folders)
        found = next((path for path in candidates if path.is_file()), None)
        if found is None:
            more = f" or {len(self.folders) - 1} more folders" if len(self.folders) > 1 else ""
            raise FileNotFoundError(f"there is no mask {self.folders[0] / self.file_name}{more}")
        return found

    @abstractmethod
    def _read(self, file: IO[bytes], path: Path, height: int, width: int) -> NDArray[np.bool_]:
        """Decodes the pixels of the object."""


@dataclass(frozen=True, slots=True)
class PngMask(MaskFile):
    """A mask as PNG; every pixel that is not black belongs to the object.

    The scripts of CRIS and VLT write 254 instead of 255 where polygons of an object overlap.
    """

    def _read(self, file: IO[bytes], path: Path, height: int, width: int) -> NDArray[np.bool_]:
        with Image.open(file, formats=["PNG"]) as image:
            # Before the pixels are decoded, so that a false size costs no memory.
            _check_size(image.size[::-1], height, width, path)
            if image.mode in _GREY_MODES:
                return np.asarray(image) != 0
            channels = _COLOUR_CHANNELS.get(image.mode)
            if channels is None:
                raise _RefusedMask(f"{path} has pixels of mode {image.mode!r}, which no mask has")
            return (np.asarray(image)[:, :, :channels] != 0).any(axis=2)


@dataclass(frozen=True, slots=True)
class MatlabMask(MaskFile):
    """A mask as MATLAB file up to version 7; `segimg_t` is 0 inside the object."""

    def _read(self, file: IO[bytes], path: Path, height: int, width: int) -> NDArray[np.bool_]:
        values = import_loadmat()(file, variable_names=[MATLAB_VARIABLE]).get(MATLAB_VARIABLE)
        if values is None:
            raise _RefusedMask(f"{path} has no variable {MATLAB_VARIABLE!r}")
        if not (isinstance(values, np.ndarray) and values.dtype.kind in "biuf"):
            raise _RefusedMask(f"{path} has no array of numbers as its {MATLAB_VARIABLE!r}")
        _check_size(values.shape, height, width, path)
        outside: NDArray[np.bool_] = values != 0
        return ~outside


def import_loadmat() -> Any:
    """`scipy.io.loadmat`; ImportError that says how to install scipy if it is missing."""
    try:
        return import_module("scipy.io").loadmat
    except ImportError as error:
        raise ImportError(
            "the masks of ReferIt are MATLAB files, which scipy reads: install it by "
            "`pip install 'cmsa_fast[referit]'`"
        ) from error


class _RefusedMask(ValueError):
    """The file is intact, but it is not a mask that fits."""


def _check_size(size: tuple[int, ...], height: int, width: int, path: Path) -> None:
    if size != (height, width):
        raise _RefusedMask(f"the mask {path} is {by(size)} (height x width) and its image {height} x {width}")
