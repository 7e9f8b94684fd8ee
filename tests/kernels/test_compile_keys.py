"""What a launch compiles does not depend on the number of places, words and images.

Only `level_tail` is left out: its inputs keep their strides, whose divisibility decides how wide a load may be.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.measuring import in_fresh_process

# Places, words, images: divisible by 16 and not, as are their numbers of tiles; one of everything.
SIZES = ((1600, 20, 2), (1601, 19, 3), (2048, 32, 2), (100, 20, 16), (37, 30, 1))


def new(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def separable(places: int, words: int, batch: int, grouped: bool = False) -> None:
    from cmsa_fast.kernels.separable_attention.state import Sizes
    from cmsa_fast.kernels.separable_attention.triton import schedule

    features = [new(batch, count, 512) for count in [places] * 3 + [words] * 3]
    index = new(batch, dtype=torch.int64) if grouped else None
    attended, state = schedule.forward(features, new(batch, words, dtype=torch.float32), index)
    schedule.backward(torch.empty_like(attended), attended, index, Sizes.of(features), state)


CALLS = {
    "separable": separable,
    "separable with image_index": functools.partial(separable, grouped=True),
}


def compiled(name: str) -> list[dict[str, set[str]]]:
    """For each size: what the launches of a call would compile for sm_90, by kernel."""
    os.environ.pop("TRITON_INTERPRET", None)
    import triton

    from benchmarks.compile_report.driver import Driver

    by_size: list[dict[str, set[str]]] = []

    def refuse(key: str, fn: Any, **_: Any) -> bool:
        """Note the key and end the launch."""
        by_size[-1].setdefault(fn.name.rpartition(".")[2], set()).add(key)
        return True

    triton.knobs.runtime.jit_cache_hook = refuse
    triton.runtime.driver.set_active(Driver(90))
    for size in SIZES:
        by_size.append({})
        CALLS[name](*size)
    return by_size


@pytest.mark.parametrize("name", CALLS)
def test_sizes_compile_to_the_same_kernels(name: str) -> None:
    first, *others = in_fresh_process(compiled, name)
    assert len(first) > 1
    for size, kernels in zip(SIZES[1:], others, strict=True):
        assert [kernel for kernel in first if kernels[kernel] != first[kernel]] == [], size
