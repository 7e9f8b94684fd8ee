"""The command line: the only place that reads argv and prints."""

import logging
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from .config import TrainOptions


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; `cmsa-fast --help` lists them.

    Args:
        arguments: as on the command line. None: those the process was started with.

    Returns:
        The exit status: 0 done, 1 failed, 130 stopped by Ctrl-C. A usage error exits with 2.
    """
    app = tyro.extras.SubcommandApp()
    app.command(name="train")(_train)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return app.cli(
            args=arguments,
            prog="cmsa-fast",
            description="Referring image segmentation with CMSA.",
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
        )
    except KeyboardInterrupt:
        return 130
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        print(f"cmsa-fast: {_in_one_line(error)}", file=sys.stderr)
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


def _in_one_line(error: Exception) -> str:
    """What an error says, with the notes that say where it happened."""
    parts = [str(error) or type(error).__name__, *getattr(error, "__notes__", [])]
    return " ".join(" ".join(parts).split())
