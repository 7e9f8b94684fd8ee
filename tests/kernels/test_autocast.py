"""Under autocast every public function casts its inputs, except float64, before it compares their dtypes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cmsa_fast.kernels import (
    cross_modal_attention,
    joint_attention,
    joint_attention_tail,
    level_tail,
    received_word_attention,
)

SHAPES: dict[Callable[..., Tensor], list[tuple[int, ...]]] = {
    cross_modal_attention: [(2, 6, 4)] * 3 + [(2, 3, 4)] * 3,
    received_word_attention: [(2, 6, 4), (2, 3, 4), (2, 3, 4)],
    joint_attention: [(2, 6, 4), (2, 5, 4), (2, 5, 4)],
    joint_attention_tail: [(2, 6, 3, 4), (5, 4), (5,)],
    level_tail: [(2, 6, 4), (9, 4), (2, 6, 5), (2, 3), (1, 6)],
}


@pytest.mark.parametrize("function", SHAPES)
def test_mixed_dtypes(function: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    parts = [torch.randn(shape) for shape in SHAPES[function]]
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    mixed: list[Any] = [part.to(dtypes[number % 3]) for number, part in enumerate(parts)]
    with pytest.raises(TypeError, match=r"must have the dtype of .*, torch\.float32; got torch\.bfloat16"):
        function(*mixed)
    with torch.autocast("cpu", torch.bfloat16):
        result = function(*mixed)
        with pytest.raises(TypeError, match=r"must have the dtype of .*, torch\.bfloat16; got torch\.float64"):
            function(*mixed[:-1], mixed[-1].double())
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, function(*(part.bfloat16() for part in mixed)))
