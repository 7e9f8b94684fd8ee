"""Fields of records from strangers' files, checked one by one.

Every function takes `where`: the file, and the words and numbers that say which record of it. It is
spelled out only for a message.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Where = tuple[object, ...]

_LONGEST_NUMBER = 19  # decimal digits that 64 bits may take
_LONGEST_IDENTIFIER = 200  # characters


def load_json(path: Path) -> Any:
    """Reads a JSON file (UTF-8, UTF-16 or UTF-32).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no JSON, is cut short, or is nested without end.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no JSON file at {path}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error


def field(record: Any, key: str, where: Where) -> Any:
    """The value of a key; ValueError where `record` is no dictionary or lacks it."""
    if not isinstance(record, dict):
        raise ValueError(f"{place(where)} is {kind(record)} where a dictionary is expected")
    if key not in record:
        raise ValueError(f"{place(where)} has no {key!r}")
    return record[key]


def integer(record: Any, key: str, where: Where) -> int:
    """A whole number, which may be written as text; ValueError where it is none."""
    value = field(record, key, where)
    if isinstance(value, str) and value.isdecimal() and len(value) < _LONGEST_NUMBER:
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{place(where)} has {kind(value)} as its {key!r}, not an integer")
    _check_bits(value, key, where)
    return value


def string(record: Any, key: str, where: Where) -> str:
    """A text; ValueError where it is none."""
    value = field(record, key, where)
    if not isinstance(value, str):
        raise ValueError(f"{place(where)} has {kind(value)} as its {key!r}, not text")
    return value


def listing(record: Any, key: str, where: Where) -> list[Any]:
    """A list; ValueError where it is none."""
    value = field(record, key, where)
    if not isinstance(value, list):
        raise ValueError(f"{place(where)} has {kind(value)} as its {key!r}, not a list")
    return value


def identifier(value: Any, key: str, where: Where) -> str:
    """A number or a text, as text; ValueError where it is neither."""
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise ValueError(f"{place(where)} has {kind(value)} as its {key!r}, not a number or text")
    if isinstance(value, int):
        _check_bits(value, key, where)
    elif len(value) > _LONGEST_IDENTIFIER:
        raise ValueError(f"{place(where)} has {len(value)} characters as its {key!r}")
    return str(value)


def _check_bits(value: int, key: str, where: Where) -> None:
    # Python refuses to write very long numbers out, even in a message.
    if value.bit_length() > 63:
        raise ValueError(f"{place(where)} has a number of more than 64 bits as its {key!r}")


def kind(value: Any) -> str:
    """What a value is, for a message."""
    return f"a value of type {type(value).__name__}"


def place(where: Where) -> str:
    """`path: reference 3 expression 1`."""
    path, *rest = where
    return f"{path}: {' '.join(map(str, rest))}" if rest else str(path)
