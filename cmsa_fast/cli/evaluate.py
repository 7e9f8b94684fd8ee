"""`cmsa-fast evaluate`: how well a trained model finds what expressions name."""

from __future__ import annotations

import logging
import platform
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from .data_options import DataOptions, without_default

if TYPE_CHECKING:
    from ..data.errors import ErrorCollector
    from ..data.types import ReferringDataset
    from ..evaluation.evaluate import Evaluation
    from ..evaluation.inference import Refiner
    from ..evaluation.results import ExpressionResult
    from ..system.processes import Processes

_logger = logging.getLogger(__name__)

ConventionName = Literal["native", "cmsa", "lavt", "cris"]


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(DataOptions):
    """What to evaluate, on what, and by whose rules."""

    run: tyro.conf.Positional[Path]
    """Folder of a training run, or a model.safetensors."""

    split: Annotated[str, without_default("SPLIT", "default: the run's, else val")] = ""
    """Split to evaluate on, such as val, testA, testB or test."""

    scenes: int = 500
    """Unseen scenes of --data scenes to evaluate on, two expressions each."""

    convention: ConventionName = "native"
    """Whose rules: at which size masks are compared and what counts as found; the table below says all of it."""

    crf: bool = False
    """Sharpen every prediction by a DenseCRF with the published parameters, in processes beside the model."""

    crf_processes: Annotated[
        int | None, without_default("INT", "default: one less than CPUs, from 1 to 8")
    ] = None
    """Processes of --crf, for each process of torchrun."""

    out: Annotated[Path | None, without_default("PATH", "default: a fresh folder in the run's")] = (
        None
    )
    """Folder for evaluation.json, sentences.csv and images/; must be empty or not there."""

    examples: int = 6
    """How many of the best and as many of the worst expressions to draw."""

    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:1, ...; auto: CUDA where there is one."""

    num_workers: int = 1
    """Processes that read images beside the model; 0: none."""

    images_per_batch: int = 4
    """Images read at a time; without influence on any figure."""


@dataclass(frozen=True)
class EvaluateResult:
    """What an evaluation came to.

    Attributes:
        evaluation: the metrics, and every expression.
        title: what it was evaluated on.
        folder: with evaluation.json, sentences.csv and images/.
        overview: the sheet of the best and the worst; None where none were asked for.
        seconds: of the evaluation, without loading and drawing.
        problems: one line for each record or image that could not be used.
        is_first: whether this is the process that prints; others have written nothing.
    """

    evaluation: Evaluation
    title: str
    folder: Path
    overview: Path | None
    seconds: float
    errors: list[str]
    is_first: bool


def run_evaluate(options: EvaluateOptions) -> EvaluateResult:
    """Evaluate a model as `cmsa-fast evaluate` does; under torchrun, together with the other processes.

    Raises:
        FileNotFoundError: the run, the data or a file of theirs is not there.
        FileExistsError: --out already holds something.
        OSError: the results cannot be written; a note holds the figures of all expressions.
        ImportError: --crf or the form of the data needs a package that is not installed.
        ValueError: an option is out of range or data are damaged.
    """
    import torch

    from ..data.batch import Collate
    from ..data.errors import ErrorCollector
    from ..evaluation.conventions import CONVENTIONS
    from ..evaluation.evaluate import evaluate
    from ..evaluation.examples import drawn_or_warned, save_extremes
    from ..models.checkpoint import load_model, vocabulary_of
    from ..system.processes import joined_processes, select_device
    from .evaluation_folder import evaluation_folder
    from .run_folder import EXAMPLES
    from .scenes import scene_labels

    options = _with_the_runs_data(options)
    _check(options)
    convention = CONVENTIONS[options.convention]
    with ExitStack() as stack:
        processes = stack.enter_context(joined_processes(options.device))
        model, config = load_model(options.run)
        crf = "-crf" if options.crf else ""
        folder = stack.enter_context(
            evaluation_folder(
                options.out,
                options.run if options.run.is_dir() else options.run.parent,
                f"evaluation-{options.data}-{options.split}-{options.convention}{crf}",
                processes,
            )
        )
        where = select_device(options.device)
        model.to(where)
        errors = ErrorCollector(strict=options.strict)
        dataset, title = _dataset(options, config.size, errors)
        collate = Collate(vocabulary_of(config), config.size, config.max_words)
        refiner = _refiner(options, stack, processes)
        started = time.perf_counter()
        done: list[ExpressionResult] = []
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
                keep=done.append,
            )
        except BaseException:
            _keep_so_far(folder, done, len(dataset), processes)
            raise
        seconds = time.perf_counter() - started
        messages = sorted({line for part in processes.gather(errors.messages) for line in part})
        overview = None
        if processes.is_first:
            result = EvaluateResult(evaluation, title, folder, None, seconds, messages, True)
            try:
                _write(options, result, processes.count, torch.get_num_threads(), str(where))
            except OSError as error:
                figures = ", ".join(f"{name} {v:.4f}" for name, v in evaluation.overall.items())
                error.add_note(f"Not all could be written to {folder}. All expressions: {figures}.")
                raise
            overview = drawn_or_warned(
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
    return EvaluateResult(
        evaluation, title, folder, overview, seconds, messages, processes.is_first
    )


def _keep_so_far(
    folder: Path, done: list[ExpressionResult], expressions: int, processes: Processes
) -> None:
    """Write what an evaluation that is stopped has measured; it makes no figures."""
    from ..evaluation.results import write_results

    if not done:
        return
    process = "" if processes.count == 1 else f"-{processes.rank}"
    path = folder / f"expressions-so-far{process}.csv"
    try:
        write_results(path, done)
    except OSError as error:
        _logger.warning("What was measured so far could not be kept: %s", error)
    else:
        _logger.warning(
            "Stopped after %d of %d expressions; their results are in %s",
            len(done),
            expressions,
            path,
        )


def _with_the_runs_data(options: EvaluateOptions) -> EvaluateOptions:
    """The options with the run's own data where none were named."""
    from .run_folder import OPTIONS, read_options

    if options.data is not None:
        return options if options.split else replace(options, split="val")
    folder = options.run if options.run.is_dir() else options.run.parent
    if not (folder / OPTIONS).is_file():
        raise ValueError(
            f"{options.run} does not say what data it was trained on; name them by --data and --root."
        )
    started = read_options(folder)
    return replace(
        options,
        data=started.data,
        root=options.root or started.root,
        name=options.name or started.name,
        split_by=options.split_by or started.split_by,
        text=options.text or started.text,
        image_dir=options.image_dir or started.image_dir,
        split=options.split or started.evaluate_split,
    )


