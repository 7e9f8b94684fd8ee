"""What an evaluation found, expression by expression: one row each, in a file that others can read."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from ..system.files import write_atomically
from .conventions import CONVENTIONS

EXPRESSIONS = "sentences.csv"


@dataclass(frozen=True, slots=True)
class ExpressionResult:
    """One evaluated expression.

    Attributes:
        index: its place in the data set.
        image_id: the data set's number for the image.
        ref_id: the data set's number for what is referred to.
        sent_id: the data set's number for the expression.
        expression: as it was written.
        words: how many words it has.
        kind: the kind of expression, where the data set knows it.
        names_nothing: whether it is about something that the image does not have.
        height: of the image, in pixels.
        width: of the image, in pixels.
        intersection: I, pixels in both masks, at the size where the convention compares them.
        predicted: pixels of the predicted mask, there.
        true: pixels of the true mask, there.
        share: of the image that the true mask covers, at the image's own size.
        iou: as the convention counts it.
        convention: the name of the rules it was measured under, one of `CONVENTIONS`.
    """

    index: int
    image_id: int
    ref_id: int
    sent_id: int
    expression: str
    words: int
    kind: str
    names_nothing: bool
    height: int
    width: int
    intersection: int
    predicted: int
    true: int
    share: float
    iou: float
    convention: str

    @property
    def union(self) -> int:
        """U, pixels in either mask."""
        return self.predicted + self.true - self.intersection


_COLUMNS = tuple(field.name for field in fields(ExpressionResult))


def _truth(text: str) -> bool:
    if text not in ("True", "False"):
        raise ValueError
    return text == "True"


_READ: dict[str, Callable[[str], object]] = {
    "int": int,
    "str": str,
    "float": float,
    "bool": _truth,
}
_UNION = "union"


def write_results(path: Path, results: Iterable[ExpressionResult]) -> None:
    """Write one row per expression as CSV (UTF-8, a header of the attributes' names, and the union).

    Half of a surrogate pair, which JSON and pickles can hold and UTF-8 cannot, is written as its escape.
    """

    def write(target: Path) -> None:
        with target.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            rows = csv.writer(file)
            rows.writerow([*_COLUMNS, _UNION])
            rows.writerows([*astuple(result), result.union] for result in results)

    write_atomically(path, write)


def read_results(path: Path) -> list[ExpressionResult]:
    """Read what `write_results` wrote; the order of columns is free and others are passed over.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, a value is none of its type, or pixels contradict each other; the
            message names file and line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path} with results by expression.")
    results = []
    with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets begin with a mark
        rows = csv.DictReader(file)
        try:
            missing = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
            if missing:
                raise ValueError(
                    f"it has no column {missing[0]!r}, so it is no file of `cmsa-fast evaluate`"
                )
            for row in rows:
                results.append(_result(row))
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path}, line {rows.line_num}: {error}") from error
    if not results:
        raise ValueError(f"{path} has no expression.")
    return results


def _result(row: dict[str, str | None]) -> ExpressionResult:
    values: dict[str, Any] = {}
    for field in fields(ExpressionResult):
        text = row[field.name]
        try:
            values[field.name] = _READ[str(field.type)](text or "")
        except ValueError:
            raise ValueError(f"{field.name} must be of type {field.type}; got {text!r}") from None
    result = ExpressionResult(**values)
    if result.convention not in CONVENTIONS:
        raise ValueError(
            f"convention must be one of {', '.join(CONVENTIONS)}; got {result.convention!r}"
        )
    if not 0 <= result.intersection <= min(result.predicted, result.true):
        raise ValueError(
            f"the intersection of {result.intersection} pixels does not fit masks of "
            f"{result.predicted} and {result.true}"
        )
    for name in ("iou", "share"):
        if not 0 <= getattr(result, name) <= 1:  # not a number fails, too
            raise ValueError(f"{name} must be from 0 to 1; got {getattr(result, name)}")
    return result


def length_group(result: ExpressionResult) -> str:
    """Which group of expression lengths an expression belongs to."""
    return _group(result.words, _LENGTHS)


def size_group(result: ExpressionResult) -> str:
    """Which group of object sizes an expression belongs to."""
    return _group(result.share, _SHARES) if result.share else _NOTHING


# Upper end of each group, and its name; the groups of the paper's Table 3 for short expressions.
_LENGTHS: Sequence[tuple[float, str]] = (
    (2, "1-2 words"),
    (3, "3 words"),
    (5, "4-5 words"),
    (10, "6-10 words"),
    (20, "11-20 words"),
    (float("inf"), "over 20 words"),
)
_SHARES: Sequence[tuple[float, str]] = (
    (0.01, "up to 1 % of the image"),
    (0.05, "1-5 %"),
    (0.15, "5-15 %"),
    (0.30, "15-30 %"),
    (1.0, "over 30 %"),
)
_NOTHING = "nothing in the image"
LENGTH_GROUPS = tuple(name for _, name in _LENGTHS)
SIZE_GROUPS = (_NOTHING, *(name for _, name in _SHARES))


def _group(value: float, groups: Sequence[tuple[float, str]]) -> str:
    return next(name for end, name in groups if value <= end)
