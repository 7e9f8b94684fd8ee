"""Loads batches of a data set, in this process or in workers, and reports errors of items unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from ..system.processes import ignore_interrupts
from .batch import Batch
from .errors import ErrorCollector
from .types import ReferringDataset, Sample


class BatchLoader:
    """Iterates over batches, with the same errors whether worker processes are used or not.

    A `DataLoader` wraps an error of a worker, with its traceback, in the message of another error. Here the
    original error reaches the main process, where it is raised or collected.

    Args:
        dataset: Data set.
        batches: Item indices of each batch.
        collate: Makes a batch of samples.
        num_workers: As for `DataLoader`.
        pin_memory: As for `DataLoader`.
        errors: Collects the errors of items, each item once. None raises the first.
    """

    def __init__(
        self,
        dataset: ReferringDataset,
        batches: Iterable[list[int]],
        collate: Callable[[list[Sample]], Batch],
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        errors: ErrorCollector | None = None,
    ) -> None:
        self._errors = errors or ErrorCollector(strict=True)
        self._reported: set[int] = set()
        self._loader: DataLoader[_Loaded | Exception] = DataLoader(
            _Batches(dataset, collate, self._errors.strict),
            batch_size=None,
            sampler=batches,
            num_workers=num_workers,
            pin_memory=pin_memory,
            worker_init_fn=ignore_interrupts,
            generator=torch.Generator(),  # the global one belongs to the training
        )

    def __iter__(self) -> Iterator[tuple[list[int], Batch | None]]:
        """Yields the indices of the usable items of each batch, and the batch: None if there are none.

        Raises:
            TypeError, ValueError, OSError: An item cannot be read or collated, and errors are not collected.
            ChildProcessError: A worker process was killed.
        """
        for loaded in self._loaded():
            if isinstance(loaded, Exception):
                raise loaded
            for index, error in loaded.errors:
                if index not in self._reported:  # training loads an item once per epoch
                    self._reported.add(index)
                    self._errors.add(error)
            yield loaded.indices, loaded.batch

    def _loaded(self) -> Iterator[_Loaded | Exception]:
        try:
            yield from self._loader
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise ChildProcessError(
                "A data-loading worker was killed, most often because memory ran out; use fewer num_workers. "
                f"({error})"
            ) from error


@dataclass
class _Loaded:
    indices: list[int]
    batch: Batch | None
    errors: list[tuple[int, Exception]]  # with the index of the item

    def pin_memory(self) -> _Loaded:
        """Called by `DataLoader(pin_memory=True)`."""
        batch = None if self.batch is None else self.batch.pin_memory()
        return _Loaded(self.indices, batch, self.errors)


class _Batches(Dataset[_Loaded | Exception]):
    """Maps indices to a batch, or to the error, which is returned so that it is not wrapped."""

    def __init__(self, dataset: ReferringDataset, collate: Callable[[list[Sample]], Batch], strict: bool) -> None:
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
        """The batch of the items that can be read and collated together with those before them."""
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
