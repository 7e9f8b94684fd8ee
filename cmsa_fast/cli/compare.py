"""`cmsa-fast compare`: two evaluations of the same expressions, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from .data_options import check_least, without_default

if TYPE_CHECKING:
    from ..evaluation.comparison import Comparison


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What to compare, and at which confidence."""

    first: tyro.conf.Positional[Path]
    """An evaluation: its folder, or its sentences.csv."""

    second: tyro.conf.Positional[Path]
    """Another evaluation of the same expressions."""

    resamples: int = 10_000
    """Number of bootstrap samples for the intervals."""

    confidence: float = 0.95
    """Confidence of the intervals."""

    seed: int = 0
    """Seed of the bootstrap."""

    expressions: int = 10
    """How many of the expressions that differ most to list."""

    out: Annotated[Path | None, without_default("FILE", "default: none")] = None
    """JSON file for everything, with every expression that differs; must not exist."""


def run_compare(options: CompareOptions) -> Comparison:
    """Compare two evaluations as `cmsa-fast compare` does."""
    from ..evaluation.comparison import compare
    from ..evaluation.results import EXPRESSIONS, read_results
    from ..system.files import write_json

    check_least(options, expressions=0)
    if options.out is not None and options.out.exists():
        raise FileExistsError(f"--out {options.out} exists and is not overwritten.")
    if options.out is not None and not options.out.parent.is_dir():
        raise FileNotFoundError(f"--out {options.out}: there is no folder {options.out.parent}.")
    paths = [path / EXPRESSIONS if path.is_dir() else path for path in (options.first, options.second)]
    first, second = (read_results(path) for path in paths)
    settings = {name: getattr(options, name) for name in ("confidence", "resamples", "seed")}
    comparison = compare(first, second, **settings)
    if options.out is not None:
        write_json(
            options.out,
            {
                "first": str(paths[0]),
                "second": str(paths[1]),
                "expressions": comparison.expressions,
                "images": comparison.images,
                **settings,
                "measures": {name: vars(one) for name, one in comparison.measures.items()},
                "better": comparison.better,
                "worse": comparison.worse,
                "changed": [
                    {
                        "image_id": one.image_id,
                        "ref_id": one.ref_id,
                        "sent_id": one.sent_id,
                        "expression": one.expression,
                        "first_iou": one.iou,
                        "second_iou": two.iou,
                    }
                    for one, two in comparison.changed(comparison.expressions)
                ],
            },
        )
    return comparison


def format_compare(options: CompareOptions, comparison: Comparison) -> str:
    """The report: each metric with its interval in percent, and the expressions that differ most."""
    from ..evaluation.score import percent
    from .report import METRIC_TITLES

    one, two = comparison.pairs[0]
    lines = [
        f"first:  {options.first}",
        f"second: {options.second}",
        f"{comparison.expressions} expressions about {comparison.images} images",
    ]
    if one.convention != two.convention:
        lines.append(
            f"evaluated under different conventions, {one.convention} and {two.convention}, which explain a part "
            "of the change"
        )
    interval = f"{100 * options.confidence:g} % interval"
    lines += ["", f"{'percent':<14}{'first':>9}{'second':>9}{'change':>10}   {interval}"]
    for name, measure in comparison.measures.items():
        # With a single image all bootstrap samples are the same, so the interval has no meaning.
        significant = not measure.low <= 0 <= measure.high and comparison.images > 1
        first, second = percent(measure.first), percent(measure.second)
        change, low, high = (f"{100 * value:+.2f}" for value in (measure.difference, measure.low, measure.high))
        lines.append(
            f"{METRIC_TITLES[name]:<14}{first:>9}{second:>9}{change:>10}   {low} to {high}"
            f"{'  *' if significant else ''}"
        )
    equal = comparison.expressions - comparison.better - comparison.worse
    lines += [
        "",
        f"Paired bootstrap over images, {options.resamples} samples; * marks an interval without 0.",
        f"The second is better in {comparison.better} expressions, worse in {comparison.worse}, equal in {equal}.",
    ]
    changed = comparison.changed(options.expressions)
    if changed:
        lines += ["", "   first  second   image_id   sent_id  expression"]
        lines += [
            f"  {percent(one.iou):>6}  {percent(two.iou):>6}  {one.image_id:>9} {one.sent_id:>9}  "
            f"{' '.join(one.expression.split())}"
            for one, two in changed
        ]
    return "\n".join(lines)
