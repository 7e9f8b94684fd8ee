"""The command line: the only place that reads argv and prints."""

import logging
import sys
from collections.abc import Sequence

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
    app.command(_train, name="train")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return app.cli(
            args=arguments,
            prog="cmsa-fast",
            description="Referring image segmentation with CMSA.",
            config=(tyro.conf.OmitArgPrefixes,),
        )
    except KeyboardInterrupt:
        return 130
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        print(f"cmsa-fast: {error}", file=sys.stderr)
        return 1


def _train(options: TrainOptions) -> int:
    from .report import format_result
    from .train_job import run_training

    print(format_result(run_training(options)))
    return 0
