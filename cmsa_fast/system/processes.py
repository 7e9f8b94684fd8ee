"""Processes, signals and devices: OpenMP settings, Ctrl-C, CPU count, --device and torchrun.

This module does not import torch at the top, so that `configure_openmp` can run before torch is loaded.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# A process may wait for a slower one indefinitely; torchrun ends all of them when one fails.
_TIMEOUT = timedelta(days=30)
_SPIN_COUNT = "30000"


def configure_openmp() -> None:
    """Limit how long idle OpenMP threads spin, unless the user has set how they wait.

    Call it before torch is loaded: libgomp, the OpenMP library of PyTorch's Linux wheels, reads its environment
    when it is loaded. By default its threads spin for milliseconds while they wait for each other; when other
    programs use the CPUs, the thread they wait for is not running, and each parallel region takes a scheduler's
    time slice. 30,000 iterations are some 0.1 ms: as fast as the default on an idle machine.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT


def available_processors() -> int:
    """Number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ignore_interrupts(worker: int) -> None:
    """`worker_init_fn` of a DataLoader: on Ctrl-C only the main process acts; it then ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Defer SIGINT until the block ends.

    A training step runs in such a block: interrupted between the updates of two parameters, a checkpoint would
    hold half a step. Only the main thread receives signals; in other threads the block runs unchanged.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[tuple[Any, ...]] = []
    handler = signal.signal(signal.SIGINT, lambda *arguments: received.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if received and callable(handler):
        handler(*received[0])


def select_device(name: str) -> torch.device:
    """The device of option --device; "auto" is CUDA if available, else the CPU.

    Raises:
        ValueError: The device does not exist or cannot be used.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used here: {error}") from error
    return device


@dataclass(frozen=True)
class Processes:
    """The processes of a torchrun group, as one of them sees it.

    Attributes:
        rank: Index of this process, from 0.
        count: Number of processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Collect a value from every process; all processes must call it.

        Returns:
            The values by rank, the same list in every process.

        Raises:
            ConnectionError: Another process ended before it called this.
        """
        if self.count == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.count
        try:
            distributed.all_gather_object(values, value)
        except RuntimeError as error:
            raise ConnectionError(
                f"Process {self.rank} of {self.count} stops, because another one ended before its work was "
                "done; see the messages of that process."
            ) from error
        return values


ALONE = Processes()


@contextmanager
def joined_processes(device: str = "auto") -> Iterator[Processes]:
    """Join the process group that torchrun started, for the duration of the block.

    With CUDA, each process uses the device of its local rank unless `device` names another one.

    Args:
        device: Value of --device; "auto" and "cuda" select the device of the local rank.

    Yields:
        The group; `ALONE` without torchrun.

    Raises:
        ValueError: There are more local processes than CUDA devices.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    import torch

    # First: it keeps the group as a default argument. Imported later (by torch.compile, for example), it would
    # keep the group's threads beyond destroy_process_group, and one of them can abort the exiting interpreter.
    import torch.distributed.nn
    from torch import distributed

    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device in ("auto", "cuda") and torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"torchrun started more processes than there are CUDA devices: local rank {local} "
                f"of {torch.cuda.device_count()} devices."
            )
        torch.cuda.set_device(local)
    # Results are gathered on the CPU; no device tensors are exchanged.
    distributed.init_process_group("gloo", timeout=_TIMEOUT)
    try:
        yield Processes(distributed.get_rank(), count)
    finally:
        distributed.destroy_process_group()
