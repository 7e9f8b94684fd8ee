"""Test of a data-loading worker that is killed."""

from __future__ import annotations

import os
import signal

import pytest

from cmsa_fast.data.batch import Collate
from cmsa_fast.data.loader import BatchLoader
from cmsa_fast.data.scenes.dataset import ScenesDataset
from cmsa_fast.data.types import Sample
from cmsa_fast.data.vocabulary import Vocabulary


class Killed(ScenesDataset):
    """A data set that kills the process that reads it."""

    def __getitem__(self, index: int) -> Sample:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_killed_worker_raises_child_process_error() -> None:
    collate = Collate(Vocabulary.from_expressions(["dog"]), 32)
    loader = BatchLoader(Killed(1), [[0]], collate, num_workers=1)
    with pytest.raises(ChildProcessError, match="use fewer num_workers"):
        list(loader)
