"""Collecting records that cannot be used, and formatting sizes for messages."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType

_logger = logging.getLogger(__name__)

_SHOWN = 20
_LONGEST = 80  # characters of a text that `shorten` keeps


class RepeatedReferenceError(ValueError):
    """A reference that the files contain twice; without the second, no expression is lost."""


class ErrorCollector:
    """Collects unusable records and images; raises on the first in strict mode.

    As a context manager it handles one record: errors inside the block are raised if `strict`,
    otherwise they are added to `messages` and the block ends.

        for record in content:
            with errors:
                usable.append(read(record))

    Attributes:
        strict: Whether the first error is raised.
        messages: One line for each error so far, naming file and record.
        repeated: How many of them are repeated references.
    """

    def __init__(self, *, strict: bool) -> None:
        self.strict = strict
        self.messages: list[str] = []
        self.repeated = 0

    @property
    def count(self) -> int:
        """Number of errors so far."""
        return len(self.messages)

    def add(self, error: Exception) -> None:
        """Collects an error with its notes, or raises it if `strict`."""
        if self.strict:
            raise error
        self.messages.append(one_line(error))
        self.repeated += isinstance(error, RepeatedReferenceError)
        if self.count <= _SHOWN:
            _logger.warning("%s", self.messages[-1])
        if self.count == _SHOWN:
            _logger.warning("Further errors are collected without being logged.")

    def __enter__(self) -> ErrorCollector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if self.strict or not isinstance(error, ValueError | TypeError | OSError):
            return False
        self.add(error)
        return True


@contextmanager
def located(where: str) -> Iterator[None]:
    """Puts the place of a record before the message of a ValueError or FileNotFoundError about it."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def one_line(error: Exception) -> str:
    """The message of an error with its notes, on one line."""
    parts = [str(error) or type(error).__name__, *getattr(error, "__notes__", [])]
    return " ".join(" ".join(parts).split())


def shorten(text: str) -> str:
    """A text on one line of at most 80 characters; a longer one ends in an ellipsis."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."


def readable_size(size: int | None) -> str:
    """A number of bytes as `54.0 MB`, in powers of 1000."""
    if size is None:
        return "size not published"
    value = float(size)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"


def by(sides: Iterable[int] | None) -> str:
    """Height and width as `480 x 640`; empty for None."""
    return " x ".join(str(side) for side in sides or ())
