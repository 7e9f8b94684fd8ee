"""`cmsa-fast evaluate`: metrics of a trained model on a split."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from .data_options import check_least, without_default
from .split_options import SplitOptions

if TYPE_CHECKING:
    from torch import Tensor

    from ..evaluation.inference import Refiner
    from ..evaluation.mask_files import RunLengths
    from ..evaluation.results import ExpressionResult
    from ..evaluation.score import Evaluation
    from ..system.processes import Processes

ConventionName = Literal["native", "cmsa", "lavt", "cris"]


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(SplitOptions):
    """What to evaluate, on which data, and by which rules."""

    run: tyro.conf.Positional[Path]
    """Folder of a training run, a model.safetensors, "demo", or OWNER/NAME on the Hugging Face Hub."""

    convention: ConventionName = "native"
    """Rules for comparing masks and counting hits; the table below explains them."""

    crf: bool = False
    """Refine every prediction with a dense CRF with the published parameters, in separate processes."""

    crf_processes: Annotated[int | None, without_default("INT", "default: one less than CPUs, from 1 to 8")] = None
    """Processes of --crf, for each process of torchrun."""

    out: Annotated[Path | None, without_default("PATH", "default: a new folder in the run's")] = None
    """Folder for evaluation.json, sentences.csv, masks.jsonl and examples/; must be empty or not exist."""

    save_masks: bool = False
    """Write the predicted masks to masks.jsonl as COCO run lengths, which `cmsa-fast score` reads."""

    examples: int = 6
    """How many of the best and of the worst expressions to draw."""

    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:1, ...; auto: CUDA if available."""

    num_workers: int = 1
    """Processes that read images in parallel with the model; 0: none."""

    images_per_batch: int = 4
    """Images read at a time; does not change any metric."""


@dataclass(frozen=True)
class EvaluateResult:
    """Result of an evaluation."""

    evaluation: Evaluation  # metrics, and the result of every expression
    title: str  # what the model was evaluated on
    folder: Path  # folder of the results
    overview: Path | None  # image of the best and the worst expressions; None if none were drawn
    seconds: float  # duration without loading and drawing
    errors: list[str]  # one line for each record or image that could not be used
    is_first: bool  # whether this process prints; the others have written nothing


def run_evaluate(options: EvaluateOptions) -> EvaluateResult:
    """Evaluate a model as `cmsa-fast evaluate` does; under torchrun, together with the other processes."""
    import torch

    from ..data.batch import Collate
    from ..data.vocabulary import Vocabulary
    from ..evaluation.conventions import CONVENTIONS
    from ..evaluation.evaluate import evaluate
    from ..evaluation.mask_files import MASKS, encode_mask, write_predictions
    from ..evaluation.visualization import draw_or_warn, save_extremes
    from ..models.checkpoint import load_model, locate
    from ..system.processes import joined_processes, select_device
    from .evaluation_folder import evaluation_folder, write_partial_results
    from .run_folder import EXAMPLES
    from .scenes import scene_labels

    path = locate(options.run)
    _check_run(path)
    options = _with_run_data(options)
    _check(options)
    convention = CONVENTIONS[options.convention]
    with ExitStack() as stack:
        processes = stack.enter_context(joined_processes(options.device))
        model, config = load_model(path)
        crf = "-crf" if options.crf else ""
        folder = stack.enter_context(
            evaluation_folder(
                options.out,
                _run_folder(options.run),
                f"evaluation-{options.data}-{options.split}-{options.convention}{crf}",
                processes,
            )
        )
        where = select_device(options.device)
        model.to(where)
        errors = options.collector()
        dataset, title = options.open(config.size, errors)
        collate = Collate(Vocabulary(config.tokens), config.size, config.max_words)
        refiner = _refiner(options, stack, processes)
        started = time.perf_counter()
        done: list[ExpressionResult] = []
        masks: dict[int, RunLengths] = {}

        def keep(result: ExpressionResult, predicted: Tensor) -> None:
            done.append(result)
            if options.save_masks:
                masks[result.index] = encode_mask(predicted)

        try:
            evaluation = evaluate(
                model,
                dataset,
                collate,
                convention=convention,
                refiner=refiner,
                labels=scene_labels(dataset),
                device=where,
                images_per_batch=options.images_per_batch,
                num_workers=options.num_workers,
                errors=errors,
                processes=processes,
                keep=keep,
            )
        except BaseException:
            write_partial_results(folder, done, masks, len(dataset), processes)
            raise
        seconds = time.perf_counter() - started
        messages = sorted({line for part in processes.gather(errors.messages) for line in part})
        masks = {index: one for part in processes.gather(masks) for index, one in part.items()}
        result = EvaluateResult(evaluation, title, folder, None, seconds, messages, processes.is_first)
        if processes.is_first:
            try:
                _write(
                    options, result, processes=processes.count, threads=torch.get_num_threads(), device=str(where)
                )
                if options.save_masks:
                    write_predictions(folder / MASKS, evaluation.results, masks)
            except OSError as error:
                overall = ", ".join(f"{name} {v:.4f}" for name, v in evaluation.overall.items())
                error.add_note(f"Not all could be written to {folder}. All expressions: {overall}.")
                raise
            overview = draw_or_warn(
                lambda: save_extremes(
                    evaluation.results,
                    options.examples,
                    model,
                    dataset,
                    collate,
                    where,
                    folder / EXAMPLES,
                    # lavt compares stretched masks, which do not lie over the image.
                    convention=CONVENTIONS["native"] if convention.name == "lavt" else convention,
                    refiner=refiner,
                )
            )
            result = replace(result, overview=overview)
    return result


