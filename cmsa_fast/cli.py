"""The command line: the only place that reads argv and prints."""

import logging
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from .commands.compare import CompareOptions
from .commands.evaluate import EvaluateOptions
from .config import TrainOptions


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; `cmsa-fast --help` lists them.

    Args:
        arguments: as on the command line. None: those the process was started with.

    Returns:
        The exit status: 0 done, 1 failed, 130 stopped by Ctrl-C. A usage error exits with 2.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    app = tyro.extras.SubcommandApp()
    app.command(name="train")(_train)
    app.command(name="evaluate")(_evaluate)
    app.command(name="compare")(_compare)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return app.cli(
            args=given,
            prog="cmsa-fast",
            description="Referring image segmentation with CMSA.",
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
        )
    except SystemExit as stop:
        if stop.code in (None, 0) and given[:1] == ["evaluate"]:
            from .conventions import conventions_table

            print("\nconventions\n\n" + conventions_table())
        raise
    except KeyboardInterrupt:
        return 130
    except (ValueError, TypeError, OSError, FloatingPointError, ImportError) as error:
        from .data.problems import in_one_line

        print(f"cmsa-fast: {in_one_line(error)}", file=sys.stderr)
        return 1


def _train(options: Annotated[TrainOptions, tyro.conf.arg(name="")]) -> int:
    """Train a referring segmentation model, evaluate it, and draw what it finds.

    Without options this trains the demo preset on the embedded drawn scenes: the paper's architecture, narrow,
    in some minutes on two CPU cores. Look into the run folder for pictures/, metrics.jsonl and evaluation.json.

    The full-size model on RefCOCO:
    python train.py --preset paper --data refer --root DATA --evaluate-split val
    """
    from .report import format_result
    from .train_job import run_training

    print(format_result(run_training(options)))
    return 0


def _evaluate(options: Annotated[EvaluateOptions, tyro.conf.arg(name="")]) -> int:
    """Measure a trained model on every sentence of a split.

    Prints a table; writes evaluation.json, sentences.csv (a row for each sentence) and pictures of the best and
    the worst. Without --data it takes the data and the split that the run named.

    cmsa-fast evaluate RUN

    cmsa-fast evaluate RUN --data refer --root DATA --split testA --crf

    torchrun --nproc-per-node 4 -m cmsa_fast evaluate RUN
    """
    from .commands.evaluate import run_evaluate
    from .report import format_evaluation

    result = run_evaluate(options)
    if result.is_first:
        print(format_evaluation(result))
    return 0


def _compare(options: Annotated[CompareOptions, tyro.conf.arg(name="")]) -> int:
    """Compare two evaluations of the same sentences: which sentences differ, and how sure the difference is.

    cmsa-fast compare RUN/evaluation-refer-val-native OTHER/evaluation-refer-val-native
    """
    from .commands.compare import format_compare, run_compare

    print(format_compare(run_compare(options)))
    return 0
