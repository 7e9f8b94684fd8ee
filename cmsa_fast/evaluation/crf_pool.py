"""A pool of processes that run the dense CRF in parallel with the model."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from .crf import PAPER, CrfParameters, as_arrays, import_densecrf, refine_array

if TYPE_CHECKING:
    from torch import Tensor

_MAPS_PER_PROCESS = 4


class RefinementPool:
    """Processes that run `refine`; a context manager.

    Leaving the block waits for all submitted maps; leaving it by an exception, Ctrl-C included, drops those
    that have not started. The processes are started with "spawn", so a script that uses a pool needs
    `if __name__ == "__main__":`. Only the main process reacts to Ctrl-C.

    Args:
        processes: Number of processes. None: one less than the available CPUs, from 1 to 8.
        parameters: Of the CRF.

    Raises:
        ImportError: pydensecrf is not installed.
        TypeError: `processes` is not an integer.
        ValueError: `processes` is less than 1.
    """

    def __init__(self, processes: int | None = None, parameters: CrfParameters = PAPER) -> None:
        if processes is None:
            from ..system.processes import available_processors  # imports PyTorch

            processes = min(8, max(1, available_processors() - 1))
        if isinstance(processes, bool) or not isinstance(processes, int):
            raise TypeError(f"processes must be an integer or None, but it is {processes!r}.")
        if processes < 1:
            raise ValueError(f"processes must be at least 1, but it is {processes}.")
        import_densecrf()
        self._parameters = parameters
        self._room = threading.Semaphore(_MAPS_PER_PROCESS * processes)
        self._executor = ProcessPoolExecutor(
            processes, multiprocessing.get_context("spawn"), initializer=_initialize_process
        )

    def submit(self, image: Tensor, probability: Tensor) -> Future[Tensor]:
        """Submit one probability map; blocks while four maps per process are pending.

        Args:
            image: uint8 `[3, H, W]` tensor, RGB. Copied, like the map: both may be overwritten afterwards.
            probability: Floating-point `[H, W]` tensor, of the foreground, in [0, 1].

        Returns:
            A future of the result of `refine`, float32 `[H, W]` on the CPU. It cannot be cancelled. Its
            `result()` raises what `refine` raises, or ChildProcessError if a process was killed.

        Raises:
            TypeError, ValueError: An argument has the wrong type, dtype or shape.
            ChildProcessError: A process was killed before.
            RuntimeError: The pool is closed.
        """
        image_copy, probability_copy = map(np.array, as_arrays(image, probability))
        refined: Future[Tensor] = Future()
        refined.set_running_or_notify_cancel()
        self._room.acquire()
        try:
            with _sigint_blocked():
                inner = self._executor.submit(refine_array, image_copy, probability_copy, self._parameters)
        except BaseException as error:
            self._room.release()
            if isinstance(error, BrokenProcessPool):
                raise _killed() from error
            raise
        inner.add_done_callback(lambda done: self._deliver(done, refined))
        return refined

    def _deliver(self, done: Future[np.ndarray], refined: Future[Tensor]) -> None:
        import torch

        self._room.release()
        if done.cancelled():
            refined.set_exception(CancelledError("The pool was closed before this map was refined."))
        elif isinstance(error := done.exception(), BrokenProcessPool):
            killed = _killed()
            killed.__cause__ = error
            refined.set_exception(killed)
        elif error is not None:
            refined.set_exception(error)
        else:
            refined.set_result(torch.from_numpy(done.result()))

    def __enter__(self) -> RefinementPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(wait=True, cancel_futures=kind is not None)


def _killed() -> ChildProcessError:
    return ChildProcessError(
        "A process of the refinement pool ended before its work was done, and pending maps are lost: it was "
        "killed, memory ran out, or the script lacks if __name__ == '__main__'."
    )


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Block SIGINT for this thread: a process started meanwhile inherits the mask from its first moment."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _initialize_process() -> None:
    """In a new process: ignore Ctrl-C, and exit when the main process ends for whatever reason."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main = multiprocessing.parent_process()

    def follow() -> None:
        if main is not None:
            main.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
