"""The choice of backend ("reference", "torch" or "triton"), and autocast and dtypes of a computation.

"auto" is one rule for every function of `cmsa_fast.kernels`, also while a graph is traced:

- "triton" where products run on tensor cores: CUDA tensors in bfloat16 or float16, or in float32 with TF32 allowed
  (`torch.backends.cuda.matmul.fp32_precision == "tf32"`), on NVIDIA GPUs of compute capability 8.0 or newer, if
  Triton is installed;
- "torch" elsewhere: on the CPU, in float64, in float32 without TF32, and with more words than the kernels take.

The reason is counted, not measured. At 1600 places and width 512 the forward products of an image are 5.2 GFLOP.
The arithmetic peak of an H100 allows 5 us for them in bfloat16, 11 us in TF32 and 78 us in float32. "torch"
computes 16-bit input in float32 and passes about nine times over a float32 array of all pairs of places: 92 MB,
27 us. "triton" writes and reads one such array. On tensor cores the passes cost more than the products. Without
them the products dominate, and the library's are faster than Triton's.
"""

import contextlib
import functools
import importlib.util

import torch
from torch import Tensor

BACKENDS = ("auto", "reference", "torch", "triton")

_HALF_DTYPES = (torch.bfloat16, torch.float16)
_OLDEST_CAPABILITY = (8, 0)


def check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}.")


def choose_backend(backend: str, first: Tensor) -> str:
    """Resolve "auto" for the device and dtype of the first input; raise if "triton" cannot run there."""
    if backend == "auto":
        return _automatic_backend(first.device, first.dtype)
    if backend == "triton":
        check_triton(first)
    return backend


def _automatic_backend(device: torch.device, dtype: torch.dtype) -> str:
    on_tensor_cores = dtype in _HALF_DTYPES or (dtype == torch.float32 and uses_tf32())
    return "triton" if device.type == "cuda" and on_tensor_cores and not _obstacle(device) else "torch"


# What `torch.compiler.assume_constant_result` sets, without its import of the compiler, which takes 1 s. A graph
# is traced again after a change of PyTorch's setting of TF32.
setattr(_automatic_backend, "_dynamo_marked_constant", True)  # noqa: B010


def uses_tf32() -> bool:
    """PyTorch's setting for float32 products on GPUs; both of its interfaces change it."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


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
    if first.is_cuda and first.dtype not in (torch.float32, *_HALF_DTYPES):
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
    if not torch.cuda.device_count():
        return "runs on NVIDIA GPUs; PyTorch finds none."
    capability = torch.cuda.get_device_capability(device)
    if capability < _OLDEST_CAPABILITY:
        return (
            f"needs compute capability {'.'.join(map(str, _OLDEST_CAPABILITY))} or newer; "
            f"{device} has {'.'.join(map(str, capability))}."
        )
    return ""


def autocast(*features: Tensor) -> tuple[Tensor, ...]:
    """Cast as autocast casts the operands of a matrix product; float64 stays."""
    device = features[0].device
    if not is_autocast_enabled(device):
        return features
    dtype = torch.get_autocast_dtype(device.type)
    return tuple(part if part.dtype == torch.float64 else part.to(dtype) for part in features)


def is_autocast_enabled(device: torch.device) -> bool:
    """`torch.is_autocast_enabled`, and False for the meta device, which has no autocast."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    if is_autocast_enabled(device):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums over inputs of a dtype: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
