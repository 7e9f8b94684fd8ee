"""Zip archives from strangers: tested, then unpacked as a whole folder or not at all."""

from __future__ import annotations

import json
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from ...system.files import staged
from .catalogue import Collection

_CHUNK = 1 << 20
_JUNK = ("__MACOSX", ".DS_Store")


def check_archive(path: Path, collection: Collection) -> None:
    """Reads a whole archive: its list of files, then each of them against its CRC.

    Args:
        path: The zip file.
        collection: Says what must be in it.

    Raises:
        ValueError: It is no whole zip file, a checksum in it is wrong, a file of the collection is
            missing, or it holds a link or a path that leads out of the folder.
    """
    with _opened(path) as archive:
        members = _members(archive, collection, path)
        with _bar(members, f"test {path.name}") as bar:
            for member in members:
                with archive.open(member) as source:
                    while chunk := source.read(_CHUNK):
                        bar.update(len(chunk))


def check_content(path: Path, collection: Collection) -> None:
    """Tests a file of which no checksum was published: a zip archive, or a JSON file.

    Args:
        path: The file; its name may end in .part.
        collection: What it belongs to.

    Raises:
        ValueError: As `check_archive`, or the file is no JSON.
    """
    if ".zip" in path.suffixes:
        check_archive(path, collection)
        return
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is no whole JSON file: {error}") from error


def unpacked_size(path: Path, collection: Collection) -> int:
    """Bytes that an archive unpacks to, as its list of files says.

    Raises:
        ValueError: As `check_archive`, but that no file is read.
    """
    with _opened(path) as archive:
        return sum(member.file_size for member in _members(archive, collection, path))


def unpack(path: Path, destination: Path, collection: Collection) -> None:
    """Unpacks an archive beside its destination, then puts it in place by a rename.

    Folders that enclose everything in the archive are left out: `refcoco/refs(unc).p` becomes
    `<destination>/refs(unc).p`.

    Args:
        path: The zip file.
        destination: A folder that is empty or not there.
        collection: Says what must be in the archive.

    Raises:
        ValueError: As `check_archive`.
        OSError: The destination has something in it, or the disk is full.
    """
    with _opened(path) as archive, staged(destination) as folder:
        members = _members(archive, collection, path)
        with _bar(members, f"unpack {path.name}") as bar:
            for member, relative in members.items():
                target = folder / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, target.open("xb") as file:
                    while chunk := source.read(_CHUNK):
                        file.write(chunk)
                        bar.update(len(chunk))


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"{path.name} is no whole zip archive: {error}") from error


def _bar(members: dict[zipfile.ZipInfo, PurePosixPath], title: str) -> tqdm:
    total = sum(member.file_size for member in members)
    return tqdm(total=total, desc=title, unit="B", unit_scale=True, dynamic_ncols=True)


def _members(
    archive: zipfile.ZipFile, collection: Collection, path: Path
) -> dict[zipfile.ZipInfo, PurePosixPath]:
    """The files of an archive, and where they belong under the destination."""
    found: dict[zipfile.ZipInfo, PurePosixPath] = {}
    for member in archive.infolist():
        relative = _safe_path(member, path)
        if not member.is_dir() and not any(part in _JUNK for part in relative.parts):
            found[member] = relative
    outer = _enclosing(list(found.values()))
    found = {member: PurePosixPath(*place.parts[outer:]) for member, place in found.items()}
    if len(set(found.values())) < len(found):
        raise ValueError(f"{path.name} holds two files of one name")
    lack = collection.lack({str(place) for place in found.values()})
    if lack is not None:
        raise ValueError(f"{path.name} is not the archive of {collection.title}: {lack}")
    return found


def _safe_path(member: zipfile.ZipInfo, path: Path) -> PurePosixPath:
    name = member.filename
    relative = PurePosixPath(name)
    outside = relative.is_absolute() or ".." in relative.parts or not relative.parts
    if outside or "\\" in name or ":" in name:
        raise ValueError(f"{path.name} holds {name!r}, a path that leads out of the folder")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ValueError(f"{path.name} holds {name!r}, which is a link or a device, not a file")
    if member.flag_bits & 1:
        raise ValueError(f"{path.name} holds {name!r}, which is encrypted")
    return relative


def _enclosing(places: list[PurePosixPath]) -> int:
    """How many leading folders all files share."""
    depth = 0
    while places and all(len(place.parts) > depth + 1 for place in places):
        if len({place.parts[depth] for place in places}) > 1:
            break
        depth += 1
    return depth
