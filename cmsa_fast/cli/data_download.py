"""`cmsa-fast data download`: downloads annotations or images into the layout of REFER."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import quote, urlsplit

import tyro

from .data_options import without_default

if TYPE_CHECKING:
    from ..data.download.catalogue import Collection

CollectionName = Literal["refcoco", "refcoco+", "refcocog", "refclef", "grefcoco", "coco-train2014", "saiapr"]
_logger = logging.getLogger(__name__)
_LARGE = 10**9  # bytes from which a resumable download is recommended beforehand


@dataclass(frozen=True, kw_only=True)
class DownloadOptions:
    """What to download, from where and where to; see `cmsa-fast data download --help`."""

    name: tyro.conf.Positional[CollectionName]
    """Annotations of a data set, or their images: coco-train2014, and saiapr for refclef."""

    root: Path = Path("data")
    """Folder of all data sets, the --root of the other commands."""

    mirror: Annotated[str | None, without_default("URL", "default: the published addresses")] = None
    """Download from this folder, or this .zip or .json file, instead of the published address."""

    dry_run: bool = False
    """Print addresses, sizes and the target folder without downloading."""

    keep_archive: bool = False
    """Keep the downloaded files in ROOT/downloads after unpacking."""

    repacked: bool = False
    """Accept files whose size and checksum differ from the published ones, such as a repacked archive."""


def run_download(options: DownloadOptions, catalogue: Mapping[str, Collection] | None = None) -> str:
    """Downloads, verifies and unpacks one collection, unless it exists; reports what was or would be done."""
    from ..data.download.catalogue import CATALOGUE
    from ..data.download.fetch import download, find_existing, instructions
    from ..data.errors import readable_size

    catalogue = catalogue or CATALOGUE
    root = options.root.expanduser()
    if root.exists() and not root.is_dir():
        raise ValueError(f"root must be a folder, but {root} is a file.")
    collection = _with_options(catalogue[options.name], options)
    existing = find_existing(root, collection)
    lines = [f"{collection.title}:"]
    if existing is not None:
        lines.append(f"{existing} is complete; nothing to download.")
    elif options.dry_run:
        for file in collection.files:
            lines.append(f"{file.name} ({readable_size(file.size)}): {file.url}")
        lines.append(f"Target folder: {root / collection.folders[0]}. Nothing was downloaded.")
        lines.append(f"{instructions(options.name, collection, root)}.")
    else:
        if any((file.size or 0) >= _LARGE for file in collection.files):
            _logger.info("%s.", instructions(options.name, collection, root))
        sources = download(options.name, collection, root, keep_archive=options.keep_archive)
        lines += [f"{name}: {source}" for name, source in sources.items()]
        lines.append(f"Unpacked into {root / collection.folders[0]}.")
    images = catalogue.get(collection.needs or "")
    if images is not None and not _is_complete(root, images):
        size = readable_size(images.files[0].size)
        command = f"cmsa-fast data download {collection.needs} --root {shlex.quote(str(root))}"
        lines.append(f"The images are missing: {command} ({size}).")
    return "\n  ".join(lines)


def _is_complete(root: Path, collection: Collection) -> bool:
    from ..data.download.fetch import find_existing

    try:
        return find_existing(root, collection) is not None
    except ValueError:
        return False


def _with_options(collection: Collection, options: DownloadOptions) -> Collection:
    """The collection with the URLs and checksums that --mirror and --repacked ask for."""
    files = collection.files
    if options.repacked:
        files = tuple(replace(file, size=None, sha256=None) for file in files)
    if options.mirror is not None:
        parts = urlsplit(options.mirror)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"mirror must be an http or https URL, but it is {options.mirror!r}.")
        if PurePosixPath(parts.path).suffix.lower() in (".zip", ".json"):
            if len(files) > 1:
                names = " and ".join(file.name for file in files)
                raise ValueError(f"mirror must be the URL of the folder with {names}.")
            files = (replace(files[0], url=options.mirror),)
        else:
            folder = parts.path.rstrip("/")
            paths = [f"{folder}/{quote(file.name, safe='+()')}" for file in files]
            urls = [parts._replace(path=path).geturl() for path in paths]
            files = tuple(replace(file, url=url) for file, url in zip(files, urls, strict=True))
    return replace(collection, files=files)
