"""Batches from a data set, read in this process or in workers beside it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator

from torch.utils.data import DataLoader, Dataset

from .batch import Batch, Collate
from .sample import ReferringDataset, Sample


class BatchLoader:
    """Reads batches of items, and raises what goes wrong with them as it was raised.

    A `DataLoader` alone packs an error of a worker, with its traceback, into the message of another one;
    here a damaged picture gives the same sentence with workers and without.
    """

    def __init__(
        self,
        dataset: ReferringDataset,
        batches: Iterable[list[int]],
        collate: Collate | Callable[[list[Sample]], Batch],
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        """
        Args:
            dataset: the items.
            batches: indices of the items of each batch.
            collate: makes a batch of samples.
            num_workers: processes that read beside this one; 0: none.
            pin_memory: give batches in page-locked memory.
        """
        self._loader: DataLoader[Batch | Exception] = DataLoader(
            _Batches(dataset, collate),
            batch_size=None,
            sampler=batches,
            num_workers=num_workers,
            pin_memory=pin_memory,
            worker_init_fn=_leave_interrupts_to_the_main_process,
        )

    def __iter__(self) -> Iterator[Batch]:
        """The batches, in order.

        Raises:
            TypeError, ValueError, OSError: an item could not be read or put into a batch.
        """
        for batch in self._loader:
            if isinstance(batch, Exception):
                raise batch
            yield batch


class _Batches(Dataset[Batch | Exception]):
    """Indices -> a batch, or the error in its place, which crosses to the main process unchanged."""

    def __init__(
        self, dataset: ReferringDataset, collate: Collate | Callable[[list[Sample]], Batch]
    ) -> None:
        self.dataset = dataset
        self.collate = collate

    def __getitem__(self, indices: list[int]) -> Batch | Exception:
        try:
            return self.collate([self.dataset[index] for index in indices])
        except (TypeError, ValueError, OSError) as error:
            return error


def _leave_interrupts_to_the_main_process(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the main one saves and then ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
