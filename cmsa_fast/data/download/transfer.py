"""One attempt to fetch a file over HTTP, going on from what an earlier one left."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from tqdm import tqdm

from ..errors import readable_size
from .catalogue import RemoteFile
from .web import (
    BrokenError,
    RefusedError,
    content_range,
    network_error,
    open_address,
    public_address,
    whole_number,
)

_CHUNK = 1 << 18
_STARTS = {".zip": (b"PK",), ".json": (b"[", b"{")}
_WORTH_ANOTHER_ATTEMPT = (408, 425, 429, 500, 502, 503, 504)


def part_of(path: Path) -> Path:
    """Where a file's beginning lies until it is whole."""
    return path.with_name(f"{path.name}.part")


class ChangedError(Exception):
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
class Transfer:
    """A file on its way into a folder.

    Attributes:
        file: What it is.
        folder: Where it goes; exists.
        timeout: Seconds without a byte after which an attempt is given up.
        all_new: Whether the whole of `<file>.part` comes from the present mirror.
    """

    file: RemoteFile
    folder: Path
    timeout: float
    all_new: bool = False

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


def attempt(transfer: Transfer, address: str) -> None:
    """One request; goes on from `<file>.part` where that is the same file.

    Raises:
        ChangedError: What arrived before is of no use.
        BrokenError: It is worth another attempt.
        RefusedError: It is not.
        OSError: The disk is full, or cannot be written.
    """
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
        response = open_address(address, headers, transfer.timeout)
    except HTTPError as error:
        with error:
            _judge_status(error, transfer, offset)
        return
    with response:
        if response.status == 206 and offset:
            start, total = content_range(response.headers.get("Content-Range"))
            answer = _version(response, shown, total)
            if start != offset or (before is not None and before.differs(answer)):
                raise ChangedError("the file at the mirror is another one by now")
        elif response.status == 200:
            offset = 0
            answer = _version(response, shown, whole_number(response.headers.get("Content-Length")))
        else:
            raise RefusedError(f"answers {response.status} {response.reason}")
        _check_answer(response, answer, transfer, offset)
        _receive(response, answer, transfer, offset)


def _check_answer(response: Any, answer: _Version, transfer: Transfer, offset: int) -> None:
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


def _receive(response: Any, answer: _Version, transfer: Transfer, offset: int) -> None:
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


def _judge_status(error: HTTPError, transfer: Transfer, offset: int) -> None:
    """Returns where the whole file is there already; else raises."""
    status = error.code
    if status == 416 and offset:
        if error.headers.get("Content-Range", "").strip() == f"bytes */{offset}":
            return
        raise ChangedError("the file at the mirror is shorter than what arrived before")
    answer = " ".join(f"answers {status} {error.reason}".split())
    if status in _WORTH_ANOTHER_ATTEMPT:
        after = whole_number(error.headers.get("Retry-After"))
        raise BrokenError(answer, float(after or 0))
    raise RefusedError(answer)


def _version(response: Any, address: str, total: int | None) -> _Version:
    headers = response.headers
    return _Version(address, headers.get("ETag"), headers.get("Last-Modified"), total)
