"""Registered models of small odd sizes, and two images with three expressions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cmsa_fast.models import build_model

WORDS = torch.tensor([[0, 3, 4], [5, 6, 7], [1, 2, 8]])
MASK = torch.tensor([[False, True, True], [True] * 3, [True, True, False]])
INDEX = torch.tensor([1, 0, 1])


def build(name: str, **options: Any) -> Any:
    """A model in eval mode, by name."""
    torch.manual_seed(0)
    given: dict[str, Any] = {
        "vocabulary_size": 9,
        "backbone": "narrow",
        "narrow_widths": (8, 8, 8, 16, 24),
        "word_channels": 6,
        "attention_channels": 8,
        "fused_channels": 7,
    }
    return build_model(name, **(given | options)).eval()


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(2, 3, 37, 50, dtype=dtype, generator=torch.Generator().manual_seed(1))
