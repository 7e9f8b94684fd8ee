"""Folders that appear as a whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


@contextmanager
def staged(destination: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `destination` where the block ends well.

    It lies beside the destination under a name of its own, so that two processes that fill one
    destination cannot disturb each other: the first to end well has it, the other is refused. What
    a killed process left beside the destination is cleared away, where the system knows locks.

    Args:
        destination: A folder that is empty or not there.

    Yields:
        The folder to fill.

    Raises:
        FileExistsError: The destination is not empty, or something else than a folder, when the
            block ends.
        OSError: The destination is a mount point, which nothing can be renamed to.
    """
    destination = destination.resolve()
    if os.path.ismount(destination):
        raise OSError(
            f"{destination} is a mount point, which no finished folder can be moved to: name a "
            "folder inside it"
        )
    destination.parent.mkdir(parents=True, exist_ok=True)
    start = f".{destination.name}.unfinished-"
    for left in destination.parent.glob(f"{_literal(start)}*"):
        _remove_abandoned(left)
    folder, lock = _locked_folder(destination.parent, start)
    try:
        yield folder
        _put_in_place(folder, destination)
    finally:
        if folder.is_dir():
            shutil.rmtree(folder)
        if lock is not None:
            os.close(lock)


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Keeps other processes that ask for it out of a folder.

    Args:
        folder: It exists.

    Yields:
        Whether it is kept: False where the system or the file system knows no locks.

    Raises:
        BlockingIOError: Another process keeps it.
    """
    descriptor = _lock(folder)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(folder: Path) -> int | None:
    """A descriptor that keeps the folder until it is closed, or the process ends."""
    if sys.platform == "win32":
        return None
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise BlockingIOError(f"another process is at work in {folder}; wait for it") from error
    except OSError:  # some network file systems know no locks
        os.close(descriptor)
        return None
    return descriptor


def _locked_folder(parent: Path, start: str) -> tuple[Path, int | None]:
    while True:
        folder = parent / f"{start}{uuid4().hex}"
        folder.mkdir()
        with suppress(FileNotFoundError, BlockingIOError):  # another process clears up just now
            lock = _lock(folder)
            if folder.is_dir():
                return folder, lock
            if lock is not None:
                os.close(lock)


def _remove_abandoned(folder: Path) -> None:
    with suppress(FileNotFoundError, NotADirectoryError, BlockingIOError), locked(folder) as kept:
        if kept:
            shutil.rmtree(folder)


def _put_in_place(folder: Path, destination: Path) -> None:
    try:
        if destination.is_dir():
            destination.rmdir()
        folder.rename(destination)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        raise FileExistsError(
            f"{destination} appeared or was filled meanwhile, perhaps by another run; it was left "
            "alone, and what was made to go there is dropped"
        ) from error


def _literal(name: str) -> str:
    """A name for `glob` that stands for itself."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