def format_evaluation(result: EvaluateResult) -> str:
    """The report: all expressions, each kind, expressions by length and objects by size."""
    from .report import error_lines, evaluation_notes, group_rows, metric_table

    evaluation = result.evaluation
    rate = evaluation.expressions / result.seconds
    lines = [
        f"{result.title}, convention {evaluation.convention}",
        "",
        *metric_table(group_rows(evaluation)),
        "",
        "Percent. overall IoU: sum of intersections / sum of unions; mean IoU: mean over expressions; prec@X:",
        "share of expressions that reach X. Sizes are shares of the image that the object covers.",
        *evaluation_notes(evaluation),
        f"{evaluation.expressions} expressions in {result.seconds:.1f} s ({rate:.1f} per second); everything is "
        f"in {result.folder}",
        *error_lines(result.errors),
    ]
    if result.overview is not None:
        lines.append(f"Look at {result.overview}")
    return "\n".join(lines)


def _check_run(run: Path) -> None:
    from ..models.checkpoint import WEIGHTS

    weights = run / WEIGHTS if run.is_dir() else run
    if not weights.is_file():
        raise FileNotFoundError(f"There is no run {run}: {weights} does not exist.")


def _run_folder(run: Path) -> Path:
    """The folder of a run, where its evaluations go; the current one for "demo" and models of the hub."""
    if run.is_dir():
        return run
    return run.parent if run.is_file() else Path()


def _with_run_data(options: EvaluateOptions) -> EvaluateOptions:
    """The options with the run's own data if none were given."""
    from .run_folder import OPTIONS, read_options

    if options.data is not None:
        return options if options.split else replace(options, split="val")
    folder = _run_folder(options.run)
    if not (folder / OPTIONS).is_file():
        raise ValueError(
            f"{options.run} has no {OPTIONS} with the data of the run; name them by --data and --root."
        )
    started = read_options(folder)
    names = ("root", "name", "split_by", "text", "image_dir")
    given = {name: getattr(options, name) or getattr(started, name) for name in names}
    return replace(options, data=started.data, split=options.split or started.evaluate_split, **given)


def _check(options: EvaluateOptions) -> None:
    options.check_data()
    check_least(options, num_workers=0, examples=0, images_per_batch=1, scenes=2)
    if options.crf_processes is not None and not options.crf:
        raise ValueError("--crf-processes needs --crf.")


def _refiner(options: EvaluateOptions, stack: ExitStack, processes: Processes) -> Refiner | None:
    if not options.crf:
        return None
    from ..evaluation.crf_pool import RefinementPool

    count = options.crf_processes
    if count is None and processes.count > 1:
        count = 1  # the processes of torchrun already share the CPUs
    return stack.enter_context(RefinementPool(count))


def _write(options: EvaluateOptions, result: EvaluateResult, **machine: object) -> None:
    """Write sentences.csv and evaluation.json."""
    from ..evaluation.results import EVALUATION, EXPRESSIONS, write_results
    from ..system.files import write_json

    evaluation = result.evaluation
    write_results(result.folder / EXPRESSIONS, evaluation.results)
    content = {
        "title": result.title,
        **evaluation.summary(),
        "seconds": round(result.seconds, 2),
        "expressions_per_second": round(evaluation.expressions / result.seconds, 3),
        "errors": result.errors,
        "options": asdict(options),
        **machine,
    }
    write_json(result.folder / EVALUATION, content)
