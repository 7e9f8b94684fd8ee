"""The check that a damaged record is an error, or is left out and reported."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cmsa_fast.data import ErrorCollector, RecordDataset


def check_left_out(
    opened: Callable[[ErrorCollector], RecordDataset], message: str, expressions: list[str], lost: int = 1
) -> list[str]:
    """Opens a damaged data set in strict mode, then without its `lost` records; returns the error messages."""
    with pytest.raises(ValueError, match=message):
        opened(ErrorCollector(strict=True))
    errors = ErrorCollector(strict=False)
    data = opened(errors)
    assert data.expressions() == expressions
    assert errors.count == data.report.unusable_records == lost
    assert not any("\n" in line for line in errors.messages)
    return errors.messages
