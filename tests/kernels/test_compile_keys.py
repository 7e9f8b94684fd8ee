"""What a launch compiles does not depend on the number of places, words and images.

Only `level_tail` is left out: its inputs keep their strides, whose divisibility decides how wide a load may be.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.measuring import in_fresh_process

# Images, places, words: divisible by 16 and not, as are their numbers of tiles; one image, and one tile of places.
SIZES = ((2, 1600, 20), (3, 1601, 19), (2, 2048, 32), (16, 128, 20), (1, 2049, 30))


def new(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def compiled(family: str, variant: str) -> list[dict[str, set[str]]]:
    """For each size: what the launches of a call would compile for sm_90, by kernel."""
    os.environ.pop("TRITON_INTERPRET", None)
    import triton

    from benchmarks.compile_report.cases import Case, Size, run
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
        for _ in run(Case(family, 90, "bfloat16", 512, variant), Size(*size), new):
            pass
    return by_size


@pytest.mark.parametrize(("family", "variant"), [("separable", "plain"), ("separable", "image_index")])
def test_sizes_compile_to_the_same_kernels(family: str, variant: str) -> None:
    first, *others = in_fresh_process(compiled, family, variant)
    assert len(first) > 1
    for size, kernels in zip(SIZES[1:], others, strict=True):
        assert [kernel for kernel in first if kernels[kernel] != first[kernel]] == [], size
