"""Damage to a copy of records."""

from __future__ import annotations

from typing import Any


def damage(whole: Any, path: tuple[Any, ...], value: Any) -> None:
    """Sets the value at a path of keys and indices; `...` removes it."""
    *way, last = path
    for key in way:
        whole = whole[key]
    if value is ...:
        del whole[last]
    else:
        whole[last] = value
