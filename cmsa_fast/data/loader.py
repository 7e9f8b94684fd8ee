"""Batches from a data set, read in this process or in workers beside it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch.utils.data import DataLoader, Dataset

from .batch import Batch, Collate
from .errors import ErrorCollector
from .types import ReferringDataset, Sample


class BatchLoader:
    """Reads batches of items, and raises what goes wrong with them as it was raised.

    A `DataLoader` alone packs an error of a worker, with its traceback, into the message of another one;
    here a damaged image gives the same expression with workers and without.
    """

    def __init__(
        self,
        dataset: ReferringDataset,
        batches: Iterable[list[int]],
        collate: Collate | Callable[[list[Sample]], Batch],
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        errors: ErrorCollector | None = None,
    ) -> None:
        """
        Args:
            dataset: the items.
            batches: indices of the items of each batch.
            collate: makes a batch of samples.
            num_workers: processes that read beside this one; 0: none.
            pin_memory: give batches in page-locked memory.
            problems: takes the items that cannot be read, each once. None: the first one is an error.
        """
        self._problems = errors or ErrorCollector(strict=True)
        self._told: set[int] = set()
        self._loader: DataLoader[_Loaded | Exception] = DataLoader(
            _Batches(dataset, collate, self._problems.strict),
            batch_size=None,
            sampler=batches,
            num_workers=num_workers,
            pin_memory=pin_memory,
            worker_init_fn=leave_interrupts_to_the_main_process,
        )

    def __iter__(self) -> Iterator[Batch | None]:
        """The batches, in order; None where no item of a batch can be used.

        Raises:
            TypeError, ValueError, OSError: an item could not be read or put into a batch, where problems
                are errors.
            ChildProcessError: a process that reads was killed.
        """
        return (batch for _, batch in self.with_indices())

    def with_indices(self) -> Iterator[tuple[list[int], Batch | None]]:
        """The indices of the items in each batch, and the batch; as iterating over the loader."""
        for loaded in self._loaded():
            if isinstance(loaded, Exception):
                raise loaded
            for index, error in loaded.errors:
                if index not in self._told:  # an item may be asked for in every epoch
                    self._told.add(index)
                    self._problems.add(error)
            yield loaded.indices, loaded.batch

    def _loaded(self) -> Iterator[_Loaded | Exception]:
        try:
            yield from self._loader
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise ChildProcessError(
                "A process that reads images ended by itself; most often there is too little memory, and "
                f"fewer num_workers help. ({error})"
            ) from error


@dataclass
class _Loaded:
    indices: list[int]
    batch: Batch | None
    errors: list[tuple[int, Exception]]  # with the indices of their items

    def pin_memory(self) -> _Loaded:
        """`DataLoader(pin_memory=True)` calls this."""
        return _Loaded(
            self.indices, None if self.batch is None else self.batch.pin_memory(), self.errors
        )


class _Batches(Dataset[_Loaded | Exception]):
    """Indices -> a batch, or the error in its place, which crosses to the main process unchanged."""

    def __init__(
        self,
        dataset: ReferringDataset,
        collate: Collate | Callable[[list[Sample]], Batch],
        strict: bool,
    ) -> None:
        self.dataset = dataset
        self.collate = collate
        self.strict = strict

    def __getitem__(self, indices: list[int]) -> _Loaded | Exception:
        try:
            batch = self.collate([self.dataset[index] for index in indices])
        except (TypeError, ValueError, OSError) as error:
            return error if self.strict else self._usable(indices)
        return _Loaded(indices, batch, [])

    def _usable(self, indices: list[int]) -> _Loaded:
        """The batch of those items that can be read, and put into a batch with those before them."""
        usable, samples, errors = list[int](), list[Sample](), list[tuple[int, Exception]]()
        batch = None
        for index in indices:
            try:
                sample = self.dataset[index]
                batch = self.collate([*samples, sample])
            except (TypeError, ValueError, OSError) as error:
                errors.append((index, error))
            else:
                usable.append(index)
                samples.append(sample)
        return _Loaded(usable, batch, errors)


def available_processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def leave_interrupts_to_the_main_process(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the main one saves and then ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
