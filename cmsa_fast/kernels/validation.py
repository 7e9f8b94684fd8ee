"""Checks of tensor arguments, shared by the public functions and by `cmsa_fast.nn`.

Every error names the argument, what was expected and what came. No check waits for a GPU: a rule about values
raises a ValueError on the CPU; elsewhere and in traced graphs it is a `torch._assert_async`. A process whose GPU
finds it violated cannot use that GPU any more.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .backends import autocast

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def check_floating(name: str, part: Tensor) -> None:
    if not isinstance(part, Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(part).__name__}.")
    if part.dtype not in _DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        raise TypeError(f"{name} must have one of the dtypes {allowed}; got {part.dtype}.")


def check_alike(name: str, part: Tensor, first_name: str, first: Tensor) -> None:
    """Check that two tensors have one dtype and one device."""
    if part.dtype != first.dtype:
        raise TypeError(f"{name} must have the dtype of {first_name}, {first.dtype}; got {part.dtype}.")
    if part.device != first.device:
        raise ValueError(f"{name} must be on the device of {first_name}, {first.device}; got {part.device}.")


def check_features(features: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Cast floating tensors as autocast does, and check that they then have one dtype and one device."""
    for name, part in features.items():
        check_floating(name, part)
    cast = autocast(*features.values())
    first_name = next(iter(features))
    for name, part in zip(features, cast, strict=True):
        check_alike(name, part, first_name, cast[0])
    return cast


def check_shape(name: str, part: Tensor, axes: str) -> None:
    """Check the rank, and that no axis is empty except "batch"; `axes` lists their names."""
    sizes = part.shape[1:] if axes.startswith("batch") else part.shape
    if part.ndim != axes.count(",") + 1 or 0 in sizes:
        raise ValueError(f"{name} must have shape [{axes}] with at least one of each; got {list(part.shape)}.")


def check_size(name: str, size: int, what: str, first_name: str, first_size: int) -> None:
    """Check that two tensors agree in one axis, which `what` names."""
    if size != first_size:
        raise ValueError(f"{name} must have the {what} of {first_name}, {first_size}; got {size}.")


def check_leading_shape(name: str, part: Tensor, first_name: str, first: Tensor) -> None:
    """Check that two tensors agree in their first two axes."""
    if part.shape[:2] != first.shape[:2]:
        raise ValueError(
            f"{name} must begin with the shape of {first_name}, {list(first.shape[:2])}; got {list(part.shape)}."
        )


def check_mask(
    name: str, mask: Tensor, axes: str, shape: Sequence[int], like_name: str, device: torch.device
) -> None:
    """Check a bool tensor of `shape` on the device of argument `like_name`; `axes` lists its axes' names."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"{name} must be a bool tensor; got {_kind(mask)}.")
    if mask.shape != torch.Size(shape):
        raise ValueError(f"{name} must have shape [{axes}] = {list(shape)}; got {list(mask.shape)}.")
    if mask.device != device:
        raise ValueError(f"{name} must be on the device of {like_name}, {device}; got {mask.device}.")


def check_word_mask(word_mask: Tensor, shape: Sequence[int], like_name: str, device: torch.device) -> None:
    """Check a mask [batch, words] that has a real word in every expression."""
    check_mask("word_mask", word_mask, "batch, words", shape, like_name, device)
    check_rows("word_mask must have a true word in every expression", "expressions", word_mask)


def check_rows(rule: str, rows: str, mask: Tensor) -> None:
    """Check that every row of a mask has a true entry; the message is the rule and the rows that break it."""
    if not _values_can_be_read(mask):
        torch._assert_async(mask.any(1).all(), f"{rule}.")
        return
    empty = (~mask.any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"{rule}; {rows} {empty[:8]} of {len(mask)} have none.")


def check_images(
    image_name: str,
    images: int,
    expression_name: str,
    expressions: int,
    image_index: Tensor | None,
    device: torch.device,
) -> None:
    """Check that every expression has an image: as many of both, or a valid image_index.

    Args:
        image_name: Name of the argument that holds the images.
        images: Number of images.
        expression_name: Name of the argument that holds the expressions.
        expressions: Number of expressions.
        image_index: int64 [expressions] with values in 0..images - 1, or None.
        device: Device of the expressions.
    """
    if image_index is None:
        if expressions != images:
            raise ValueError(
                f"{image_name} has {images} images and {expression_name} {expressions} expressions; "
                "they must be equal unless image_index says which image each expression belongs to."
            )
        return
    check_image_index(image_index, expressions, expression_name, device)
    if expressions and not images:
        raise ValueError(f"{image_name} must hold at least one image for {expressions} expressions; got 0.")
    check_range("image_index", image_index, images)


def check_image_index(image_index: Tensor, expressions: int, like_name: str, device: torch.device) -> None:
    """Check type, shape and device of an image_index; `check_range` checks its values."""
    if not isinstance(image_index, Tensor) or image_index.dtype != torch.int64:
        raise TypeError(f"image_index must be an int64 tensor; got {_kind(image_index)}.")
    if image_index.shape != (expressions,):
        raise ValueError(f"image_index must have shape [batch] = [{expressions}]; got {list(image_index.shape)}.")
    if image_index.device != device:
        raise ValueError(f"image_index must be on the device of {like_name}, {device}; got {image_index.device}.")


def check_range(name: str, index: Tensor, count: int) -> None:
    """Check that values are in 0..count - 1."""
    if not _values_can_be_read(index):
        # Without the count, which as a part of a message would be a constant of a traced graph.
        torch._assert_async(
            (index.clamp(0, count - 1) == index).all(), f"{name} has a value that is out of range."
        )
    elif len(index) and not 0 <= int(index.min()) <= int(index.max()) < count:
        raise ValueError(
            f"{name} must lie in 0..{count - 1}; got values from {int(index.min())} to {int(index.max())}."
        )


def _values_can_be_read(tensor: Tensor) -> bool:
    """Whether Python may read values without waiting for a device, and there are any."""
    is_real = not torch.compiler.is_compiling() and not isinstance(tensor, FakeTensor)
    return is_real and tensor.device.type == "cpu"


def _kind(part: object) -> str:
    return str(part.dtype) if isinstance(part, Tensor) else type(part).__name__
