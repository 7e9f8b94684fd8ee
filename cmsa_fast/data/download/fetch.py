"""Fetching one file over HTTP from the first of several mirrors that has it.

What arrives is kept in `<file>.part`, and goes on from there after a break: in the next attempt, at
the next mirror where a published checksum will tell, and in the next run. `<file>` itself appears
only when it has been tested. `cmsa_fast.data.download.catalogue` has the addresses.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from .catalogue import RemoteFile
from .transfer import ChangedError, Transfer, attempt
from .web import BrokenError, RefusedError, check_address, public_address

_logger = logging.getLogger(__name__)
_CHUNK = 1 << 18
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
    patience = patience or Patience()
    transfer = Transfer(file, folder, patience.timeout)
    reasons = []
    for address in file.addresses:
        try:
            _fetch_whole(transfer, address, check, patience)
        except RefusedError as error:
            _logger.info("%s: %s", public_address(address), error)
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


def _fetch_whole(
    transfer: Transfer, address: str, check: Callable[[Path], None], patience: Patience
) -> None:
    """Fetches and tests; once more from the start where the beginning may be of another file."""
    while True:
        transfer.all_new = False
        _fetch_patiently(transfer, address, patience)
        try:
            check_file(transfer.part, transfer.file, check)
        except ValueError as error:
            transfer.discard()
            if transfer.all_new:
                raise RefusedError(str(error)) from error
            _logger.info("%s; starting anew", error)
        else:
            break
    transfer.part.replace(transfer.folder / transfer.file.name)
    transfer.note.unlink(missing_ok=True)


def _fetch_patiently(transfer: Transfer, address: str, patience: Patience) -> None:
    furthest, failures = transfer.arrived(), 0
    while True:
        try:
            return attempt(transfer, address)
        except ChangedError as error:
            _logger.info("%s; starting anew", error)
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
            _logger.info("%s; trying again in %.3g s", error, wait)
            time.sleep(wait)
