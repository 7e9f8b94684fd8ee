"""The tail of a CMSA level, Eq. 4 of Ye et al., CVPR 2019, written straight to [B, C, P]."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..validation import (
    autocast,
    check_alike,
    check_backend,
    check_floating,
    check_image_index,
    check_range,
    check_triton,
)
from . import projection_eager as tail_torch

_AXES = {
    "attended": "batch, places, width",
    "output_weight": "channels, width",
    "unit_visual": "batch, places, visual channels",
    "mean_word": "batch, word channels",
    "coordinates": "coordinates, places",
}


def level_tail(
    attended: Tensor,
    output_weight: Tensor,
    unit_visual: Tensor,
    mean_word: Tensor,
    coordinates: Tensor,
    *,
    image_index: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Output projection plus residual: Eq. 4 of Ye et al., CVPR 2019, once the mean over words is taken.

    result[b] = output_weight attended[b]^T + [unit_visual[b]^T; mean_word[b] at every place; coordinates],
    the residual's three parts one below the other. Neither this concatenation nor a transposed copy of the result
    is made, forward or backward: only "reference" makes both.

    The visual features are of unit length already, because the attention's projections need them so; their mean
    over words, and that of the coordinates, are what they are.

    Args:
        attended: [B, P, d]; any strides, as all arguments.
        output_weight: [C, d], the paper's W_vhat, with C = Cv + Cl + S.
        unit_visual: [B, P, Cv], or [B_images, P, Cv] with image_index. Fastest as the transpose of [B, Cv, P],
            which is how normalised features of [B, Cv, H, W] lie in memory.
        mean_word: [B, Cl], the mean over real words of the unit word vectors.
        coordinates: [S, P], of all images; S is 8 in the paper.
        image_index: int64 [B], which of the B_images images each expression belongs to. None: expression b belongs
            to image b.
        backend: "reference" is the literal form; "torch" fills the result with the residual and lets the
            library's matmul add to it; "triton" is one kernel, with its gradients by the library's matmul; "auto"
            is "torch" everywhere, because "triton" is not yet measured against it on a GPU. A backend asked for
            by name never gives way to another.

    Returns:
        [B, C, P], contiguous but for "reference", in the inputs' dtype (under autocast in autocast's). All dtypes
        are float64, float32, bfloat16 or float16. Products are summed in float32, or in float64 for float64.

    Raises:
        TypeError: an argument is no tensor or has the wrong dtype.
        ValueError: shapes or devices do not fit, image_index is out of range, or backend is unknown; or "triton"
            is asked for by name where it cannot run.
        ImportError: "triton" is asked for by name and not installed.
        RuntimeError: the gradient of "triton" is differentiated again.
    """
    check_backend(backend)
    parts = _cast((attended, output_weight, unit_visual, mean_word, coordinates))
    _check_shapes(*parts)
    _check_images(parts[2], len(parts[0]), image_index)
    if backend == "triton":
        check_triton(parts[0])
    with torch.autocast(parts[0].device.type, enabled=False):
        return _implementation(backend)(*parts, image_index)


def _implementation(backend: str) -> Callable[..., Tensor]:
    if backend == "reference":
        return _literal
    if backend == "triton":
        from . import projection_ops as tail_ops

        return tail_ops.level_tail
    return tail_torch.level_tail


def _literal(
    attended: Tensor,
    output_weight: Tensor,
    unit_visual: Tensor,
    mean_word: Tensor,
    coordinates: Tensor,
    image_index: Tensor | None,
) -> Tensor:
    """Eq. 4 as printed: the residual concatenated, [B, P, C], and the sum transposed."""
    batch, places, _ = attended.shape
    residual = torch.cat(
        [
            unit_visual if image_index is None else unit_visual[image_index],
            mean_word[:, None].expand(-1, places, -1),
            coordinates.T.expand(batch, -1, -1),
        ],
        dim=2,
    )
    return (torch.nn.functional.linear(attended, output_weight) + residual).mT


def _cast(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Floating tensors of one dtype, once autocast has cast them, and one device."""
    for name, part in zip(_AXES, parts, strict=True):
        check_floating(name, part)
    parts = autocast(*parts)
    for name, part in zip(_AXES, parts, strict=True):
        check_alike(name, part, "attended", parts[0])
    return parts


def _check_shapes(
    attended: Tensor,
    output_weight: Tensor,
    unit_visual: Tensor,
    mean_word: Tensor,
    coordinates: Tensor,
) -> None:
    parts = (attended, output_weight, unit_visual, mean_word, coordinates)
    for (name, axes), part in zip(_AXES.items(), parts, strict=True):
        sizes = part.shape[1:] if axes.startswith("batch") else part.shape
        if part.ndim != axes.count(",") + 1 or 0 in sizes:
            raise ValueError(
                f"{name} must have shape [{axes}] with at least one of each; got {list(part.shape)}."
            )
    batch, places, width = attended.shape
    channels = unit_visual.shape[2] + mean_word.shape[1] + len(coordinates)
    if output_weight.shape != (channels, width):
        raise ValueError(
            f"output_weight must have shape [channels, width] = [{channels}, {width}], channels being the sum "
            f"of those of unit_visual, mean_word and coordinates; got {list(output_weight.shape)}."
        )
    if unit_visual.shape[1] != places:
        raise ValueError(
            f"unit_visual must have the places of attended, {places}; got {unit_visual.shape[1]}."
        )
    if len(mean_word) != batch:
        raise ValueError(
            f"mean_word must have the batch of attended, {batch}; got {len(mean_word)}."
        )
    if coordinates.shape[1] != places:
        raise ValueError(
            f"coordinates must have the places of attended, {places}; got {coordinates.shape[1]}."
        )


def _check_images(unit_visual: Tensor, expressions: int, image_index: Tensor | None) -> None:
    images = len(unit_visual)
    if image_index is None:
        if images != expressions:
            raise ValueError(
                f"unit_visual must have the batch of attended, {expressions}, unless image_index says which "
                f"image each expression belongs to; got {images}."
            )
        return
    check_image_index(image_index, expressions, "attended", unit_visual.device)
    if expressions and not images:
        raise ValueError(
            f"unit_visual must hold at least one image for {expressions} expressions; got 0."
        )
    check_range("image_index", image_index, images)
