"""The output projection plus residual of a CMSA level (Eq. 4 of Ye et al., CVPR 2019) as a public function."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..backends import autocast, check_backend, choose_backend, without_autocast
from ..validation import check_features, check_images, check_shape, check_size
from . import projection_eager

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
    """Output projection plus residual: Eq. 4 of Ye et al., CVPR 2019, after the mean over words.

    result[b] = output_weight attended[b]^T + [unit_visual[b]^T; mean_word[b] at every place; coordinates], with
    the residual's three parts concatenated along channels. "torch" and "triton" make neither this concatenation
    nor a transposed copy of the result, forward or backward.

    Unit visual features and coordinates equal their own mean over words; only the word part is averaged.

    Args:
        attended: [B, P, d]; any strides, as all arguments.
        output_weight: [C, d], the paper's W_vhat, with C = Cv + Cl + S.
        unit_visual: [B, P, Cv], or [B_images, P, Cv] with image_index. Fastest as the transpose of [B, Cv, P],
            the memory layout of normalised features [B, Cv, H, W].
        mean_word: [B, Cl], the mean over real words of the unit word vectors.
        coordinates: [S, P], the same for all images; S is 8 in the paper.
        image_index: int64 [B], the image of each expression among B_images. None: Expression b belongs to
            image b.
        backend: "reference" is the literal form; "torch" fills the result with the residual and accumulates the
            projection by matmul; "triton" is one kernel, whose gradients are matmuls; "auto" is described in
            `cmsa_fast.kernels.backends`. A backend other than "auto" is never replaced by another.

    Returns:
        [B, C, P], contiguous except for "reference", in the inputs' dtype (under autocast in autocast's). All
        dtypes are float64, float32, bfloat16 or float16. Products are summed in float32, or in float64 for
        float64.

    Raises:
        TypeError: An argument is no tensor or has the wrong dtype.
        ValueError: Shapes or devices do not fit, image_index is out of range, backend is unknown, or "triton"
            cannot run on the inputs.
        ImportError: backend is "triton" and Triton is not installed.
        RuntimeError: The gradient of "triton" is differentiated again.
    """
    check_backend(backend)
    parts = (attended, output_weight, unit_visual, mean_word, coordinates)
    _check(*parts, image_index)
    return unchecked_level_tail(*parts, image_index=image_index, backend=backend)


def unchecked_level_tail(
    attended: Tensor,
    output_weight: Tensor,
    unit_visual: Tensor,
    mean_word: Tensor,
    coordinates: Tensor,
    *,
    image_index: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """`level_tail` without argument checks, for callers that have made them (`cmsa_fast.nn`)."""
    parts = autocast(attended, output_weight, unit_visual, mean_word, coordinates)
    tail = _implementation(choose_backend(backend, parts[0]))
    with without_autocast(parts[0].device):
        return tail(*parts, image_index)


def _implementation(backend: str) -> Callable[..., Tensor]:
    if backend == "reference":
        return _literal
    if backend == "triton":
        from . import ops

        return ops.level_tail
    return projection_eager.level_tail


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


def _check(
    attended: Tensor,
    output_weight: Tensor,
    unit_visual: Tensor,
    mean_word: Tensor,
    coordinates: Tensor,
    image_index: Tensor | None,
) -> None:
    parts = (attended, output_weight, unit_visual, mean_word, coordinates)
    check_features(dict(zip(_AXES, parts, strict=True)))
    for (name, axes), part in zip(_AXES.items(), parts, strict=True):
        check_shape(name, part, axes)
    batch, places, width = attended.shape
    channels = unit_visual.shape[2] + mean_word.shape[1] + len(coordinates)
    if output_weight.shape != (channels, width):
        raise ValueError(
            f"output_weight must have shape [channels, width] = [{channels}, {width}], channels being the sum "
            f"of those of unit_visual, mean_word and coordinates; got {list(output_weight.shape)}."
        )
    check_size("unit_visual", unit_visual.shape[1], "places", "attended", places)
    check_size("mean_word", len(mean_word), "batch", "attended", batch)
    check_size("coordinates", coordinates.shape[1], "places", "attended", places)
    check_images("unit_visual", len(unit_visual), "attended", batch, image_index, attended.device)
