"""Records and images that cannot be used: raised at once, or counted and told in the end."""

from __future__ import annotations

import logging
from types import TracebackType

_logger = logging.getLogger(__name__)

_SHOWN = 20


class ErrorCollector:
    """Where readers leave what they cannot use.

    As a context manager it takes care of one record: with `strict` what goes wrong inside is raised,
    otherwise it becomes one line in `messages`, the block ends, and the caller goes on with the next.

        for record in content:
            with problems:
                usable.append(read(record))

    Attributes:
        strict: Whether the first problem is raised.
        messages: One line for each problem so far, naming file and record.
    """

    def __init__(self, *, strict: bool) -> None:
        """Start without a problem."""
        self.strict = strict
        self.messages: list[str] = []

    @property
    def count(self) -> int:
        """Number of problems so far."""
        return len(self.messages)

    def add(self, error: Exception) -> None:
        """Keep a problem.

        Args:
            error: What went wrong; its notes are kept too.

        Raises:
            Exception: `error` itself, where `strict`.
        """
        if self.strict:
            raise error
        self.messages.append(one_line(error))
        if self.count <= _SHOWN:
            _logger.warning("%s", self.messages[-1])
        if self.count == _SHOWN:
            _logger.warning("Further problems are only counted; all are told in the end.")

    def __enter__(self) -> ErrorCollector:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if self.strict or not isinstance(error, ValueError | TypeError | OSError):
            return False
        self.add(error)
        return True


def one_line(error: Exception) -> str:
    """What an error says, with the notes that say where it happened."""
    parts = [str(error) or type(error).__name__, *getattr(error, "__notes__", [])]
    return " ".join(" ".join(parts).split())
