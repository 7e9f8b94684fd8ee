"""One collection, from mirrors to the folder where it belongs."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...system.files import locked, staged
from ..errors import readable_size
from .archives import check_content, unpack, unpacked_size
from .catalogue import Collection
from .fetch import Patience, check_file, fetch
from .transfer import part_of
from .web import public_address

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A collection and its folders.

    Attributes:
        collection: What to fetch.
        root: The folder of all data sets.
        folder: Where what is fetched lies until it is unpacked.
    """

    collection: Collection
    root: Path
    folder: Path

    @property
    def destination(self) -> Path:
        """Where the collection belongs."""
        return self.root / self.collection.places[0]

    def by_hand(self) -> str:
        """Where else to get it, and what to put where."""
        names = " and ".join(file.name for file in self.collection.files)
        content = " and ".join(self.collection.required) or "its images"
        return (
            f"By hand: {self.collection.by_hand}. Put {names} into {self.folder} and run this again, "
            f"or put {content} into {self.destination}."
        )


@dataclass(frozen=True)
class Collected:
    """What was done.

    Attributes:
        destination: The folder that holds the collection now.
        sources: Of each file that was unpacked, the address it came from, None where it lay there,
            and its bytes. Empty where the collection was there already.
        kept: What lies in the downloads folder still.
    """

    destination: Path
    sources: Mapping[str, tuple[str | None, int]]
    kept: tuple[Path, ...] = ()


def collect(job: Job, patience: Patience, keep_archive: bool) -> Collected:
    """Fetches, tests and unpacks a collection; does nothing where it is there already.

    Args:
        job: What and where to.
        patience: How often and how long to try.
        keep_archive: Keep what was fetched; what lay there before is kept in any case.

    Raises:
        ValueError: The destination holds something incomplete, or a file in the downloads folder is
            not the one wanted.
        ConnectionError: No mirror has a file.
        OSError: The disk has not enough space or cannot be written, or another process fetches the
            same collection.
    """
    there, incomplete = find_present(job.root, job.collection)
    if there is not None:
        return Collected(there, {})
    if incomplete is not None:
        raise ValueError(incomplete)
    job.folder.mkdir(parents=True, exist_ok=True)
    with locked(job.folder) as is_alone:
        if not is_alone:
            _logger.info("%s cannot be locked; start no second download of it", job.folder)
        there, _ = find_present(job.root, job.collection)
        if there is not None:  # by the process that had the lock before
            return Collected(there, {})
        try:
            sources = _fetch_files(job, patience)
            _put_in_place(job)
            kept = []
            for name, (source, _) in sources.items():
                if source is not None and not keep_archive:
                    (job.folder / name).unlink()
                else:
                    kept.append(job.folder / name)
        finally:
            for folder in (job.folder, job.folder.parent):
                with suppress(OSError):  # not empty
                    folder.rmdir()
    return Collected(job.destination, sources, tuple(kept))


def find_present(root: Path, collection: Collection) -> tuple[Path | None, str | None]:
    """Looks for a collection in all its places.

    Returns:
        The folder that has all of it; and where there is none, what is wrong with a folder that has
        something else in it.
    """
    incomplete = None
    for place in collection.places:
        folder = root / place
        if not folder.is_dir():
            if os.path.lexists(folder):
                incomplete = (
                    incomplete or f"{folder} is no folder: move it away and run this again."
                )
            continue
        names = names_in(folder)
        lack = collection.lack(names)
        if lack is None:
            return folder, None
        if names:
            incomplete = incomplete or (
                f"{folder} is not empty, but {lack}. It was left alone: complete it by hand, or move it "
                "away and run this again."
            )
    return None, incomplete


def names_in(folder: Path) -> set[str]:
    """The files of a folder and the folders in it, relative to it."""
    names: set[str] = set()
    for parent, _, files in os.walk(folder):
        prefix = Path(parent).relative_to(folder)
        names.update((prefix / file).as_posix() for file in files)
    return names


def _fetch_files(job: Job, patience: Patience) -> dict[str, tuple[str | None, int]]:
    """Sees to it that every file lies tested in the downloads folder; its source and size."""
    _require_space(job)
    found: dict[str, tuple[str | None, int]] = {}
    for file in job.collection.files:
        check = partial(check_content, collection=job.collection)
        path, source = job.folder / file.name, None
        if path.is_file():
            try:
                check_file(path, file, check)
            except ValueError as error:
                raise ValueError(
                    f"{path} was there, but {error}. Remove it to have it fetched, or give --repacked "
                    "where only its checksum is another."
                ) from error
        else:
            _logger.info(
                "fetching %s (%s) into %s", file.name, readable_size(file.size), job.folder
            )
            try:
                source = public_address(fetch(file, job.folder, check, patience))
            except ConnectionError as error:
                raise ConnectionError(f"{error}. {job.by_hand()}") from error
            except KeyboardInterrupt:
                _logger.info("what came so far is kept; run this again to go on")
                raise
        found[file.name] = (source, path.stat().st_size)
    return found


def _require_space(job: Job) -> None:
    """Before anything is fetched: room for the files, and for at least as much unpacked."""
    sizes = {file.name: file.size or 0 for file in job.collection.files}
    arrived = sum(
        path.stat().st_size
        for name in sizes
        for path in (job.folder / name, part_of(job.folder / name))
        if path.is_file()
    )
    job.destination.parent.mkdir(parents=True, exist_ok=True)
    total = sum(sizes.values())
    needed = {job.folder: max(0, total - arrived), job.destination.parent: total}
    if os.stat(job.folder).st_dev == os.stat(job.destination.parent).st_dev:
        needed = {job.folder: sum(needed.values())}
    for folder, size in needed.items():
        _require(folder, size)


def _require(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(
            f"{folder} needs {readable_size(size)} of free space, but has {readable_size(free)}."
        )


def _put_in_place(job: Job) -> None:
    paths = [job.folder / file.name for file in job.collection.files]
    if paths[0].suffix == ".zip":
        _require(job.destination.parent, unpacked_size(paths[0], job.collection))
        unpack(paths[0], job.destination, job.collection)
        return
    _require(job.destination.parent, sum(path.stat().st_size for path in paths))
    with staged(job.destination) as folder:
        for path in paths:
            shutil.copyfile(path, folder / path.name)