def _check(options: EvaluateOptions) -> None:
    options.check_data()
    least = {"num_workers": 0, "examples": 0, "images_per_batch": 1, "scenes": 2}
    for name, value in least.items():
        if getattr(options, name) < value:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} must be at least {value}; got {getattr(options, name)}.")
    if options.crf_processes is not None and not options.crf:
        raise ValueError("--crf-processes goes with --crf.")


def _dataset(
    options: EvaluateOptions, size: int, errors: ErrorCollector
) -> tuple[ReferringDataset, str]:
    if options.data == "scenes":
        from .scenes import evaluation_scenes

        return evaluation_scenes(options.scenes, size), f"{options.scenes} unseen scenes"
    from ..data.dataset import open_split

    dataset = open_split(options.source(), options.split, errors=errors)
    return dataset, dataset.title


def _refiner(options: EvaluateOptions, stack: ExitStack, processes: Processes) -> Refiner | None:
    if not options.crf:
        return None
    from ..evaluation.crf import RefinementPool

    count = options.crf_processes
    if count is None and processes.count > 1:
        count = 1  # the processes of torchrun already share the CPUs
    return stack.enter_context(RefinementPool(count))


def _write(
    options: EvaluateOptions, result: EvaluateResult, processes: int, threads: int, where: str
) -> None:
    import torch

    from .. import __version__
    from ..evaluation.results import EXPRESSIONS, write_results
    from ..system.files import write_json
    from .run_folder import EVALUATION

    evaluation = result.evaluation
    write_results(result.folder / EXPRESSIONS, evaluation.results)
    content: dict[str, Any] = {
        "title": result.title,
        **evaluation.summary(),
        "seconds": round(result.seconds, 2),
        "expressions_per_second": round(evaluation.expressions / result.seconds, 3),
        "problems": result.errors,
        "options": {
            name: str(value) if isinstance(value, Path) else value
            for name, value in asdict(options).items()
        },
        "processes": processes,
        "threads": threads,
        "device": where,
        "versions": {
            "cmsa_fast": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    write_json(result.folder / EVALUATION, content)
