"""Test of a data-loading worker that is killed."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from cmsa_fast.data.batch import Collate
from cmsa_fast.data.loader import BatchLoader
from cmsa_fast.data.types import Sample
from cmsa_fast.data.vocabulary import Vocabulary


class Killed:
    """A data set that kills the process that reads it."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        os.kill(os.getpid(), signal.SIGKILL)
        mask = torch.zeros(3, 3, dtype=torch.bool)
        return Sample(torch.zeros(3, 3, 3, dtype=torch.uint8), mask, "dog", 0, 0, 0)

    def expressions(self) -> list[str]:
        return ["dog"]

    def image_ids(self) -> list[int]:
        return [0]


def test_killed_worker_raises_child_process_error() -> None:
    collate = Collate(Vocabulary.from_expressions(["dog"]), 32)
    loader = BatchLoader(Killed(), [[0]], collate, num_workers=1)
    with pytest.raises(ChildProcessError, match="use fewer num_workers"):
        list(loader)
