"""Parity, then speed, of every form: on a GPU at the paper's size, on the CPU at a smaller one.

No speed fails a test. `python -m benchmarks.gpu` measures all sizes and dtypes.
"""

import functools
from typing import Any

import pytest
import torch

from .gpu import budget, forms, parity, plan

CPU_SIZE = plan.separable_size(400, 10, 1)
GPU_SIZES = {
    "separable": plan.HEADLINE,
    "joint": plan.joint_size(plan.WIDTH, 1),
    "tail": plan.tail_size(8),
    "projection": plan.projection_size(512, 8),
    "level": plan.level_size(512, 8),
    "model": plan.model_size(1),
}


@functools.cache
def exact(
    operation: str, size: tuple[tuple[str, int], ...], dtype: str, device: str
) -> tuple[budget.Case, parity.Exact]:
    case = forms.draw(operation, dict(size), budget.torch_dtype(dtype), device, logits=budget.logits(dtype))
    return case, parity.exact(operation, dict(size), case, dtype)


def measure(operation: str, name: str, size: dict[str, int], dtype: str, device: str, benchmark: Any) -> None:
    """Check that a form keeps the error budget, then time it forward and backward."""
    case, truth = exact(operation, tuple(size.items()), dtype, device)
    bound = parity.bind(operation, name, size, case)
    errors = parity.compare(bound, case, truth)
    assert errors["kept"], errors

    def run() -> None:
        bound.both()
        if device != "cpu":
            torch.cuda.synchronize()

    benchmark.extra_info |= {"size": size, "dtype": dtype, "parity": errors}
    benchmark.pedantic(run, rounds=5, warmup_rounds=1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", plan.OWN)
@pytest.mark.parametrize("operation", GPU_SIZES)
def test_own_form_on_a_gpu(operation: str, name: str, benchmark: Any) -> None:
    measure(operation, name, GPU_SIZES[operation], "bfloat16", "cuda", benchmark)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", ["sdpa efficient", "naive", "chunked"])
def test_peer_on_a_gpu(name: str, benchmark: Any) -> None:
    measure("joint", name, GPU_SIZES["joint"], "bfloat16", "cuda", benchmark)


@pytest.mark.parametrize("name", ["torch", "naive", "chunked"])
def test_form_on_a_cpu(name: str, benchmark: Any) -> None:
    """The speed of Triton's interpreter is meaningless, and compiled peers are measured only on a GPU."""
    measure("separable", name, CPU_SIZE, "float32", "cpu", benchmark)
