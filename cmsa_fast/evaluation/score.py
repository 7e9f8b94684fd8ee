"""Scores of an evaluation: metrics of all expressions and of groups of them, and what they leave out."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field

import torch

from .. import __version__
from ..data.dataset import RecordDataset
from ..data.types import ReferringDataset
from .conventions import Convention
from .metrics import GeneralizedMetrics, SegmentationMetrics
from .results import ExpressionResult
from .robust import robust_metrics

# Upper end and name of each group; for short expressions the groups of the paper's Table 3.
_LENGTHS: Sequence[tuple[float, str]] = (
    (2, "1-2 words"),
    (3, "3 words"),
    (5, "4-5 words"),
    (10, "6-10 words"),
    (20, "11-20 words"),
    (float("inf"), "over 20 words"),
)
_SHARES: Sequence[tuple[float, str]] = (
    (0.0, "nothing in the image"),
    (0.01, "up to 1 % of the image"),
    (0.05, "1-5 %"),
    (0.15, "5-15 %"),
    (0.30, "15-30 %"),
    (1.0, "over 30 %"),
)


@dataclass(frozen=True)
class Coverage:
    """How much of a split the metrics cover."""

    measured: int = 0  # expressions in the metrics
    published: int | None = None  # expressions of the published split; None if unknown
    unusable_records: int = 0  # damaged records, each with one expression or more
    without_words: int = 0  # expressions without a word
    unreadable: int = 0  # expressions whose image or mask cannot be used
    checksum: str = ""  # see `checksum`

    @property
    def missing(self) -> int:
        """Expressions of the split that are in no metric, a damaged record counted as one."""
        return self.unusable_records + self.without_words + self.unreadable


@dataclass(frozen=True)
class Evaluation:
    """Metrics over all expressions, and over groups of them."""

    expressions: int  # number of evaluated expressions
    overall: dict[str, float]  # see `SegmentationMetrics.compute`
    by_kind: dict[str, dict[str, float]]  # the same for each label
    counts: dict[str, int]  # number of expressions of each label
    # The same metrics, and the number of expressions, for each group of expression lengths.
    by_length: dict[str, dict[str, float]] = field(default_factory=dict)
    by_size: dict[str, dict[str, float]] = field(default_factory=dict)  # the same for each group of object sizes
    # See `GeneralizedMetrics.compute`; None if every expression names something.
    generalized: dict[str, float | None] | None = None
    # See `robust_metrics`; None if no object has both expressions that name it and expressions that name nothing.
    robust: dict[str, float] | None = None
    convention: str = "native"  # name of the convention
    coverage: Coverage = Coverage()  # how much of the split was evaluated
    # The result of every expression, in the data set's order.
    results: list[ExpressionResult] = field(default_factory=list, repr=False)

    def summary(self) -> dict[str, object]:
        """Everything except the single results, with the versions of the software, for evaluation.json."""
        content = {name: value for name, value in vars(self).items() if name != "results"}
        return {
            **content,
            "coverage": {**asdict(self.coverage), "missing": self.coverage.missing},
            "versions": {
                "cmsa_fast": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        }


def score(
    results: list[ExpressionResult],
    dataset: ReferringDataset,
    convention: Convention,
    labels: Sequence[Sequence[str]] | None = None,
) -> Evaluation:
    """Scores of a data set; its expressions without a result are unreadable.

    `labels` are, for every expression of the data set, those it is counted under. None: its own kind.
    """
    kinds: dict[str, list[ExpressionResult]] = {}
    for result in results:
        own = [result.kind] if result.kind else []
        for kind in own if labels is None else labels[result.index]:
            kinds.setdefault(kind, []).append(result)
    report = dataset.report if isinstance(dataset, RecordDataset) else None
    return Evaluation(
        expressions=len(results),
        overall=metrics(results, convention),
        by_kind={kind: metrics(kinds[kind], convention) for kind in sorted(kinds)},
        counts={kind: len(kinds[kind]) for kind in sorted(kinds)},
        by_length=_grouped(results, lambda result: result.words, _LENGTHS, convention),
        by_size=_grouped(results, lambda result: result.share, _SHARES, convention),
        generalized=generalized_metrics(results),
        robust=robust_metrics(results),
        convention=convention.name,
        coverage=Coverage(
            measured=len(results),
            published=report.published_expressions if report else None,
            unusable_records=report.unusable_records if report else 0,
            without_words=report.empty_expressions if report else 0,
            unreadable=len(dataset) - len(results),
            checksum=checksum(results),
        ),
        results=results,
    )


def metrics(results: Iterable[ExpressionResult], convention: Convention) -> dict[str, float]:
    """`SegmentationMetrics.compute` of some results, by the convention's rules."""
    counts: SegmentationMetrics = convention.metrics()
    for result in results:
        counts.add(result.intersection, result.predicted, result.true)
    return counts.compute()


def generalized_metrics(results: Sequence[ExpressionResult]) -> dict[str, float | None] | None:
    """`GeneralizedMetrics.compute` of some results; None if every expression names something."""
    if not any(result.names_nothing for result in results):
        return None
    counts = GeneralizedMetrics()
    for result in results:
        counts.add(result.intersection, result.predicted, result.true)
    return counts.compute()


def checksum(results: Iterable[ExpressionResult]) -> str:
    """SHA-256 of what was evaluated: numbers, expression, image size and object size, sorted by the numbers.

    It depends neither on predictions and conventions nor on the form the data set was read from.
    """
    rows = sorted(
        (
            *(result.image_id, result.ref_id, result.sent_id, result.expression),
            *(result.height, result.width, round(result.share * result.height * result.width)),
        )
        for result in results
    )
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def percent(value: float) -> str:
    """A fraction as papers print it: 0.74308 -> "74.31"."""
    return f"{100 * value:.2f}"


def _grouped(
    results: Iterable[ExpressionResult],
    value_of: Callable[[ExpressionResult], float],
    ends: Sequence[tuple[float, str]],
    convention: Convention,
) -> dict[str, dict[str, float]]:
    groups: dict[str, list[ExpressionResult]] = {name: [] for _, name in ends}
    for result in results:
        groups[next(name for end, name in ends if value_of(result) <= end)].append(result)
    return {
        name: {"expressions": len(group), **metrics(group, convention)} for name, group in groups.items() if group
    }
