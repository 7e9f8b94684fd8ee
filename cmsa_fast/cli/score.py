"""`cmsa-fast score`: metrics of predicted masks from files, under every convention."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from .data_options import FORMS_HELP, DataForm, check_least, without_default
from .evaluate import ConventionName
from .split_options import SplitOptions

if TYPE_CHECKING:
    from ..evaluation.predictions import Scores

_PREDICTIONS_HELP = (
    "Folder of PNG masks named SENT_ID.png, REF_ID_SENT_ID.png or REF_ID_EXPRESSION.png; or a JSON list or JSON "
    "Lines file with entries of sent_id (or ref_id and expression) and segmentation, as COCO run lengths."
)


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(SplitOptions):
    """Which predictions to measure, on which data, and by which rules."""

    predictions: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help=_PREDICTIONS_HELP)]

    data: Annotated[DataForm, tyro.conf.arg(metavar="FORM", help=FORMS_HELP)] = field()

    split: Annotated[str, without_default("SPLIT", "default: val")] = "val"
    """Split that was predicted, such as val, testA, testB or test."""

    convention: ConventionName | Literal["all"] = "all"
    """Rules for comparing masks and counting hits; all: every convention side by side."""

    missing: Literal["error", "empty"] = "error"
    """Expressions without a prediction. error: refuse the predictions; empty: count an empty mask."""

    resize: bool = False
    """Resize masks of another size to that of their image, to the nearest pixels."""

    min_pixels: int = 0
    """Count masks with fewer pixels as empty, which predicts that the expression names nothing (gRefCOCO)."""

    scene_size: int = 128
    """Side of the images of --data scenes: the size of the model that predicted."""

    out: Annotated[Path | None, without_default("PATH", "default: a new folder beside PREDICTIONS")] = None
    """Folder for evaluation.json and sentences.csv; must be empty or not exist."""


@dataclass(frozen=True)
class ScoreResult:
    """Result of scoring."""

    scores: Scores  # metrics by convention, and what was done to the predictions
    title: str  # what was predicted
    folder: Path  # folder of the results
    seconds: float  # duration
    errors: list[str]  # one line for each record or mask of the data set that could not be used


def run_score(options: ScoreOptions) -> ScoreResult:
    """Score predicted masks as `cmsa-fast score` does."""
    from ..evaluation.conventions import CONVENTIONS
    from ..evaluation.mask_files import read_predictions
    from ..evaluation.predictions import score_predictions
    from ..system.processes import ALONE
    from .evaluation_folder import evaluation_folder
    from .scenes import scene_labels

    options.check_data()
    check_least(options, min_pixels=0, scenes=2, scene_size=64)
    started = time.perf_counter()
    predictions = read_predictions(options.predictions)
    source = options.predictions.resolve()
    stem = f"{source.stem}-score-{options.data}-{options.split}"
    with evaluation_folder(options.out, source.parent, stem, ALONE) as folder:
        errors = options.collector()
        dataset, title = options.open(options.scene_size, errors)
        scores = score_predictions(
            predictions,
            dataset,
            list(CONVENTIONS.values()) if options.convention == "all" else [CONVENTIONS[options.convention]],
            labels=scene_labels(dataset),
            missing=options.missing,
            resize=options.resize,
            min_pixels=options.min_pixels,
            errors=errors,
        )
        result = ScoreResult(scores, title, folder, time.perf_counter() - started, errors.messages)
        _write(options, result)
    return result


def format_score(result: ScoreResult) -> str:
    """The report: every convention, then all groups of expressions under the first one."""
    from .report import convention_tables, error_lines, evaluation_notes, group_rows, metric_table

    evaluations = result.scores.evaluations
    first = next(iter(evaluations.values()))
    lines = [
        result.title,
        "",
        *convention_tables(evaluations),
        "",
        f"Convention {first.convention}:",
        *metric_table(group_rows(first)),
        "",
        "Percent. overall IoU: sum of intersections / sum of unions; mean IoU: mean over expressions; prec@X:",
        "share of expressions that reach X. Sizes are shares of the image that the object covers.",
        *_changes(result.scores),
        *evaluation_notes(replace(first, generalized=None)),  # they are in the table
        f"{first.expressions} expressions in {result.seconds:.1f} s; everything is in {result.folder}",
        *error_lines(result.errors),
    ]
    return "\n".join(lines)


def _changes(scores: Scores) -> list[str]:
    """What was done to the predictions at the user's request."""
    counts = {
        "expressions have no prediction and count as empty masks (--missing empty)": scores.missing,
        "predictions of another size were resized to their image (--resize)": scores.resized,
        "predictions have too few pixels and count as empty masks (--min-pixels)": scores.emptied,
        "predictions are for expressions that were left out (--allow-missing)": scores.surplus,
    }
    return [f"{count} {what}." for what, count in counts.items() if count]


def _write(options: ScoreOptions, result: ScoreResult) -> None:
    """Write evaluation.json, sentences.csv of the first convention, and sentences-NAME.csv of the others."""
    from ..evaluation.results import EVALUATION, EXPRESSIONS, write_results
    from ..system.files import write_json

    scores = result.scores
    for place, (name, evaluation) in enumerate(scores.evaluations.items()):
        write_results(result.folder / (f"sentences-{name}.csv" if place else EXPRESSIONS), evaluation.results)
    content = {
        "title": result.title,
        "predictions": {
            "path": options.predictions,
            **{key: value for key, value in vars(scores).items() if key != "evaluations"},
        },
        "conventions": {name: one.summary() for name, one in scores.evaluations.items()},
        "seconds": round(result.seconds, 2),
        "errors": result.errors,
        "options": asdict(options),
    }
    write_json(result.folder / EVALUATION, content)
