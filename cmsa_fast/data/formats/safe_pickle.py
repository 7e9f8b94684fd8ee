"""Reads pickle files that hold plain containers, without running code that they name.

The records of REFER are pickles, passed on by hand since their server went away. A pickle can name any
function and call it while it is read; these files need only lists, dictionaries, strings and numbers.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import pickletools
import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

_logger = logging.getLogger(__name__)

_NUMBER_TYPE = re.compile("b1|[iu][1248]|f[248]")


def load_plain_pickle(path: str | os.PathLike[str]) -> Any:
    """Reads a pickle file as `loads_plain_pickle` does."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no pickle file at {path}") from None
    return loads_plain_pickle(data, str(path))


def loads_plain_pickle(data: bytes, origin: str) -> Any:
    """Reads a pickle of lists, tuples, dictionaries, sets, strings, bytes and numbers.

    numpy's numbers become Python's. Byte strings written by Python 2 are decoded as UTF-8; if one of
    them is not UTF-8, all are decoded as Latin-1 and a warning is logged. Any protocol is read. ValueError,
    with `origin`, if the data are no pickle, are truncated, or name a class or a function; nothing that they
    name is imported or called.
    """
    try:
        _check_memo_numbers(data)
    except ValueError as error:
        raise ValueError(f"{origin} is a damaged pickle: {error}") from error
    try:
        return _load(data, "utf-8", origin)
    except UnicodeDecodeError:
        _logger.warning("%s holds byte strings that are not UTF-8; read as Latin-1", origin)
    return _load(data, "latin-1", origin)


def _load(data: bytes, encoding: str, origin: str) -> Any:
    # From memory rather than from the file: a false length is then compared with what is there before
    # memory is allocated for it.
    try:
        return _PlainUnpickler(data, encoding).load()
    except UnicodeDecodeError as error:
        if encoding == "utf-8":
            raise
        raise ValueError(f"{origin} holds text that cannot be decoded: {error}") from error
    except Exception as error:
        # Damaged pickles raise nearly every built-in exception (see the documentation of pickle).
        raise ValueError(
            f"{origin} cannot be read as a pickle of plain lists, dictionaries, strings and "
            f"numbers ({type(error).__name__}: {error}); it is damaged, truncated, or asks to run code"
        ) from error


class _PlainUnpickler(pickle.Unpickler):
    """Replaces the few functions that plain content needs, and refuses all others."""

    def __init__(self, data: bytes, encoding: str) -> None:
        super().__init__(io.BytesIO(data), encoding=encoding)
        self._encoding = encoding

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "_codecs", "encode":
                return _Replacement(_encode)
            case (("builtins" | "__builtin__"), "bytes"):
                return _Replacement(lambda: b"")  # protocols 0 to 2 write empty bytes so
            case "numpy", "dtype":
                return _Replacement(_number_type)
            case (("numpy.core.multiarray" | "numpy._core.multiarray"), "scalar"):
                return _Replacement(partial(_number, self._encoding))
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


class _Replacement:
    """Calls a function. It is made anew for each use: a pickle, which may set its slot, changes no other."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)


def _encode(text: str, encoding: str) -> bytes:
    """`_codecs.encode`, with which protocols 0 to 2 write bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes bytes as {encoding!r}")
    return text.encode("latin-1")


class _NumberType:
    """A `numpy.dtype` of plain numbers; the state that follows it adds the byte order."""

    __slots__ = ("code",)

    def __init__(self, code: str) -> None:
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        version, order, *rest = state
        if order not in ("<", ">", "|") or any(one is not None for one in rest[:3]):
            raise pickle.UnpicklingError("it asks for a numpy type that is no plain number")
        self.code = order + self.code[-2:]


def _number_type(code: str, align: int = 0, copy: int = 0) -> _NumberType:
    """`numpy.dtype`."""
    if not _NUMBER_TYPE.fullmatch(code):
        raise pickle.UnpicklingError(f"it asks for the numpy type {code!r}")
    return _NumberType(code)


def _number(encoding: str, kind: _NumberType, value: bytes | str) -> Any:
    """`numpy.core.multiarray.scalar`; gives a Python number."""
    if isinstance(value, str):  # a byte string of Python 2
        value = value.encode(encoding)
    if not isinstance(kind, _NumberType) or len(value) != np.dtype(kind.code).itemsize:
        raise pickle.UnpicklingError("it holds a numpy number of another size than its type")
    return np.frombuffer(value, kind.code)[0].item()


# Memory bombs. A pickle numbers the objects that it refers to again, and the C reader of many Python
# versions allocates an array as long as the largest number: four damaged bytes ask for 30 GB. A pickle has
# fewer objects than bytes, so higher numbers are refused. Running through the operations in Python would
# take ten times as long as reading them, so one regular expression matches long runs of harmless ones.
_SIZES = {one.code.encode("latin-1"): one.arg.n if one.arg else 0 for one in pickletools.opcodes}
_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_PUT, _LONG_BINPUT = b"p", b"r"
_TWO_LINES = (b"c", b"i")  # GLOBAL and INST: module and name
_SHORT = 48  # bytes of an argument that the expression matches


def _check_memo_numbers(data: bytes) -> None:
    """Raises ValueError if an object has a higher number than the pickle has bytes."""
    size, start = len(data), 0
    harmless = _harmless((size.bit_length() + 7) // 8 - 1, len(str(size)) - 1)
    while start < size:
        if match := harmless.match(data, start):
            start = match.end()
            continue
        code, argument = data[start : start + 1], start + 1
        number = 0
        if length_bytes := _LENGTH_BYTES.get(_SIZES.get(code, 0)):  # a long string
            start = argument + length_bytes
            start += int.from_bytes(data[argument:start], "little")
        elif code == _LONG_BINPUT:
            start = argument + 4
            number = int.from_bytes(data[argument:start], "little")
        elif code == _PUT:
            start = data.find(b"\n", argument) + 1
            digits = data[argument : start - 1].strip()
            if not start or len(digits) > len(str(size)) or not digits.isdigit():
                raise ValueError(f"it numbers an object {digits[:20]!r}")
            number = int(digits)
        else:
            return  # damage, at which reading ends
        if number > size:
            raise ValueError(f"it numbers an object {number} and has {size} bytes")


@cache
def _harmless(low_bytes: int, digits: int) -> re.Pattern[bytes]:
    """Matches operations without a number of more than `low_bytes` bytes or `digits` digits."""
    by_size: dict[int, bytes] = {}
    for code, size in _SIZES.items():
        if code not in (_PUT, _LONG_BINPUT, *_TWO_LINES):
            by_size[size] = by_size.get(size, b"") + re.escape(code)
    parts = [
        _LONG_BINPUT + b"." * min(low_bytes, 4) + b"\0" * (4 - min(low_bytes, 4)),
        b"[" + b"".join(_TWO_LINES) + rb"][^\n]*\n[^\n]*\n",
    ]
    if digits:
        parts.append(_PUT + b"[0-9]{1,%d}\n" % digits)
    for size, codes in sorted(by_size.items()):
        one = b"[" + codes + b"]"
        if size in _LENGTH_BYTES:
            zeros = b"\0" * (_LENGTH_BYTES[size] - 1)
            lengths = (re.escape(bytes([n])) + zeros + b".{%d}" % n for n in range(_SHORT))
            parts.append(one + b"(?:" + b"|".join(lengths) + b")")
        elif size == pickletools.UP_TO_NEWLINE:
            parts.append(one + rb"[^\n]*\n")
        else:
            parts.append(one + b"." * size)
    return re.compile(b"(?:" + b"|".join(parts) + b")++", re.DOTALL)
