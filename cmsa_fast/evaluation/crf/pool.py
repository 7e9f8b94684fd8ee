"""Refinement in other processes, so that a model need not wait for it."""

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

from .mean_field import arrays_of, import_densecrf, refine_array
from .parameters import crf_parameters

if TYPE_CHECKING:
    from torch import Tensor

_UNDER_WAY = 4


class RefinementPool:
    """Processes that run `refine`; a context manager.

    Leaving the block waits for all that was submitted; leaving it by an exception, Ctrl-C included, drops
    what has not begun. The processes are started by "spawn", so a script that uses a pool has its main
    part under `if __name__ == "__main__":`. Ctrl-C reaches only the main process.
    """

    def __init__(
        self, processes: int | None = None, *, preset: str = "paper", **parameters: float | None
    ) -> None:
        """Check the parameters; processes start as images come.

        Args:
            processes: how many; None takes one less than there are CPUs for this process, from 1 to 8.
            preset: as for `dense_crf`.
            parameters: as for `dense_crf`.

        Raises:
            ImportError: pydensecrf is missing.
            TypeError: `processes` is no whole number, or a parameter is of the wrong kind.
            ValueError: `processes` is less than 1, or a parameter is not allowed.
        """
        if processes is None:
            processes = min(8, max(1, _available_cpus() - 1))
        if isinstance(processes, bool) or not isinstance(processes, int):
            raise TypeError(f"processes must be a whole number or None, but it is {processes!r}.")
        if processes < 1:
            raise ValueError(f"processes must be at least 1, but it is {processes}.")
        self._parameters = crf_parameters(preset, **parameters)
        import_densecrf()
        self._room = threading.Semaphore(_UNDER_WAY * processes)
        self._executor = ProcessPoolExecutor(
            processes, multiprocessing.get_context("spawn"), initializer=_start
        )

    def submit(self, image: Tensor, probability: Tensor) -> Future[Tensor]:
        """Have one probability map refined; blocks while four for each process are under way.

        Args:
            image: uint8 `[3, H, W]` tensor, RGB. Copied, like the map: both may be written to afterwards.
            probability: floating `[H, W]` tensor, of the foreground, in [0, 1].

        Returns:
            A future of what `refine` returns, on the CPU: float32 `[H, W]`. It cannot be cancelled. Its
            `result()` raises what `refine` would raise, or ChildProcessError where a process was killed.

        Raises:
            TypeError: an argument is no tensor.
            ChildProcessError: a process was killed before.
            RuntimeError: the pool is closed.
        """
        image_array, probability_array = (np.array(a) for a in arrays_of(image, probability))
        refined: Future[Tensor] = Future()
        refined.set_running_or_notify_cancel()
        self._room.acquire()
        try:
            with _interrupts_kept_from_children():
                inner = self._executor.submit(
                    refine_array, image_array, probability_array, self._parameters
                )
        except BrokenProcessPool as error:
            self._room.release()
            raise _lost() from error
        except BaseException:
            self._room.release()
            raise
        inner.add_done_callback(lambda done: self._deliver(done, refined))
        return refined

    def _deliver(self, done: Future[np.ndarray], refined: Future[Tensor]) -> None:
        import torch

        self._room.release()
        if done.cancelled():
            refined.set_exception(CancelledError("The pool was closed before this map's turn."))
        elif isinstance(error := done.exception(), BrokenProcessPool):
            lost = _lost()
            lost.__cause__ = error
            refined.set_exception(lost)
        elif error is not None:
            refined.set_exception(error)
        else:
            refined.set_result(torch.from_numpy(done.result()))

    def __enter__(self) -> RefinementPool:
        """The pool itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait, or after an exception drop what has not begun; then end the processes."""
        self._executor.shutdown(wait=True, cancel_futures=kind is not None)


def _available_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _lost() -> ChildProcessError:
    return ChildProcessError(
        "A process of the refinement pool ended before its work was done, and what was under way is lost: "
        "it was killed, memory ran out, or the script lacks if __name__ == '__main__'."
    )


@contextmanager
def _interrupts_kept_from_children() -> Iterator[None]:
    """Block SIGINT for this thread: a process that starts meanwhile inherits that from its first moment."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start() -> None:
    """In a new process: leave Ctrl-C to the main process, and end with it however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main = multiprocessing.parent_process()

    def follow() -> None:
        if main is not None:
            main.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
