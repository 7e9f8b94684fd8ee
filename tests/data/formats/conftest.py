"""Fixtures of the tests of formats."""

from __future__ import annotations

import logging
import resource
from collections.abc import Iterator

import pytest


@pytest.fixture
def quiet_within_little_memory(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Hides the log, and checks that the test takes less than 300 MB."""
    caplog.set_level(logging.CRITICAL)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
