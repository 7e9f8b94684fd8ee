"""Fills new buffers with NaN, so that a kernel that reads unwritten memory changes its result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor


def poison_new_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what `torch.empty` and its like return: NaN for floating-point numbers, 77 for others."""

    def poisoned(create: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def create_poisoned(*arguments: Any, **options: Any) -> Tensor:
            tensor = create(*arguments, **options)
            return tensor.fill_(torch.nan if tensor.is_floating_point() else 77)

        return create_poisoned

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(Tensor, "new_empty", poisoned(Tensor.new_empty))
