"""The folder that an evaluation writes to: never one with something in it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..system.processes import Processes


@contextmanager
def evaluation_folder(
    out: Path | None, parent: Path, stem: str, processes: Processes
) -> Iterator[Path]:
    """A folder for results, the same for all processes.

    It is made before the work begins, so that a place where nothing can be made costs no evaluation, and two
    evaluations at a time never choose the same. It is removed at the end of the block where nothing was put in.

    Args:
        out: the folder that the user named. None: a fresh one in `parent`.
        parent: an existing folder.
        stem: of the fresh folder's name.
        processes: who shares the work; the first one makes the folder.

    Raises:
        NotADirectoryError: `out` is a file.
        FileExistsError: `out` holds something.
        OSError: the folder cannot be made.
    """
    if out is not None and out.exists() and not out.is_dir():
        raise NotADirectoryError(f"--out must be a folder; {out} is a file.")
    if out is not None and out.is_dir() and any(out.iterdir()):
        raise FileExistsError(
            f"--out {out} is not empty, and an evaluation never overwrites another; choose a new folder."
        )
    made = None
    if processes.is_first:
        if out is None:
            made = _fresh(parent, stem)
        elif not out.is_dir():
            out.mkdir(parents=True)
            made = out
    try:
        yield processes.gather(made or out)[0]
    finally:
        if made is not None:
            with suppress(OSError):  # it is not empty
                made.rmdir()


def _fresh(parent: Path, stem: str) -> Path:
    for count in itertools.count(1):
        folder = parent / (stem if count == 1 else f"{stem}-{count}")
        with suppress(FileExistsError):
            folder.mkdir()
            break
    return folder
