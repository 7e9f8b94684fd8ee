"""Pickle files from strangers, read without running what they ask for.

The records of REFER and of LMDB copies are pickles, shared by hand since their server went away. A
pickle can name any function and call it while it is read. These files need none: they hold lists,
dictionaries, strings and numbers.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
from pathlib import Path
from typing import Any

from .pickle_memo import check_memo_numbers

_logger = logging.getLogger(__name__)


class _PlainUnpickler(pickle.Unpickler):
    """Builds lists, tuples, dictionaries, sets, strings, bytes and numbers, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def load_plain_pickle(path: str | os.PathLike[str]) -> Any:
    """Reads a pickle that holds plain containers only, as `loads_plain_pickle` does.

    Args:
        path: The file; any pickle protocol, of Python 2 or 3.

    Returns:
        What the file holds.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no pickle, is cut short, or asks for a class or a function. Nothing
            that it asks for is imported or called.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no pickle file at {path}") from None
    return loads_plain_pickle(data, str(path))


def loads_plain_pickle(data: bytes, origin: str) -> Any:
    """Reads a pickle that holds plain containers only.

    Byte strings that Python 2 wrote are taken for UTF-8 text; where one of them is not, all of them
    are taken for Latin-1, and the log says so. The guard is against code: a pickle made to need
    more memory than there is can still exhaust it.

    Args:
        data: The pickle; any protocol, of Python 2 or 3.
        origin: Where it came from, for the messages.

    Returns:
        What the pickle holds.

    Raises:
        ValueError: The data are no pickle, are cut short, or ask for a class or a function. Nothing
            that they ask for is imported or called.
    """
    try:
        check_memo_numbers(data)
    except ValueError as error:
        raise ValueError(f"{origin} is a damaged pickle: {error}") from error
    try:
        return _load(data, "utf-8", origin)
    except UnicodeDecodeError:
        _logger.warning("%s holds byte strings that are not UTF-8; read as Latin-1", origin)
    return _load(data, "latin-1", origin)


def _load(data: bytes, encoding: str, origin: str) -> Any:
    # From memory rather than from the file: a length field that lies is then bounded by what is
    # there before anything is allocated for it.
    try:
        return _PlainUnpickler(io.BytesIO(data), encoding=encoding).load()
    except UnicodeDecodeError as error:
        if encoding == "utf-8":
            raise
        raise ValueError(f"{origin} holds text that cannot be decoded: {error}") from error
    except Exception as error:
        # Damaged pickles raise nearly every built-in exception (pickle's documentation says so).
        raise ValueError(
            f"{origin} cannot be read as a pickle of plain lists, dictionaries, strings and "
            f"numbers ({type(error).__name__}: {error}); it is damaged, cut short, or asks to run "
            "code"
        ) from error
