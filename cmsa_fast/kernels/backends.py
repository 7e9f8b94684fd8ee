"""The choice of backend ("reference", "torch" or "triton") and of the dtype to compute in."""

import functools
import importlib.util

import torch
from torch import Tensor

BACKENDS = ("auto", "reference", "torch", "triton")

_TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_OLDEST_CAPABILITY = (8, 0)


def check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}.")


def choose_backend(backend: str, first: Tensor) -> str:
    """Resolve "auto" for the device and dtype of the first input; raise if "triton" cannot run there."""
    if backend == "auto":
        return automatic_backend(first)
    if backend == "triton":
        check_triton(first)
    return backend


def automatic_backend(first: Tensor) -> str:
    """The backend that "auto" stands for, given the first input after autocast."""
    if not first.is_cuda or first.dtype not in _TRITON_DTYPES:
        return "torch"
    # A compiler for GPUs needs Triton itself, so Triton is installed.
    if torch.compiler.is_compiling() or not _obstacle(first.device):
        return "triton"
    return "torch"


def check_triton(first: Tensor) -> None:
    """Check that the Triton kernels can run on the device and in the dtype of an input.

    Raises:
        ImportError: Triton is not installed.
        TypeError: The dtype is float64, on a GPU.
        ValueError: The device is neither a supported GPU nor the CPU under Triton's interpreter.
    """
    if torch.compiler.is_compiling():
        return  # the operator checks again when it runs
    obstacle = _obstacle(first.device)
    if obstacle:
        error = ImportError if "installed" in obstacle else ValueError
        raise error(f'backend="triton" {obstacle} Use backend="torch" instead.')
    if first.is_cuda and first.dtype not in _TRITON_DTYPES:
        raise TypeError(
            'backend="triton" computes in float32, bfloat16 or float16 on a GPU; '
            f'got {first.dtype}. Use backend="torch" instead.'
        )


@functools.lru_cache
def _obstacle(device: torch.device) -> str:
    """Why the Triton kernels cannot run on a device, or an empty string."""
    if importlib.util.find_spec("triton") is None:
        return "needs the package triton, which is not installed."
    if device.type == "cpu":
        import triton

        if triton.knobs.runtime.interpret:
            return ""
    if device.type != "cuda" or torch.version.hip:
        return f"runs on NVIDIA GPUs (and on the CPU in Triton's interpreter, TRITON_INTERPRET=1); got {device}."
    capability = torch.cuda.get_device_capability(device)
    if capability < _OLDEST_CAPABILITY:
        return (
            f"needs compute capability {'.'.join(map(str, _OLDEST_CAPABILITY))} or newer; "
            f"{device} has {'.'.join(map(str, capability))}."
        )
    return ""


def autocast(*features: Tensor) -> tuple[Tensor, ...]:
    """Cast as autocast casts the operands of a matrix product; float64 stays."""
    device = features[0].device.type
    if not torch.is_autocast_enabled(device):
        return features
    dtype = torch.get_autocast_dtype(device)
    return tuple(part if part.dtype == torch.float64 else part.to(dtype) for part in features)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums over inputs of a dtype: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
