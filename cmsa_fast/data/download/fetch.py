"""Downloads a collection, verifies its files and unpacks them into the folder where the readers expect it."""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
import shutil
import socket
import ssl
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError, URLError

from torch.hub import download_url_to_file
from tqdm import tqdm

from ...system.files import locked, staged
from ..errors import readable_size
from .catalogue import Collection, RemoteFile

_logger = logging.getLogger(__name__)
_TIMEOUT = 60.0  # seconds without data after which a download fails


def download(name: str, collection: Collection, root: Path, *, keep_archive: bool) -> dict[str, str]:
    """Downloads, verifies and unpacks a collection into the first of its folders under the root.

    Files are stored in `<root>/downloads/<name>` until they are unpacked. A file that the user put there is
    used instead of a download, and kept. The target folder is created by a rename, so it is never incomplete.

    Returns:
        URL, or path of the file that was already there, for each file.

    Raises:
        ValueError: A file is not the expected one.
        ConnectionError: A file cannot be downloaded.
        OSError: The target folder is not empty, the disk is full or not writable, or another process downloads
            the same collection.
    """
    folder = root / "downloads" / name
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / file.name for file in collection.files]
    fetched: list[Path] = []
    sources: dict[str, str] = {}
    with locked(folder):
        try:
            for file, path in zip(collection.files, paths, strict=True):
                if path.exists():
                    sources[file.name] = str(path)
                    _verify(path, file, str(path))
                else:
                    sources[file.name] = file.url
                    _fetch(file, path)
                    fetched.append(path)
            _unpack(paths, root / collection.folders[0], collection)
            _remove([] if keep_archive else fetched)
        except (ValueError, ConnectionError) as error:
            # Without a published checksum a damaged archive is only detected when it is unpacked.
            _remove(fetched)
            kind = ConnectionError if isinstance(error, ConnectionError) else ValueError
            raise kind(f"{error}. {instructions(name, collection, root)}") from error
        finally:
            for empty in (folder, folder.parent):
                with suppress(OSError):
                    empty.rmdir()
    return sources


def find_existing(root: Path, collection: Collection) -> Path | None:
    """Returns the folder that contains the whole collection; refuses one that contains a part or other files."""
    for place in collection.folders:
        folder = root / place
        names = {
            (Path(parent) / file).relative_to(folder).as_posix()
            for parent, _, files in os.walk(folder)
            for file in files
        }
        missing = collection.missing(names)
        if missing is None:
            return folder
        if names or (folder.exists() and not folder.is_dir()):
            raise ValueError(
                f"{folder} exists, but is not {collection.title}: {missing}. It was not changed: complete "
                "it, or move it away and run this again."
            )
    return None


def instructions(name: str, collection: Collection, root: Path) -> str:
    """Explains how to get the files without this command, or with a client that can resume."""
    folder = root / "downloads" / name
    commands = "; ".join(
        f"curl -fL -C - --create-dirs -o {shlex.quote(str(folder / file.name))} {shlex.quote(file.url)}"
        for file in collection.files
    )
    content = " and ".join(collection.required) or "the images"
    return (
        f"For a download that can be resumed, run `{commands}`, then this command again. Other copies: "
        f"{collection.elsewhere}; put {' and '.join(file.name for file in collection.files)} into {folder} and "
        f"run this command again, or put {content} into {root / collection.folders[0]}"
    )


def _fetch(file: RemoteFile, path: Path) -> None:
    """Downloads and verifies a file; `path` appears only when it is complete."""
    needed, free = 2 * (file.size or 0), shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(f"{path.parent} needs {readable_size(needed)} of free space, but has {readable_size(free)}.")
    part = path.with_name(f"{path.name}.part")
    for left in path.parent.glob("*.part*"):  # of a killed process
        left.unlink()
    _logger.info("downloading %s (%s) from %s", file.name, readable_size(file.size), file.url)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        download_url_to_file(file.url, str(part))
        _verify(part, file, file.url)
        part.rename(path)
    except (URLError, TimeoutError, ConnectionError, ssl.SSLError, HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()
        raise ConnectionError(f"{file.name} cannot be downloaded from {file.url}: {error}") from error
    finally:
        socket.setdefaulttimeout(timeout)
        part.unlink(missing_ok=True)


def _remove(paths: list[Path]) -> None:
    for path in paths:
        path.unlink()


def _verify(path: Path, file: RemoteFile, source: str) -> None:
    problem = None
    size = path.stat().st_size
    if file.size not in (None, size):
        problem = f"has {size} bytes, expected {file.size}"
    elif file.sha256 is not None:
        with path.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if digest != file.sha256:
            problem = f"has the SHA-256 {digest}, expected {file.sha256}"
    if problem is not None:
        raise ValueError(f"{file.name} from {source} {problem} (--repacked accepts other versions)")


def _unpack(paths: list[Path], target: Path, collection: Collection) -> None:
    """Fills the target folder from one zip archive or from several JSON files."""
    with staged(target) as folder:
        if paths[0].suffix != ".zip":
            for path in paths:
                shutil.copyfile(path, folder / path.name)
            return
        with _opened(paths[0]) as archive:
            members = _members(archive)
            missing = collection.missing({str(place) for place in members.values()})
            if missing is not None:
                raise ValueError(f"it is not {collection.title}: {missing}")
            title = f"unpack {paths[0].name}"
            for member, place in tqdm(members.items(), title, unit="file", dynamic_ncols=True):
                destination = folder / place
                destination.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, destination.open("xb") as output:
                    shutil.copyfileobj(source, output)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} cannot be unpacked: {error}") from error


def _members(archive: zipfile.ZipFile) -> dict[zipfile.ZipInfo, PurePosixPath]:
    """The files of an archive with their paths, without folders that enclose all of them."""
    places: dict[zipfile.ZipInfo, PurePosixPath] = {}
    for member in archive.infolist():
        name, place = member.filename, PurePosixPath(member.filename)
        if place.is_absolute() or ".." in place.parts or "\\" in name or ":" in name:
            raise ValueError(f"the member {name!r} would be written outside the folder")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise ValueError(f"the member {name!r} is a symbolic link")
        if not member.is_dir() and not {"__MACOSX", ".DS_Store"} & set(place.parts):
            places[member] = place
    if not places:
        raise ValueError("it contains no files")
    outer = PurePosixPath(os.path.commonpath([place.parent for place in places.values()]))
    return {member: place.relative_to(outer) for member, place in places.items()}
