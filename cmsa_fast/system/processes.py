"""Several processes that share one evaluation, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

# A process may wait for a slower one as long as it takes; torchrun ends all of them when one fails.
_PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Processes:
    """This process among its fellows.

    Attributes:
        rank: Its number, from 0.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """What every process gives, by rank; the same list in all of them. All must call it.

        Raises:
            ConnectionError: Another process ended before it called this.
        """
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        try:
            distributed.all_gather_object(values, value)
        except RuntimeError as error:
            raise ConnectionError(
                f"Process {self.rank} of {self.count} stops, because another one ended before its work was "
                "done; see what that one says."
            ) from error
        return values


ALONE = Processes()


@contextmanager
def joined_processes(device: str = "auto") -> Iterator[Processes]:
    """The processes that torchrun started, for as long as the block lasts; one alone without torchrun.

    Unless `device` names another one, with CUDA each takes the device of its local rank.

    Args:
        device: Where they compute, as --device says: "auto" and "cuda" are the device of the local rank.

    Raises:
        ValueError: There are more local processes than CUDA devices.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device in ("auto", "cuda") and torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"torchrun started more processes than there are CUDA devices: local rank {local} "
                f"of {torch.cuda.device_count()} devices."
            )
        torch.cuda.set_device(local)
    # Results are gathered on the CPU; no tensor of a device crosses.
    distributed.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield Processes(distributed.get_rank(), count)
    finally:
        distributed.destroy_process_group()
