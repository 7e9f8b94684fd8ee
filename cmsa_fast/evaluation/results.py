"""The result of every evaluated expression, and the CSV file that holds them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.types import Sample
from ..data.vocabulary import tokenize
from ..system.files import write_atomically
from .conventions import CONVENTIONS, Convention

EXPRESSIONS = "sentences.csv"
EVALUATION = "evaluation.json"


@dataclass(frozen=True, slots=True)
class ExpressionResult:
    """One evaluated expression."""

    index: int  # index in the data set
    image_id: int  # the data set's number for the image
    ref_id: int  # the data set's number for the referred object
    sent_id: int  # the data set's number for the expression
    expression: str  # the expression as written
    words: int  # number of words
    kind: str  # the kind of expression if the data set has kinds, otherwise empty
    names_nothing: bool  # whether the expression refers to nothing in the image (no target)
    height: int  # height of the image in pixels
    width: int  # width of the image in pixels
    intersection: int  # pixels in both masks, at the size where the convention compares them
    predicted: int  # pixels of the predicted mask at that size
    true: int  # pixels of the true mask at that size
    share: float  # fraction of the image that the true mask covers, at the image's own size
    iou: float  # IoU by the convention's rules
    convention: str  # name of the convention, a key of `CONVENTIONS`

    @property
    def union(self) -> int:
        """Pixels in at least one of the two masks."""
        return self.predicted + self.true - self.intersection


def measure(index: int, sample: Sample, predicted: Tensor, convention: Convention) -> ExpressionResult:
    """The result of one expression.

    Pixels in the sample's ignore mask count neither as predicted nor as true.

    Args:
        index: Index in the data set.
        sample: The expression and its true mask.
        predicted: The predicted mask, bool at the convention's size.
        convention: How the masks are compared.
    """
    true = convention.truth(sample.mask)
    if sample.ignore is not None:
        ignored = convention.truth(sample.ignore)
        predicted, true = predicted.masked_fill(ignored, False), true.masked_fill(ignored, False)
    metrics = convention.metrics()
    metrics.update(predicted, true)
    height, width = sample.mask.shape
    return ExpressionResult(
        index=index,
        image_id=sample.image_id,
        ref_id=sample.ref_id,
        sent_id=sample.sent_id,
        expression=sample.expression,
        words=len(tokenize(sample.expression)),
        kind=sample.kind,
        names_nothing=sample.names_nothing,
        height=height,
        width=width,
        intersection=metrics.intersections[0],
        predicted=metrics.predicted[0],
        true=metrics.true[0],
        share=int(sample.mask.count_nonzero()) / sample.mask.numel(),
        iou=metrics.ious[0],
        convention=convention.name,
    )


_COLUMNS = tuple(field.name for field in fields(ExpressionResult))
# Columns that files written by earlier versions have under another name.
_OLD_NAMES = {"sentence": "expression"}


def write_results(path: Path, results: Iterable[ExpressionResult]) -> None:
    """Write one CSV row per expression: UTF-8, a header with the attributes' names, and the union.

    Unpaired surrogates, which JSON and pickles can hold but UTF-8 cannot, are written as escapes.
    """

    def write(target: Path) -> None:
        with target.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            rows = csv.writer(file)
            rows.writerow([*_COLUMNS, "union"])
            rows.writerows([*astuple(result), result.union] for result in results)

    write_atomically(path, write)


def read_results(path: Path) -> list[ExpressionResult]:
    """Read a file of `write_results`; columns may be in any order, and unknown ones are ignored.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: A column is missing, a value has the wrong type, or pixel counts contradict each other; the
            message names file and line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path} with results by expression.")
    with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets add a byte order mark
        rows = csv.DictReader(file)
        try:
            names = [_OLD_NAMES.get(name, name) for name in rows.fieldnames or ()]
            rows.fieldnames = names
            missing = [name for name in _COLUMNS if name not in names]
            if missing:
                raise ValueError(f"it has no column {missing[0]!r}, so it was not written by `cmsa-fast evaluate`")
            results = [_result(row) for row in rows]
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path}, line {rows.line_num}: {error}") from error
    if not results:
        raise ValueError(f"{path} has no expression.")
    return results


_PARSERS: dict[str, Callable[[str], object]] = {
    "int": int,
    "str": str,
    "float": float,
    "bool": {"True": True, "False": False}.__getitem__,
}


def _result(row: dict[str, str | None]) -> ExpressionResult:
    values: dict[str, Any] = {}
    for field in fields(ExpressionResult):
        text = row[field.name]
        try:
            values[field.name] = _PARSERS[str(field.type)](text or "")
        except (KeyError, ValueError):
            raise ValueError(f"{field.name} must be of type {field.type}; got {text!r}") from None
    result = ExpressionResult(**values)
    if result.convention not in CONVENTIONS:
        raise ValueError(f"convention must be one of {', '.join(CONVENTIONS)}; got {result.convention!r}")
    if not 0 <= result.intersection <= min(result.predicted, result.true):
        raise ValueError(
            f"the intersection of {result.intersection} pixels does not fit masks of "
            f"{result.predicted} and {result.true}"
        )
    for name in ("iou", "share"):
        if not 0 <= getattr(result, name) <= 1:  # also fails for NaN
            raise ValueError(f"{name} must be from 0 to 1; got {getattr(result, name)}")
    return result
