"""Atomic writes of files and folders, and advisory locks on folders."""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a temporary file in the same folder and rename it to `path`.

    If writing fails, `path` keeps its previous content.

    Args:
        path: File to create or replace.
        write: Writes the content to the path that it is given.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    temporary = Path(name)
    try:
        write(temporary)
        # mkstemp creates 0600, which other users of a shared folder cannot read.
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an indented JSON file atomically; paths become strings."""
    text = json.dumps(content, indent=2, default=os.fspath) + "\n"
    write_atomically(path, lambda target: target.write_text(text, encoding="utf-8"))


@contextmanager
def staged(destination: Path) -> Iterator[Path]:
    """Create a folder that is renamed to `destination` if the block succeeds, and removed otherwise.

    The folder is created beside the destination under a unique name, so two processes can prepare the same
    destination: the first to finish gets it, the other one fails. Folders left behind by killed processes are
    removed where the file system supports locks.

    Args:
        destination: Path of a folder that is empty or does not exist.

    Yields:
        The folder to fill.

    Raises:
        FileExistsError: At the end of the block the destination is a file or a folder that is not empty.
        OSError: The destination is a mount point, to which no folder can be renamed.
    """
    destination = destination.resolve()
    if os.path.ismount(destination):
        raise OSError(
            f"{destination} is a mount point, to which no folder can be renamed: name a folder inside it"
        )
    destination.parent.mkdir(parents=True, exist_ok=True)
    start = f".{destination.name}.unfinished-"
    for left in destination.parent.glob(f"{glob.escape(start)}*"):
        with suppress(FileNotFoundError, NotADirectoryError, BlockingIOError), locked(left) as held:
            if held:
                shutil.rmtree(left)
    folder = destination.parent / f"{start}{uuid4().hex}"
    folder.mkdir()
    try:
        with locked(folder):
            yield folder
            _rename(folder, destination)
    finally:
        if folder.is_dir():
            shutil.rmtree(folder)


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold an exclusive advisory lock on a folder.

    Args:
        folder: An existing folder.

    Yields:
        True if the lock is held, False if the operating system or the file system has no locks.

    Raises:
        BlockingIOError: Another process holds the lock.
    """
    if sys.platform == "win32":
        yield False
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    held = True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise BlockingIOError(f"another process is working in {folder}; wait for it") from error
    except OSError:  # some network file systems have no locks
        held = False
    try:
        yield held
    finally:
        os.close(descriptor)


def _rename(folder: Path, destination: Path) -> None:
    try:
        if destination.is_dir():
            destination.rmdir()
        folder.rename(destination)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        raise FileExistsError(
            f"{destination} was created or filled in the meantime, perhaps by another process; it was left "
            "unchanged, and the new content was discarded"
        ) from error
