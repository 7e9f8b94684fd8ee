"""Checks of arguments that the public functions share, the choice of backend, and autocast."""

import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor

BACKENDS = ("auto", "reference", "torch", "triton")

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_backend(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}.")


def automatic_backend(features: Sequence[Tensor]) -> str:
    """The backend that "auto" stands for, by the first of the features as they are computed with."""
    first = features[0]
    if first.is_cuda and first.dtype in _TRITON_DTYPES and importlib.util.find_spec("triton"):
        return "triton"
    return "torch"


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
    """[batch, words] with a true word in every sentence."""
    check_mask("word_mask", word_mask, "batch, words", shape, of_name, device)
    empty = rows_without_true(word_mask)
    if empty:
        raise ValueError(
            "word_mask must have a true word in every sentence; "
            f"sentences {empty[:8]} of {len(word_mask)} have none."
        )


def rows_without_true(mask: Tensor) -> list[int]:
    return (~mask.any(1)).nonzero().flatten().tolist()


def autocast(*features: Tensor) -> tuple[Tensor, ...]:
    """Cast as autocast casts the operands of a matrix product."""
    device = features[0].device.type
    if not torch.is_autocast_enabled(device):
        return features
    dtype = torch.get_autocast_dtype(device)
    return tuple(part if part.dtype == torch.float64 else part.to(dtype) for part in features)
