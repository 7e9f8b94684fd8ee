"""Fetching one file over HTTP from the first of several mirrors that has it.

What arrives is kept in `<file>.part`, and goes on from there after a break: in the next attempt, at
the next mirror where a published checksum will tell, and in the next run. `<file>` itself appears
only when it has been tested. `cmsa_fast.data.mirrors` has the addresses.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from tqdm import tqdm

from .mirrors import RemoteFile
from .web import (
    BrokenError,
    RefusedError,
    check_address,
    content_range,
    network_error,
    open_address,
    public_address,
    whole_number,
)

_LOG = logging.getLogger(__name__)
_CHUNK = 1 << 18
_STARTS = {".zip": (b"PK",), ".json": (b"[", b"{")}
_WORTH_ANOTHER_ATTEMPT = (408, 425, 429, 500, 502, 503, 504)
_PROGRESS = 1 << 20  # bytes that make an attempt count as none that failed


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to try.

    Attributes:
        attempts: At one mirror, one after another, that bring next to nothing.
        timeout: Seconds without a byte after which an attempt is given up.
        wait: Seconds before the second attempt; twice as many before each further one.
        longest_wait: Seconds; no wait is longer, whatever the server asks for.
    """

    attempts: int = 5
    timeout: float = 60.0
    wait: float = 1.0
    longest_wait: float = 60.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1; got {self.attempts}.")
        if not self.timeout > 0:
            raise ValueError(f"timeout must be above 0 seconds; got {self.timeout}.")
        for name in ("wait", "longest_wait"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative; got {getattr(self, name)}.")


def fetch(
    file: RemoteFile,
    folder: Path,
    check: Callable[[Path], None],
    patience: Patience | None = None,
) -> str:
    """Fetches a file to `<folder>/<file.name>`, from the first mirror that has it whole.

    Only one process may fetch a file into a folder at a time.

    Args:
        file: What to fetch; its addresses are tried in turn.
        folder: Where to put it; exists.
        check: Raises ValueError where a file without a published checksum is not the one wanted.
        patience: How often and how long to try.

    Returns:
        The address it came from.

    Raises:
        ConnectionError: No mirror has it; the message says what was wrong with each.
        ValueError: An address is not HTTP.
        OSError: The disk is full, or cannot be written.
    """
    for address in file.addresses:
        check_address(address)
    transfer = _Transfer(file, folder, patience or Patience())
    reasons = []
    for address in file.addresses:
        try:
            _fetch_whole(transfer, address, check)
        except RefusedError as error:
            _LOG.info("%s: %s", public_address(address), error)
            reasons.append(f"{public_address(address)}: {error}")
        else:
            return address
    raise ConnectionError(f"no mirror has {file.name}. " + "; ".join(reasons))


def check_file(path: Path, file: RemoteFile, check: Callable[[Path], None]) -> None:
    """Compares a file with what was published of it; without a checksum, tests it by itself.

    Raises:
        ValueError: It is another file.
    """
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        raise ValueError(f"{file.name} has {size} bytes, not the published {file.size}")
    if file.sha256 is None:
        check(path)
        return
    digest = hashlib.sha256()
    title = f"check {file.name}"
    with (
        path.open("rb") as opened,
        tqdm(total=size, desc=title, unit="B", unit_scale=True, dynamic_ncols=True) as bar,
    ):
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    if digest.hexdigest() != file.sha256.lower():
        raise ValueError(
            f"{file.name} has the SHA-256 {digest.hexdigest()}, not the published {file.sha256}"
        )


def part_of(path: Path) -> Path:
    """Where a file's beginning lies until it is whole."""
    return path.with_name(f"{path.name}.part")


def readable_size(size: int | None) -> str:
    """`54.0 MB`; powers of 1000, as discs and servers count."""
    if size is None:
        return "size not published"
    value = float(size)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"


class _ChangedError(Exception):
    """What arrived before is of no use; asked for the whole file, the mirror may still give it."""


@dataclass(frozen=True)
class _Version:
    """Which bytes `<file>.part` is the beginning of."""

    address: str
    entity_tag: str | None
    last_modified: str | None
    total: int | None

    @property
    def validator(self) -> str | None:
        """For If-Range, which takes no weak entity tag."""
        strong = self.entity_tag is not None and not self.entity_tag.startswith("W/")
        return self.entity_tag if strong else self.last_modified

    def differs(self, other: _Version) -> bool:
        """Whether both say of one thing that it is different."""
        pairs = (
            (self.entity_tag, other.entity_tag),
            (self.last_modified, other.last_modified),
            (self.total, other.total),
        )
        return any(a is not None and b is not None and a != b for a, b in pairs)


@dataclass
class _Transfer:
    file: RemoteFile
    folder: Path
    patience: Patience
    all_new: bool = False  # whether the whole of `<file>.part` comes from the present mirror

    @property
    def part(self) -> Path:
        return part_of(self.folder / self.file.name)

    @property
    def note(self) -> Path:
        return self.folder / f"{self.file.name}.part.json"

    def arrived(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def version(self) -> _Version | None:
        try:
            return _Version(**json.loads(self.note.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def _fetch_whole(transfer: _Transfer, address: str, check: Callable[[Path], None]) -> None:
    """Fetches and tests; once more from the start where the beginning may be of another file."""
    while True:
        transfer.all_new = False
        _fetch_patiently(transfer, address)
        try:
            check_file(transfer.part, transfer.file, check)
        except ValueError as error:
            transfer.discard()
            if transfer.all_new:
                raise RefusedError(str(error)) from error
            _LOG.info("%s; starting anew", error)
        else:
            break
    transfer.part.replace(transfer.folder / transfer.file.name)
    transfer.note.unlink(missing_ok=True)


def _fetch_patiently(transfer: _Transfer, address: str) -> None:
    patience, furthest, failures = transfer.patience, transfer.arrived(), 0
    while True:
        try:
            return _attempt(transfer, address)
        except _ChangedError as error:
            _LOG.info("%s; starting anew", error)
            transfer.discard()
        except BrokenError as error:
            arrived = transfer.arrived()
            if arrived >= furthest + _PROGRESS:
                furthest, failures = arrived, 0
            failures += 1
            if failures >= patience.attempts:
                raise RefusedError(f"{error}; gave up at attempt {failures}") from error
            wait = max(patience.wait * 2 ** (failures - 1), error.after)
            wait = min(wait, patience.longest_wait)
            _LOG.info("%s; trying again in %.3g s", error, wait)
            time.sleep(wait)


def _attempt(transfer: _Transfer, address: str) -> None:
    """One request; goes on from `<file>.part` where that is the same file."""
    file, shown = transfer.file, public_address(address)
    offset, before = transfer.arrived(), transfer.version()
    headers = {}
    if offset and before is not None and before.address == shown and before.validator is not None:
        if offset == before.total:
            return
        headers = {"Range": f"bytes={offset}-", "If-Range": before.validator}
    elif offset and file.sha256 is not None:
        if offset == file.size:
            return
        headers, before = {"Range": f"bytes={offset}-"}, None
    else:
        offset, before = 0, None
    try:
        response = open_address(address, headers, transfer.patience.timeout)
    except HTTPError as error:
        with error:
            _judge_status(error, transfer, offset)
        return
    with response:
        if response.status == 206 and offset:
            start, total = content_range(response.headers.get("Content-Range"))
            answer = _version(response, shown, total)
            if start != offset or (before is not None and before.differs(answer)):
                raise _ChangedError("the file at the mirror is another one by now")
        elif response.status == 200:
            offset = 0
            answer = _version(response, shown, whole_number(response.headers.get("Content-Length")))
        else:
            raise RefusedError(f"answers {response.status} {response.reason}")
        _check_answer(response, answer, transfer, offset)
        _receive(response, answer, transfer, offset)


def _check_answer(response: Any, answer: _Version, transfer: _Transfer, offset: int) -> None:
    file = transfer.file
    if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
        raise RefusedError(f"sends the file encoded ({encoding}), which was not asked for")
    if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        raise RefusedError(f"sends a web page in place of {file.name}")
    if file.size is not None and answer.total not in (None, file.size):
        raise RefusedError(
            f"has a file of {answer.total} bytes, not the published {file.size} of {file.name}"
        )
    needed = (answer.total or 0) - offset
    free = shutil.disk_usage(transfer.folder).free + (transfer.arrived() if not offset else 0)
    if needed > free:
        raise RefusedError(
            f"sends {readable_size(needed)}, but {transfer.folder} has {readable_size(free)} free"
        )


def _receive(response: Any, answer: _Version, transfer: _Transfer, offset: int) -> None:
    """Writes the body behind the `offset` bytes that are there."""
    file, size = transfer.file, offset
    total = answer.total if answer.total is not None else file.size
    most = total if total is not None else offset + shutil.disk_usage(transfer.folder).free
    head = b""
    if not offset:
        starts = _STARTS[Path(file.name).suffix]
        while len(head) < 2 and (chunk := _read(response)):
            head += chunk
        if head and not head.lstrip().startswith(starts):
            raise RefusedError(f"sends something else in place of {file.name}")
        transfer.all_new = True
        transfer.part.write_bytes(b"")
        transfer.note.write_text(json.dumps(asdict(answer)), "utf-8")
    with (
        transfer.part.open("ab") as part,
        tqdm(
            total=total,
            initial=offset,
            desc=file.name,
            unit="B",
            unit_scale=True,
            dynamic_ncols=True,
        ) as bar,
    ):
        chunk = head or _read(response)
        while chunk:
            size += len(chunk)
            if size > most:
                transfer.discard()
                raise RefusedError(f"sends more than the {readable_size(most)} expected")
            part.write(chunk)
            bar.update(len(chunk))
            chunk = _read(response)
    if total is not None and size < total:
        raise BrokenError(f"broke off after {size} of {total} bytes")


def _read(response: Any) -> bytes:
    try:
        return bytes(response.read1(_CHUNK))  # what there is, so that a break loses none of it
    except (OSError, HTTPException) as error:
        raise network_error(error) from error


def _judge_status(error: HTTPError, transfer: _Transfer, offset: int) -> None:
    """Returns where the whole file is there already; else raises."""
    status = error.code
    if status == 416 and offset:
        if error.headers.get("Content-Range", "").strip() == f"bytes */{offset}":
            return
        raise _ChangedError("the file at the mirror is shorter than what arrived before")
    answer = " ".join(f"answers {status} {error.reason}".split())
    if status in _WORTH_ANOTHER_ATTEMPT:
        after = whole_number(error.headers.get("Retry-After"))
        raise BrokenError(answer, float(after or 0))
    raise RefusedError(answer)


def _version(response: Any, address: str, total: int | None) -> _Version:
    headers = response.headers
    return _Version(address, headers.get("ETag"), headers.get("Last-Modified"), total)
