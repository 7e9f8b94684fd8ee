"""`cmsa-fast compare`: two evaluations of the same expressions, side by side."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from .data_options import without_default

if TYPE_CHECKING:
    from ..evaluation.comparison import Comparison
    from ..evaluation.results import ExpressionResult

_NAMES = {"overall_iou": "overall IoU", "mean_iou": "mean IoU"}


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What to compare, and how sure to be."""

    first: tyro.conf.Positional[Path]
    """An evaluation: its folder, or its sentences.csv."""

    second: tyro.conf.Positional[Path]
    """Another one of the same expressions."""

    resamples: int = 10_000
    """How often the images are drawn anew for the intervals."""

    confidence: float = 0.95
    """Of the intervals."""

    seed: int = 0
    """Of the draws."""

    expressions: int = 10
    """How many of the expressions that differ most to list."""

    out: Annotated[Path | None, without_default("FILE", "default: none")] = None
    """A JSON file for all of it, with every expression that differs; it must not exist."""


@dataclass(frozen=True)
class CompareResult:
    """What a comparison came to.

    Attributes:
        first: the name of the first evaluation.
        second: the name of the second.
        comparison: measures, intervals and expressions.
        listed: how many expressions to list.
    """

    first: str
    second: str
    comparison: Comparison
    listed: int


def run_compare(options: CompareOptions) -> CompareResult:
    """Compare two evaluations as `cmsa-fast compare` does.

    Raises:
        FileNotFoundError: an evaluation, or the folder of --out, is not there.
        FileExistsError: --out is there already.
        ValueError: a file is damaged, the expressions are not the same, or an option is out of range.
    """
    from ..evaluation.comparison import compare
    from ..evaluation.results import EXPRESSIONS, read_results
    from ..system.files import write_json

    if options.expressions < 0:
        raise ValueError(f"--expressions must be at least 0; got {options.expressions}.")
    if options.out is not None and options.out.exists():
        raise FileExistsError(f"--out {options.out} is there already and is not overwritten.")
    if options.out is not None and not options.out.parent.is_dir():
        raise FileNotFoundError(f"--out {options.out}: there is no folder {options.out.parent}.")
    paths = [
        path / EXPRESSIONS if path.is_dir() else path for path in (options.first, options.second)
    ]
    first, second = (read_results(path) for path in paths)
    comparison = compare(
        first,
        second,
        resamples=options.resamples,
        confidence=options.confidence,
        seed=options.seed,
    )
    if options.out is not None:
        write_json(
            options.out,
            {
                "first": str(paths[0]),
                "second": str(paths[1]),
                "sentences": comparison.expressions,
                "pictures": comparison.images,
                "confidence": comparison.confidence,
                "resamples": comparison.resamples,
                "seed": comparison.seed,
                "measures": {
                    name: {**asdict(measure), "difference": measure.difference}
                    for name, measure in comparison.measures.items()
                },
                "better": comparison.better,
                "worse": comparison.worse,
                "changed": [
                    {
                        "image_id": one.image_id,
                        "ref_id": one.ref_id,
                        "sent_id": one.sent_id,
                        "sentence": one.expression,
                        "first_iou": one.iou,
                        "second_iou": two.iou,
                    }
                    for one, two in comparison.changed(comparison.expressions)
                ],
            },
        )
    return CompareResult(str(options.first), str(options.second), comparison, options.expressions)


def format_compare(result: CompareResult) -> str:
    """A table for people: each measure with its interval, and the expressions that differ most."""
    comparison = result.comparison
    interval = f"{100 * comparison.confidence:g} % interval"
    lines = [
        f"first:  {result.first}",
        f"second: {result.second}",
        f"{comparison.expressions} expressions about {comparison.images} images",
        *_conventions(comparison),
        "",
        f"{'':<14}{'first':>9}{'second':>9}{'change':>10}   {interval}",
    ]
    for name, measure in comparison.measures.items():
        title = _NAMES.get(name, name.replace("precision", "prec"))
        # Draws of a single image are all alike, and say nothing of how sure a difference is.
        sure = "" if measure.low <= 0 <= measure.high or comparison.images == 1 else "  *"
        lines.append(
            f"{title:<14}{measure.first:>9.4f}{measure.second:>9.4f}{measure.difference:>+10.4f}   "
            f"{measure.low:+.4f} to {measure.high:+.4f}{sure}"
        )
    equal = comparison.expressions - comparison.better - comparison.worse
    lines += [
        "",
        f"Paired bootstrap, {comparison.resamples} draws of whole images; * marks an interval without 0.",
        f"The second is better in {comparison.better} expressions, worse in {comparison.worse}, equal in {equal}.",
    ]
    changed = comparison.changed(result.listed)
    if changed:
        lines += ["", "  first  second   image_id   sent_id  expression"]
        lines += [_line(one, two) for one, two in changed]
    return "\n".join(lines)


def _conventions(comparison: Comparison) -> list[str]:
    first, second = comparison.pairs[0]
    if first.convention == second.convention:
        return []
    return [
        f"measured under different conventions, {first.convention} and {second.convention}: part of the "
        "change is theirs"
    ]


def _line(one: ExpressionResult, two: ExpressionResult) -> str:
    return (
        f"  {one.iou:.3f}   {two.iou:.3f}  {one.image_id:>9} {one.sent_id:>9}  "
        f"{' '.join(one.expression.split())}"
    )
