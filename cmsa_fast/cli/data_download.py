"""`cmsa-fast data download`: fetches records and images into the layout of REFER.

Nothing of the library is imported before the command runs, so that the options load at once.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import quote, urlsplit

import tyro

from .data_options import without_default

if TYPE_CHECKING:
    from ..data.download.catalogue import Collection, RemoteFile
    from ..data.download.collecting import Collected

CollectionName = Literal[
    "refcoco", "refcoco+", "refcocog", "refclef", "grefcoco", "coco-train2014", "saiapr"
]
Action = Literal["present", "planned", "unpacked"]


@dataclass(frozen=True, kw_only=True)
class DownloadOptions:
    """What to fetch, from where and where to; `cmsa-fast data download --help` shows it."""

    name: tyro.conf.Positional[CollectionName]
    """Records, or the images that they need: coco-train2014, or for refclef saiapr."""

    root: Path = Path("data")
    """Folder that holds all data sets; what --root of the other commands names."""

    mirror: Annotated[
        str | None, without_default("URL", "default: the published addresses alone")
    ] = None
    """Your own mirror, tried first: the folder of the files, or the one file itself."""

    dry_run: bool = False
    """List addresses, sizes and destination, and fetch nothing."""

    keep_archive: bool = False
    """Keep what was fetched after it is unpacked, in ROOT/downloads."""

    repacked: bool = False
    """Take a file whose checksum is not the published one, such as a copy zipped anew."""

    attempts: int = 5
    """How often to try at one mirror without getting further."""

    timeout: float = 60.0
    """Seconds without a byte after which an attempt is given up."""

    wait: float = 1.0
    """Seconds before a second attempt; twice as many before each further one, up to a minute."""


@dataclass(frozen=True, kw_only=True)
class DownloadedFile:
    """One file of a collection.

    Attributes:
        name: Its name.
        size: In bytes; None where it is not known yet.
        addresses: Where it lies, in the order they are tried.
        source: The address it was fetched from; None where it was not fetched.
    """

    name: str
    size: int | None
    addresses: tuple[str, ...]
    source: str | None = None


@dataclass(frozen=True, kw_only=True)
class DownloadResult:
    """What the command came to.

    Attributes:
        title: What was asked for.
        action: "present": it was there and was left alone. "planned": a dry run. "unpacked": it is
            there now.
        destination: The folder of the records or images.
        files: What it takes.
        images: How many the destination holds; None for records and for a dry run.
        remains: What is still to be fetched or done, an expression each.
    """

    title: str
    action: Action
    destination: Path
    files: tuple[DownloadedFile, ...]
    images: int | None
    remains: tuple[str, ...]


def run_download(
    options: DownloadOptions, catalogue: Mapping[str, Collection] | None = None
) -> DownloadResult:
    """Fetches, tests and unpacks one collection; does nothing where it is there already.

    What is fetched lies in `<root>/downloads/<name>` until it is unpacked. A file that was put there
    by hand is used in place of a download, and kept.

    Args:
        options: What to fetch.
        catalogue: Collections by name; the published ones where None.

    Returns:
        What was done, or for a dry run what would be.

    Raises:
        ValueError: An option is out of range, the destination holds something incomplete, or a file
            put there by hand is not the one wanted.
        ConnectionError: No mirror has a file; the message says what to put where.
        OSError: The disk has not enough space or cannot be written, or another process fetches the
            same collection.
    """
    from ..data.download.catalogue import CATALOGUE
    from ..data.download.collecting import Collected, Job, collect, find_present
    from ..data.download.fetch import Patience

    catalogue = CATALOGUE if catalogue is None else catalogue
    patience = Patience(attempts=options.attempts, timeout=options.timeout, wait=options.wait)
    collection = catalogue[options.name]
    collection = replace(collection, files=_wanted_files(collection, options))
    root = options.root.expanduser()
    if root.exists() and not root.is_dir():
        raise ValueError(f"root must be a folder; {root} is a file.")
    job = Job(collection, root, root / "downloads" / options.name)
    remains: list[str] = []
    if options.dry_run:
        there, incomplete = find_present(root, collection)
        done = Collected(there or job.destination, {})
        if there is None:
            remains = [incomplete] if incomplete is not None else []
            remains.append(job.by_hand())
        action: Action = "planned" if there is None else "present"
    else:
        done = collect(job, patience, options.keep_archive)
        remains = [f"{path} was kept; it is not needed any more." for path in done.kept]
        action = "unpacked" if done.sources else "present"
    remains += _images_missing(root, collection, catalogue.get(collection.needs or ""))
    return _result(action, collection, done, remains)


def format_download(result: DownloadResult) -> str:
    """What was done or would be, for people."""
    from ..data.errors import readable_size

    holds = "" if result.images is None else f", {result.images} images"
    lines = [f"{result.title}:"]
    if result.action == "present":
        lines.append(f"  {result.destination} is there already{holds}; left alone.")
    elif result.action == "planned":
        for file in result.files:
            lines.append(
                f"  {file.name} ({readable_size(file.size)}) from the first that has it of"
            )
            lines += [f"    {address}" for address in file.addresses]
        lines.append(f"  would go into {result.destination}; nothing was fetched.")
    else:
        for file in result.files:
            source = file.source or "found in the downloads folder"
            lines.append(f"  {file.name} ({readable_size(file.size)}): {source}")
        lines.append(f"  is in {result.destination}{holds}.")
    return "\n".join([*lines, *(f"  {expression}" for expression in result.remains)])


def _wanted_files(collection: Collection, options: DownloadOptions) -> tuple[RemoteFile, ...]:
    """The collection's files, with one's own mirror before the published ones."""
    from ..data.download.web import check_address

    files = collection.files
    if options.repacked:
        files = tuple(replace(file, size=None, sha256=None) for file in files)
    if options.mirror is None:
        return files
    check_address(options.mirror)
    parts = urlsplit(options.mirror)
    own = [options.mirror]
    if PurePosixPath(parts.path).suffix.lower() not in (".zip", ".json"):
        names = [quote(file.name, safe="+()") for file in files]
        own = [parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl() for name in names]
    elif len(files) > 1:
        names = [file.name for file in files]
        raise ValueError(f"mirror must be the folder of {' and '.join(names)}, not one file.")
    return tuple(
        replace(file, addresses=(address, *file.addresses))
        for file, address in zip(files, own, strict=True)
    )


def _result(
    action: Action, collection: Collection, done: Collected, remains: list[str]
) -> DownloadResult:
    from ..data.download.collecting import names_in
    from ..data.download.web import public_address

    files = []
    for file in collection.files:
        addresses = tuple(map(public_address, file.addresses))
        source, size = done.sources.get(file.name, (None, file.size))
        files.append(DownloadedFile(name=file.name, size=size, addresses=addresses, source=source))
    images = None
    if collection.images and action != "planned":
        images = collection.count_images(names_in(done.destination))
    return DownloadResult(
        title=collection.title,
        action=action,
        destination=done.destination,
        files=tuple(files),
        images=images,
        remains=tuple(remains),
    )


def _images_missing(root: Path, records: Collection, images: Collection | None) -> list[str]:
    """What to run for the images of records, where they are not there."""
    from ..data.download.collecting import find_present
    from ..data.errors import readable_size

    if images is None or find_present(root, images)[0] is not None:
        return []
    sizes = [file.size for file in images.files]
    size = readable_size(None if None in sizes else sum(size or 0 for size in sizes))
    command = f"cmsa-fast data download {records.needs} --root {shlex.quote(str(root))}"
    return [f"The images are still to be fetched: {command} ({size})."]
