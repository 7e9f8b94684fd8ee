"""Fixtures shared by every test."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from cmsa_fast.system.processes import configure_openmp

configure_openmp()  # before torch is loaded
# Before NumPy is loaded, and whatever the environment says: Triton's interpreter multiplies with OpenBLAS, whose
# kernels for Haswell round A B^T and (B A^T)^T differently, so a softmax recomputed in backward would differ from
# the one in forward. Those for Prescott run on every x86 and round alike.
if platform.machine() in ("x86_64", "AMD64"):
    os.environ["OPENBLAS_CORETYPE"] = "Prescott"

import torch  # noqa: E402

# Before Triton is imported: without a GPU the kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real data, which is not part of the repository.

    `CMSA_FAST_REAL` names it; without that variable it is looked for beside the repository, in
    `../shared/real`. Tests that ask for it are skipped where it is absent.
    """
    folder = Path(os.environ.get("CMSA_FAST_REAL", REPOSITORY.parent / "shared" / "real"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set CMSA_FAST_REAL to the folder that has it")
    return folder
