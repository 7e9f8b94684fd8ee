"""Tables and lines that the reports of `train`, `evaluate`, `score` and `compare` share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..evaluation.score import Coverage, Evaluation, percent
from .scenes import NO_WORD_ORDER, WORD_ORDER

if TYPE_CHECKING:
    from .train import Result

_NAMES = {
    "overall_iou": "overall IoU",
    "mean_iou": "mean IoU",
    **{f"precision@0.{tenth}": f"prec@0.{tenth}" for tenth in range(5, 10)},
}
_GENERALIZED = {
    "gIoU": "gIoU",
    "cIoU": "cIoU",
    "N_acc": "N-acc",
    "T_acc": "T-acc",
    **{f"precision@0.{tenth}": f"prec@0.{tenth}" for tenth in (7, 8, 9)},
}
METRIC_TITLES = _GENERALIZED | _NAMES
_SHOWN_ERRORS = 10

Row = tuple[str, int, Mapping[str, float] | Mapping[str, float | None]]


def format_result(result: Result) -> str:
    """The report of a training: all expressions, each kind, and the control with shuffled expressions."""
    evaluation = result.evaluation
    rows = [("all expressions", evaluation.expressions, evaluation.overall), *kind_rows(evaluation)]
    if result.shuffled is not None:
        shuffled = result.shuffled
        rows.append(("expressions shuffled", shuffled.expressions, shuffled.overall))
    minutes, seconds = divmod(round(result.progress.seconds), 60)
    steps = f"{result.progress.step} steps"
    if result.progress.best_step is not None:
        steps += f" (evaluated: step {result.progress.best_step}, the best validation)"
    lines = [
        *metric_table(rows),
        "",
        "Percent, at the images' own size. overall IoU: sum of intersections / sum of unions;",
        "mean IoU: mean over expressions; prec@X: share of expressions with IoU >= X.",
        *evaluation_notes(evaluation),
        f"{steps} in {minutes} min {seconds} s; everything is in {result.folder}",
        *error_lines(result.errors),
    ]
    if result.overview is not None:
        lines.append(f"Look at {result.overview}")
    return "\n".join(lines)


def kind_rows(evaluation: Evaluation) -> list[Row]:
    """One row for each kind of expression."""
    return [(kind, evaluation.counts[kind], metrics) for kind, metrics in evaluation.by_kind.items()]


def group_rows(evaluation: Evaluation) -> list[Row]:
    """One row for all expressions, and for each kind, group of lengths and group of sizes."""
    rows: list[Row] = [("all expressions", evaluation.expressions, evaluation.overall), *kind_rows(evaluation)]
    for groups in (evaluation.by_length, evaluation.by_size):
        rows += [(name, int(group["expressions"]), group) for name, group in groups.items()]
    return rows


def exit_status(evaluation: Evaluation) -> int:
    """Exit status of `train`, `evaluate` and `score`: 0, or 3 if expressions of the split are in no metric."""
    return 3 if evaluation.coverage.missing else 0


def metric_table(rows: Sequence[Row], titles: Mapping[str, str] = _NAMES) -> list[str]:
    """The lines of a table: name, number of expressions, and the metrics of `titles` in percent."""
    width = max(len(name) for name, _, _ in rows)
    header = " " * width + f"  {'count':>6}" + "".join(f"  {title:>11}" for title in titles.values())
    lines = [header]
    for name, count, metrics in rows:
        values = [metrics[key] for key in titles]
        numbers = "".join(f"  {'-' if value is None else percent(value):>11}" for value in values)
        lines.append(f"{name:<{width}}  {count:>6}{numbers}")
    return lines


def convention_tables(evaluations: Mapping[str, Evaluation]) -> list[str]:
    """The lines of a table with a row for each convention, and of one with gRefCOCO's metrics if there are any."""
    lines = metric_table([(name, one.expressions, one.overall) for name, one in evaluations.items()])
    generalized = [
        (name, one.expressions, one.generalized)
        for name, one in evaluations.items()
        if one.generalized is not None
    ]
    return [*lines, "", *metric_table(generalized, _GENERALIZED)] if generalized else lines


def evaluation_notes(evaluation: Evaluation) -> list[str]:
    """What the table does not show: expressions that name nothing, word order, and what was not evaluated."""
    lines = []
    if (generalized := evaluation.generalized) is not None:
        numbers = ", ".join(
            f"{title} {percent(value)}"
            for name, title in _GENERALIZED.items()
            if (value := generalized[name]) is not None
        )
        lines.append(f"Some expressions name nothing in their image. As for gRefCOCO: {numbers}.")
    if (robust := evaluation.robust) is not None:
        numbers = ", ".join(f"{name} {percent(robust[name])}" for name in ("mRR", "rIoU", "mIoU", "oIoU"))
        lines.append(
            f"As for R-RefCOCO, over {robust['references']} objects with negative expressions: {numbers}."
        )
    if WORD_ORDER in evaluation.by_kind and NO_WORD_ORDER in evaluation.by_kind:
        order, free = (percent(evaluation.by_kind[kind]["overall_iou"]) for kind in (WORD_ORDER, NO_WORD_ORDER))
        lines += [
            f"Word order: overall IoU {order} where the same words in another order name another object,",
            f"{free} for other relations.",
        ]
    return lines + _coverage_lines(evaluation.coverage)


def error_lines(errors: Sequence[str]) -> list[str]:
    """The first records and images that could not be used, and how many there are."""
    if not errors:
        return []
    lines = [f"{len(errors)} records or images could not be used and were left out:"]
    lines += [f"  {line}" for line in errors[:_SHOWN_ERRORS]]
    if len(errors) > _SHOWN_ERRORS:
        lines.append(f"  ... and {len(errors) - _SHOWN_ERRORS} more, all in evaluation.json")
    return lines


def _coverage_lines(coverage: Coverage) -> list[str]:
    lines = []
    if coverage.missing:
        parts = {
            "damaged records": coverage.unusable_records,
            "expressions without a word": coverage.without_words,
            "expressions with an unusable image or mask": coverage.unreadable,
        }
        listing = ", ".join(f"{count} {what}" for what, count in parts.items() if count)
        more = " or more" if coverage.unusable_records else ""
        lines.append(f"NOT EVALUATED: {coverage.missing} expressions{more} are in no figure ({listing}).")
    if coverage.published not in (None, coverage.measured):
        lines.append(
            f"{coverage.measured} of the split's {coverage.published} published expressions were evaluated: "
            "do not compare with published figures."
        )
    return lines
