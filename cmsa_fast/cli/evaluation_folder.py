"""The output folder of a command, and the results of one that was stopped."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..evaluation.mask_files import RunLengths
    from ..evaluation.results import ExpressionResult
    from ..system.processes import Processes

_logger = logging.getLogger(__name__)


@contextmanager
def evaluation_folder(out: Path | None, parent: Path, stem: str, processes: Processes) -> Iterator[Path]:
    """A folder for results, the same for all processes.

    It is created before the evaluation, so that a place that is not writable is reported early and two
    simultaneous evaluations never use the same folder. At the end of the block it is removed if it is empty.
    Without `out`, the folder that the user named, it is a new one in `parent` whose name starts with `stem`.
    """
    if out is not None and out.exists() and not out.is_dir():
        raise NotADirectoryError(f"--out must be a folder; {out} is a file.")
    if out is not None and out.is_dir() and any(out.iterdir()):
        raise FileExistsError(
            f"--out {out} is not empty, and a command never overwrites results; choose a new folder."
        )
    created = None
    if processes.is_first:
        if out is None:
            created = _new_folder(parent, stem)
        elif not out.is_dir():
            out.mkdir(parents=True)
            created = out
    try:
        yield processes.gather(created or out)[0]
    finally:
        if created is not None:
            with suppress(OSError):  # it is not empty
                created.rmdir()


def write_partial_results(
    folder: Path,
    done: list[ExpressionResult],
    masks: Mapping[int, RunLengths],
    expressions: int,
    processes: Processes,
) -> None:
    """Write the results of an evaluation that was stopped, and the masks if there are any, without metrics."""
    from ..evaluation.mask_files import write_predictions
    from ..evaluation.results import write_results

    if not done:
        return
    process = "" if processes.count == 1 else f"-{processes.rank}"
    path = folder / f"sentences-so-far{process}.csv"
    try:
        write_results(path, done)
        if masks:
            write_predictions(folder / f"masks-so-far{process}.jsonl", done, masks)
    except OSError as error:
        _logger.warning("The results so far could not be written: %s", error)
    else:
        _logger.warning(
            "Stopped after %d of %d expressions; their results are in %s", len(done), expressions, path
        )


def _new_folder(parent: Path, stem: str) -> Path:
    for count in itertools.count(1):
        folder = parent / (stem if count == 1 else f"{stem}-{count}")
        with suppress(FileExistsError):
            folder.mkdir()
            break
    return folder
