"""Sizes as people read them."""

from __future__ import annotations

from collections.abc import Iterable


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


def by(sides: Iterable[int] | None) -> str:
    """`480 x 640`, of height and width; nothing of None."""
    return " x ".join(str(side) for side in sides or ())
