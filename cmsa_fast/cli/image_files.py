"""Images that arguments of a command name: files, folders and patterns."""

from __future__ import annotations

import glob
import itertools
from collections.abc import Sequence
from pathlib import Path

# Of the formats that `cmsa_fast.data.images.read_image` reads.
_SUFFIXES = (
    *(".bmp", ".dib", ".gif", ".j2k", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)


def split_arguments(image: str, others: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The images and the expressions among the arguments of `predict`.

    The first argument names images. Others do if they are files or end like image files, so that the shell may
    expand a pattern. The rest are expressions.

    Raises:
        FileNotFoundError: The first argument names no image.
        ValueError: There is no expression.
    """
    images, expressions = find_images(image), []
    for argument in others:
        path = Path(argument)
        if _has_suffix(path) or _is_file(path):
            images.append(path)
        else:
            expressions.append(argument)
    if not expressions:
        raise ValueError("Name at least one expression after the image, in quotes.")
    return list(dict.fromkeys(images)), expressions


def find_images(argument: str) -> list[Path]:
    """The images of a file, of a folder (by their names, without subfolders) or of a pattern, sorted.

    Raises:
        FileNotFoundError: There is none.
    """
    path = Path(argument)
    if _is_file(path):
        return [path]
    if path.is_dir():
        found = sorted(one for one in path.iterdir() if _has_suffix(one) and one.is_file())
        if not found:
            raise FileNotFoundError(f"The folder {path} has no image (no {', '.join(_SUFFIXES)}).")
        return found
    matches = (Path(name) for name in glob.glob(argument, recursive=True))
    found = sorted(one for one in matches if _has_suffix(one) and one.is_file())
    if not found:
        raise FileNotFoundError(f"There is no image {argument}: no file, folder or pattern of image files.")
    return found


def unique_names(paths: Sequence[Path]) -> list[str]:
    """A name without suffix for the results of each file; a name that is taken gets a number."""
    names: list[str] = []
    for path in paths:
        candidates = itertools.chain([path.stem], (f"{path.stem}-{count}" for count in itertools.count(2)))
        names.append(next(name for name in candidates if name not in names))
    return names


def _has_suffix(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a long expression is no path, nor is one with a null character
        return False
