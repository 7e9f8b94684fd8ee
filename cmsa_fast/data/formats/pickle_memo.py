"""A look through a pickle for the numbers that would make its reader take all memory.

A pickle numbers the objects it will come back to. Python's reader keeps them in an array as long as
the largest number, and believes every number: four damaged bytes ask for tens of gigabytes. (Newer
Pythons do not.)
"""

from __future__ import annotations

import pickletools
import re
from functools import cache

_SIZES = {one.code.encode("latin-1"): one.arg.n if one.arg else 0 for one in pickletools.opcodes}
_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_PUT, _LONG_BINPUT = b"p", b"r"
_ASKS_FOR_CODE = (b"c", b"i")  # two lines each; reading ends there in any case
_SHORT = 48  # bytes of an argument that the expression takes at once


def check_memo_numbers(data: bytes) -> None:
    """Refuses a pickle that numbers an object higher than it can have objects.

    What comes after damage is not looked at: nor is it read.

    Args:
        data: The pickle.

    Raises:
        ValueError: It does so.
    """
    size = len(data)
    harmless = _harmless((size.bit_length() + 7) // 8 - 1, len(str(size)) - 1)
    place = 0
    while place < size:
        if match := harmless.match(data, place):
            place = match.end()
            continue
        code, start = data[place : place + 1], place + 1
        length_bytes = _LENGTH_BYTES.get(_SIZES.get(code, 0))
        if length_bytes is not None:
            start += length_bytes
            place = start + int.from_bytes(data[start - length_bytes : start], "little")
        elif code == _LONG_BINPUT:
            place = start + 4
            _check(int.from_bytes(data[start:place], "little"), size)
        elif code == _PUT:
            place = data.find(b"\n", start) + 1
            digits = data[start : place - 1].strip()
            if not place or len(digits) > len(str(size)) or not digits.isdigit():
                raise ValueError(f"it numbers an object {digits[:20]!r}")
            _check(int(digits), size)
        else:
            return


def _check(number: int, size: int) -> None:
    if number > size:
        raise ValueError(f"it numbers an object {number} and has {size} bytes")


@cache
def _harmless(low_bytes: int, digits: int) -> re.Pattern[bytes]:
    """Instructions, as many as there are, that need no second look.

    Args:
        low_bytes: How many bytes of a number may have any value.
        digits: How many digits a number may have.
    """
    by_size: dict[int, bytes] = {}
    for code, size in _SIZES.items():
        if code not in (_PUT, _LONG_BINPUT, *_ASKS_FOR_CODE):
            by_size[size] = by_size.get(size, b"") + re.escape(code)
    short, plain = [], []
    for size, codes in by_size.items():
        one = b"[" + codes + b"]"
        if size in _LENGTH_BYTES:
            zeros = b"\0" * (_LENGTH_BYTES[size] - 1)
            lengths = (
                re.escape(bytes([length])) + zeros + b".{%d}" % length for length in range(_SHORT)
            )
            short.append(one + b"(?:" + b"|".join(lengths) + b")")
        elif size == pickletools.UP_TO_NEWLINE:
            plain.append(one + rb"[^\n]*\n")
        else:
            plain.append(one + b"." * size)
    numbers = [_LONG_BINPUT + b"." * min(low_bytes, 4) + b"\0" * (4 - min(low_bytes, 4))]
    if digits:
        numbers.append(_PUT + b"[0-9]{1,%d}\n" % digits)
    return re.compile(b"(?:" + b"|".join([*short, *numbers, *plain]) + b")++", re.DOTALL)
