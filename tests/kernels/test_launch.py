"""Launching of Triton kernels: how work is split, and PyTorch's setting of the precision."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton, which is not installed")

from cmsa_fast.kernels.triton.launch import launch, row_splits  # noqa: E402


def test_rows_are_split_to_fill_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmsa_fast.kernels.triton.launch.interpreted", lambda: False)
    assert row_splits(5, 16, 0) == (1, 16)
    assert row_splits(1600, 64, 25) == (5, 320)
    assert row_splits(1600, 64, 200) == (1, 1600)


def test_either_interface_of_pytorch_sets_the_precision() -> None:
    """In its own process, because PyTorch does not allow both interfaces in one."""
    code = (
        "import torch\n"
        "from cmsa_fast.kernels.triton.launch import precision\n"
        "before = precision(torch.float32)\n"
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'\n"
        "print(before, precision(torch.float32), precision(torch.float64))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ieee", "tf32", "ieee"]


def test_grid_beyond_the_limit_of_cuda_raises() -> None:
    with pytest.raises(ValueError, match="at most 65535 images or expressions at once; got 65536"):
        launch(None, (1, 65536), torch.zeros(1))
