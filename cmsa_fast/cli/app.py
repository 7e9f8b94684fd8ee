"""The command `cmsa-fast`: parses the arguments, runs a command, prints its result or its error."""

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import tyro

from ..system.processes import configure_openmp
from .compare import CompareOptions
from .data_check import DataCheckOptions
from .data_convert import ConvertOptions
from .data_download import DownloadOptions
from .evaluate import EvaluateOptions
from .explain import ExplainOptions
from .export import ExportOptions
from .predict import PredictOptions
from .push import PushOptions
from .score import ScoreOptions
from .serve import ServeOptions
from .train_options import TrainOptions

_UNNAMED = tyro.conf.arg(name="")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; `cmsa-fast --help` lists them.

    Args:
        arguments: Command-line arguments. None: those of the process.

    Returns:
        The exit status: 0 success, 1 failure, 3 an evaluation left expressions of the split out (in `train`, or in
        `evaluate` and `score --allow-missing`) or `predict` could not read some images, 130 interrupted by Ctrl-C.
        A usage error exits with 2.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    configure_openmp()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # Pillow's warning comes before the error of `read_image`, which says the same.
    warnings.filterwarnings("ignore", message="Image size .* could be decompression bomb")
    for client in ("httpx", "httpx2"):  # those of huggingface_hub log every request
        logging.getLogger(client).setLevel(logging.WARNING)
    try:
        if given[:1] == ["data"]:
            return _run(_DATA_COMMANDS, given[1:], "cmsa-fast data", _data.__doc__ or "")
        return _run(_COMMANDS, given, "cmsa-fast", "Referring image segmentation with CMSA.")
    except SystemExit as stop:
        if stop.code in (None, 0) and given[:1] in (["evaluate"], ["score"]):
            from ..evaluation.conventions import conventions_table

            print("\nconventions\n\n" + conventions_table())
        raise
    except KeyboardInterrupt:
        return 130
    except (ValueError, TypeError, OSError, FloatingPointError, ImportError) as error:
        from ..data.errors import one_line

        print(f"cmsa-fast: {one_line(error)}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        print(f"cmsa-fast: the device is out of memory: {error}", file=sys.stderr)
        return 1


def _run(commands: dict[str, Callable[..., int]], given: list[str], prog: str, description: str) -> int:
    app = tyro.extras.SubcommandApp()
    for name, command in commands.items():
        app.command(name=name)(command)
    return app.cli(
        args=given,
        prog=prog,
        description=description,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )


def _train(options: Annotated[TrainOptions, _UNNAMED]) -> int:
    """Train a referring segmentation model, evaluate it, and draw predicted masks.

    Without options this trains the demo preset, a narrow CMSA model, on synthetic scenes, which takes minutes on
    two CPU cores. The run folder then holds model.safetensors, evaluation.json, metrics.jsonl and examples/.

    The exit status is 3 if the evaluation left out expressions that cannot be used; --strict makes them an error.

    The full-size model on RefCOCO:

    python train.py --preset paper --data refer --root DATA --evaluate-split val
    """
    from .report import exit_status, format_result
    from .train import run_training

    result = run_training(options)
    print(format_result(result))
    return exit_status(result.evaluation)


def _evaluate(options: Annotated[EvaluateOptions, _UNNAMED]) -> int:
    """Evaluate a trained model on every expression of a split.

    Prints a table; writes evaluation.json, sentences.csv (one row per expression) and images of the best and the
    worst expressions. Without --data it uses the data and the split that the run names.

    The exit status is 3 if expressions of the split were left out (--allow-missing).

    cmsa-fast evaluate RUN

    cmsa-fast evaluate RUN --data refer --root DATA --split testA --crf

    torchrun --nproc-per-node 4 -m cmsa_fast evaluate RUN
    """
    from .evaluate import format_evaluation, run_evaluate
    from .report import exit_status

    result = run_evaluate(options)
    if result.is_first:
        print(format_evaluation(result))
    return exit_status(result.evaluation)


def _score(options: Annotated[ScoreOptions, _UNNAMED]) -> int:
    """Score predicted masks of any model: PNG files, or COCO run lengths as JSON or JSON Lines.

    Prints a table with every convention; writes evaluation.json and sentences.csv, which compare reads. Missing,
    surplus, repeated and wrongly sized predictions are an error that names the first of them.

    The exit status is 3 if expressions of the split were left out (--allow-missing).

    cmsa-fast score masks.jsonl --data refer --root DATA --split testA

    cmsa-fast score PNG_FOLDER --data grefcoco --root DATA --split testA --convention lavt --min-pixels 50
    """
    from .report import exit_status
    from .score import format_score, run_score

    result = run_score(options)
    print(format_score(result))
    return max(map(exit_status, result.scores.evaluations.values()))


def _predict(options: Annotated[PredictOptions, _UNNAMED]) -> int:
    """Segment what expressions refer to in images of your own.

    Writes for each image an overlay with all masks in colours and one PNG mask for each expression (255 is the
    object), and predictions.json with COCO run lengths, the words that the model saw and did not know, the share
    of the image and the seconds.

    The exit status is 3 if some images could not be read and the others were done, 1 if none could.

    cmsa-fast predict RUN street.jpg "the man in the yellow shirt" "left cup" --out DIR

    cmsa-fast predict RUN "photos/**/*.jpg" "the dog"
    """
    from .predict import format_predict, run_predict

    result = run_predict(options)
    print(format_predict(result))
    return result.exit_status


def _explain(options: Annotated[ExplainOptions, _UNNAMED]) -> int:
    """Draw how a model comes to a mask: one figure for an image and an expression.

    It shows the mask, the attention that words and places received at each level, and the strongest channel of the
    last feature map.

    cmsa-fast explain RUN street.jpg "the man in the yellow shirt"
    """
    from .explain import run_explain

    print(f"Look at {run_explain(options)}")
    return 0


def _compare(options: Annotated[CompareOptions, _UNNAMED]) -> int:
    """Compare two evaluations of the same expressions: which expressions differ, and is the change significant?

    cmsa-fast compare RUN/evaluation-refer-val-native OTHER/evaluation-refer-val-native
    """
    from .compare import format_compare, run_compare

    print(format_compare(options, run_compare(options)))
    return 0


def _export(options: Annotated[ExportOptions, _UNNAMED]) -> int:
    """Export a trained model as one file that runs without this library, by torch.export or in ONNX.

    The program takes any number of images, expressions and words at once. Before it is kept, it is compared with
    the model, an ONNX file in onnxruntime. A JSON file beside it says how to prepare images and expressions, and
    how to restore masks.

    cmsa-fast export RUN --format onnx
    """
    from .export import format_export, run_export

    print(format_export(run_export(options)))
    return 0


def _push(options: Annotated[PushOptions, _UNNAMED]) -> int:
    """Upload a trained model with a model card to the Hugging Face Hub.

    It needs an account: `hf auth login`, or a token in HF_TOKEN. The card is made from options.json and
    evaluation.json of the run; a README.md that is in the folder already is uploaded as it is.

    cmsa-fast push RUN OWNER/NAME --license mit --dry-run
    """
    from .push import run_push

    print(run_push(options))
    return 0


def _serve(options: Annotated[ServeOptions, _UNNAMED]) -> int:
    """Serve a web page on which the model can be tried: drop an image, type expressions, see their masks.

    Needs the extra "page": pip install 'cmsa_fast[page]'. Ctrl-C ends it.

    cmsa-fast serve demo
    """
    from .serve import run_serve

    run_serve(options)
    return 0


def _data(arguments: tyro.conf.Positional[tuple[str, ...]]) -> int:
    """Check, download or convert data sets; `cmsa-fast data --help` lists the commands."""
    raise ValueError("data must be followed by a command; `cmsa-fast data --help` lists them.")


def _data_check(options: Annotated[DataCheckOptions, _UNNAMED]) -> int:
    """Check a folder of data sets: what it holds, and what is missing, damaged or shared between splits.

    The exit status is 1 if something is missing or damaged, 0 with warnings only.

    cmsa-fast data check DATA
    """
    from .data_check import format_check, run_data_check

    result = run_data_check(options)
    print(format_check(result))
    return 0 if result.ok else 1


def _data_download(options: Annotated[DownloadOptions, _UNNAMED]) -> int:
    """Download the annotations or images of a data set into the layout of REFER.

    cmsa-fast data download refcoco --root DATA
    """
    from .data_download import run_download

    print(run_download(options))
    return 0


def _data_convert(options: Annotated[ConvertOptions, _UNNAMED]) -> int:
    """Convert a data set to a Parquet table, which loads fast and needs no pickle, or to a manifest.

    cmsa-fast data convert --data refer --root DATA --to refcoco.parquet

    cmsa-fast data convert --data refer --root DATA --to refcoco.jsonl
    """
    from .data_convert import format_convert, run_convert

    print(format_convert(run_convert(options)))
    return 0


_COMMANDS: dict[str, Callable[..., Any]] = {
    "train": _train,
    "evaluate": _evaluate,
    "score": _score,
    "predict": _predict,
    "explain": _explain,
    "compare": _compare,
    "export": _export,
    "push": _push,
    "serve": _serve,
    "data": _data,
}
_DATA_COMMANDS: dict[str, Callable[..., Any]] = {
    "check": _data_check,
    "download": _data_download,
    "convert": _data_convert,
}
