"""What commands found, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .scenes import NO_WORD_ORDER, WORD_ORDER

if TYPE_CHECKING:
    from ..evaluation.evaluate import Evaluation
    from .evaluate import EvaluateResult
    from .train import Result

_NAMES = {
    "overall_iou": "overall IoU",
    "mean_iou": "mean IoU",
    **{f"precision@0.{tenth}": f"prec@0.{tenth}" for tenth in range(5, 10)},
}
_GENERALIZED = ("gIoU", "cIoU", "N_acc", "T_acc", "precision@0.7", "precision@0.8", "precision@0.9")
_SHOWN_PROBLEMS = 10

Row = tuple[str, int, Mapping[str, float]]


def format_result(result: Result) -> str:
    """A table for people: every expression, each kind, and the expressions shuffled among the images.

    For scenes it also says what word order costs, which CMSA does not see.
    """
    evaluation = result.evaluation
    rows: list[Row] = [("all expressions", evaluation.expressions, evaluation.overall)]
    rows += _kinds(evaluation)
    if result.shuffled is not None:
        shuffled = result.shuffled
        rows.append(("expressions shuffled", shuffled.expressions, shuffled.overall))
    lines = _table(rows)
    minutes, seconds = divmod(round(result.progress.seconds), 60)
    lines += [
        "",
        "IoU at the images' own size. overall IoU: sum of intersections / sum of unions;",
        "mean IoU: mean over expressions; prec@X: share of expressions with IoU >= X.",
        *_generalized(evaluation),
        *_word_order(evaluation),
        f"{result.progress.step} steps in {minutes} min {seconds} s; everything is in {result.folder}",
        *_problems(result.errors, evaluation.unusable),
    ]
    if result.overview is not None:
        lines.append(f"Look at {result.overview}")
    return "\n".join(lines)


def format_evaluation(result: EvaluateResult) -> str:
    """A table for people: every expression, each kind, expressions by length and objects by size."""
    evaluation = result.evaluation
    rows: list[Row] = [("all expressions", evaluation.expressions, evaluation.overall)]
    rows += _kinds(evaluation)
    for groups in (evaluation.by_length, evaluation.by_size):
        rows += [(name, int(group["sentences"]), group) for name, group in groups.items()]
    rate = evaluation.expressions / result.seconds
    lines = [
        f"{result.title}, convention {evaluation.convention}",
        "",
        *_table(rows),
        "",
        "overall IoU: sum of intersections / sum of unions; mean IoU: mean over expressions; prec@X: share of",
        "expressions that reach X. Sizes are shares of the image that the object covers.",
        *_generalized(evaluation),
        *_word_order(evaluation),
        f"{evaluation.expressions} expressions in {result.seconds:.1f} s ({rate:.1f} a second); everything is in "
        f"{result.folder}",
        *_problems(result.errors, evaluation.unusable),
    ]
    if result.overview is not None:
        lines.append(f"Look at {result.overview}")
    return "\n".join(lines)


def _kinds(evaluation: Evaluation) -> list[Row]:
    return [
        (kind, evaluation.counts[kind], metrics) for kind, metrics in evaluation.by_kind.items()
    ]


def _table(rows: Sequence[Row]) -> list[str]:
    width = max(len(name) for name, _, _ in rows)
    header = " " * width + f"  {'count':>6}" + "".join(f"  {name:>11}" for name in _NAMES.values())
    lines = [header]
    for name, count, metrics in rows:
        numbers = "".join(f"  {metrics[key]:>11.3f}" for key in _NAMES)
        lines.append(f"{name:<{width}}  {count:>6}{numbers}")
    return lines


def _generalized(evaluation: Evaluation) -> list[str]:
    if evaluation.generalized is None:
        return []
    found = evaluation.generalized
    numbers = ", ".join(
        f"{name} {found[name]:.3f}" for name in _GENERALIZED if found[name] is not None
    )
    return [f"Some expressions name nothing in their image. As for gRefCOCO: {numbers}."]


def _word_order(evaluation: Evaluation) -> list[str]:
    if WORD_ORDER not in evaluation.by_kind or NO_WORD_ORDER not in evaluation.by_kind:
        return []
    decides, free = (evaluation.by_kind[kind] for kind in (WORD_ORDER, NO_WORD_ORDER))
    return [
        "What word order costs a model that sees a bag of words: overall IoU "
        f"{decides['overall_iou']:.3f} where the",
        f"same words in another order name another object, {free['overall_iou']:.3f} at other relations.",
    ]


def _problems(errors: Sequence[str], unusable: int) -> list[str]:
    if not errors:
        return []
    lines = [f"{len(errors)} records or images could not be used and were left out:"]
    if unusable:
        lines.insert(0, f"Expressions of the split that are in no figure: {unusable}.")
    lines += [f"  {line}" for line in errors[:_SHOWN_PROBLEMS]]
    if len(errors) > _SHOWN_PROBLEMS:
        lines.append(f"  ... and {len(errors) - _SHOWN_PROBLEMS} more, all in evaluation.json")
    return lines
