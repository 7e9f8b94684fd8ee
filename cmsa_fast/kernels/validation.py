"""Checks of arguments that the public functions share, the choice of backend, and autocast."""

import functools
import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor

BACKENDS = ("auto", "reference", "torch", "triton")

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_OLDEST_CAPABILITY = (8, 0)


def check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}.")


def automatic_backend(features: Sequence[Tensor]) -> str:
    """The backend that "auto" stands for, by the first of the features as they are computed with."""
    first = features[0]
    if not first.is_cuda or first.dtype not in _TRITON_DTYPES:
        return "torch"
    # Whoever compiles for a GPU has Triton.
    if torch.compiler.is_compiling() or not _obstacle(first.device):
        return "triton"
    return "torch"


def check_triton(first: Tensor) -> None:
    """Whether the Triton kernels, asked for by name, can run on the device and in the dtype of the features.

    Raises:
        ImportError: Triton is not installed.
        TypeError: the dtype is float64, on a GPU.
        ValueError: the device is no GPU that the kernels run on, nor is Triton in its interpreter.
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
    """Why the Triton kernels cannot run on a device, or an empty text."""
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


def check_floating(name: str, part: Tensor) -> None:
    if not isinstance(part, Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(part).__name__}.")
    if part.dtype not in _DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        raise TypeError(f"{name} must have one of the dtypes {allowed}; got {part.dtype}.")


def check_alike(name: str, part: Tensor, first_name: str, first: Tensor) -> None:
    """One dtype and one device."""
    if part.dtype != first.dtype:
        raise TypeError(
            f"{name} must have the dtype of {first_name}, {first.dtype}; got {part.dtype}."
        )
    if part.device != first.device:
        raise ValueError(
            f"{name} must be on the device of {first_name}, {first.device}; got {part.device}."
        )


def check_mask(
    name: str, mask: Tensor, axes: str, shape: Sequence[int], of_name: str, device: torch.device
) -> None:
    """A bool tensor of `shape`, whose axes have the names `axes`, on the device of argument `of_name`."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{name} must be a bool tensor; got {found}.")
    if mask.shape != torch.Size(shape):
        raise ValueError(
            f"{name} must have shape [{axes}] = {list(shape)}; got {list(mask.shape)}."
        )
    if mask.device != device:
        raise ValueError(f"{name} must be on the device of {of_name}, {device}; got {mask.device}.")


def check_word_mask(
    word_mask: Tensor, shape: Sequence[int], of_name: str, device: torch.device
) -> None:
    """[batch, words] with a true word in every expression."""
    check_mask("word_mask", word_mask, "batch, words", shape, of_name, device)
    check_rows("word_mask must have a true word in every expression", "sentences", word_mask)


def check_rows(rule: str, rows: str, mask: Tensor) -> None:
    """A true entry in every row [rows, ...] of a mask; the message is the rule and which rows break it."""
    if not values_can_be_read(mask):
        torch._assert_async(mask.any(1).all(), f"{rule}.")
        return
    empty = (~mask.any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"{rule}; {rows} {empty[:8]} of {len(mask)} have none.")


def check_image_index(
    image_index: Tensor, expressions: int, of_name: str, device: torch.device
) -> None:
    """int64 [expressions] on the device of argument `of_name`; `check_range` looks at its values."""
    if not isinstance(image_index, Tensor) or image_index.dtype != torch.int64:
        found = image_index.dtype if isinstance(image_index, Tensor) else type(image_index).__name__
        raise TypeError(f"image_index must be an int64 tensor; got {found}.")
    if image_index.shape != (expressions,):
        raise ValueError(
            f"image_index must have shape [batch] = [{expressions}]; got {list(image_index.shape)}."
        )
    if image_index.device != device:
        raise ValueError(
            f"image_index must be on the device of {of_name}, {device}; got {image_index.device}."
        )


def check_range(name: str, index: Tensor, count: int) -> None:
    """Values in 0..count - 1."""
    rule = f"{name} must lie in 0..{count - 1}"
    if not values_can_be_read(index):
        torch._assert_async(((index >= 0) & (index < count)).all(), f"{rule}.")
    elif len(index) and not 0 <= int(index.min()) <= int(index.max()) < count:
        raise ValueError(f"{rule}; got values from {int(index.min())} to {int(index.max())}.")


def values_can_be_read(tensor: Tensor) -> bool:
    """Whether the host may look at values: not while a graph is traced or a CUDA graph captured.

    There the same rules are asserted on the device, `torch._assert_async`.
    """
    if torch.compiler.is_compiling():
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


def autocast(*features: Tensor) -> tuple[Tensor, ...]:
    """Cast as autocast casts the operands of a matrix product."""
    device = features[0].device.type
    if not torch.is_autocast_enabled(device):
        return features
    dtype = torch.get_autocast_dtype(device)
    return tuple(part if part.dtype == torch.float64 else part.to(dtype) for part in features)
