"""Mean-field inference in a dense CRF (Krähenbühl and Koltun, NeurIPS 2011), by pydensecrf."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .parameters import CrfParameters, crf_parameters

# PyTorch is imported where a tensor comes in, so that a process that refines arrays starts without it.
if TYPE_CHECKING:
    from torch import Tensor

    ArrayLike = TypeVar("ArrayLike", np.ndarray, Tensor)

_CLIP = 1e-6
# Resizing probabilities in float32 passes 1 by a few units in the last place.
_ROUNDING = 1e-5
# pydensecrf keeps lattice coordinates in 16 bits: beyond these ranges, in standard deviations, they wrap.
_POSITION_RANGE = 10_000
_BILATERAL_RANGE = 3_000


def dense_crf(
    image: np.ndarray | Tensor,
    probabilities: ArrayLike,
    *,
    preset: str = "paper",
    gaussian_sxy: float | None = None,
    gaussian_compat: float | None = None,
    bilateral_sxy: float | None = None,
    bilateral_srgb: float | None = None,
    bilateral_compat: float | None = None,
    iterations: int | None = None,
) -> ArrayLike:
    """Label probabilities after mean-field inference in a fully connected CRF.

    The unary term is -log p, with p clipped to [1e-6, 1 - 1e-6] so that a saturated p stays finite. The
    pairwise terms are a Gaussian of position and a Gaussian of position and colour, both with Potts
    compatibility and symmetric normalisation. Runs on the CPU, on one thread.

    Args:
        image: uint8 `[H, W, 3]`, RGB, array or tensor of any strides.
        probabilities: floating `[L, H, W]`, array or tensor of any strides: one plane for each of L >= 2
            labels, in [0, 1] (1e-5 beyond is taken as rounding). They need not sum to one.
        preset: a name in `PRESETS`. The parameters below stand in for its own where they are given;
            `CrfParameters` describes them.
        gaussian_sxy: in pixels.
        gaussian_compat: no unit.
        bilateral_sxy: in pixels.
        bilateral_srgb: in grey levels of 0 to 255.
        bilateral_compat: no unit.
        iterations: mean-field steps.

    Returns:
        float32 `[L, H, W]`, summing to one over the labels; an array, or a tensor on the device of
        `probabilities`, as they are. It carries no gradient.

    Raises:
        ImportError: pydensecrf is missing.
        TypeError: an argument of the wrong kind or dtype.
        ValueError: a wrong shape, sizes that differ, NaN or values outside [0, 1], an unknown preset, a
            parameter that is not positive and finite, or one out of range for an image of this size.
    """
    parameters = crf_parameters(
        preset,
        gaussian_sxy=gaussian_sxy,
        gaussian_compat=gaussian_compat,
        bilateral_sxy=bilateral_sxy,
        bilateral_srgb=bilateral_srgb,
        bilateral_compat=bilateral_compat,
        iterations=iterations,
    )
    result = mean_field(
        as_array("image", image), as_array("probabilities", probabilities), parameters
    )
    if isinstance(probabilities, np.ndarray):
        return result
    import torch

    return torch.from_numpy(result).to(probabilities.device)


def refine(
    image: Tensor, probability: Tensor, *, preset: str = "paper", **parameters: float | None
) -> Tensor:
    """Foreground probability after inference with the labels background and foreground, [1 - p, p].

    Args:
        image: uint8 `[3, H, W]` tensor, RGB.
        probability: floating `[H, W]` tensor, of the foreground, in [0, 1].
        preset: as for `dense_crf`.
        parameters: as for `dense_crf`.

    Returns:
        float32 `[H, W]`, on the device of `probability`, without gradient.

    Raises:
        ImportError: pydensecrf is missing.
        TypeError: an argument of the wrong kind or dtype.
        ValueError: as for `dense_crf`.
    """
    import torch

    result = refine_array(*arrays_of(image, probability), crf_parameters(preset, **parameters))
    return torch.from_numpy(result).to(probability.device)


def arrays_of(image: Tensor, probability: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The arguments of `refine` as arrays; raises TypeError for anything but tensors."""
    import torch

    for name, value in (("image", image), ("probability", probability)):
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, but it is a {type(value).__name__}.")
    return as_array("image", image), as_array("probability", probability)


def refine_array(
    image: np.ndarray, probability: np.ndarray, parameters: CrfParameters
) -> np.ndarray:
    """`refine` on arrays: uint8 `[3, H, W]` and floating `[H, W]` to float32 `[H, W]`."""
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"image must be [3, H, W], but its shape is {list(image.shape)}.")
    if probability.ndim != 2:
        raise ValueError(f"probability must be [H, W], but its shape is {list(probability.shape)}.")
    _check_probabilities("probability", probability)
    foreground = probability.astype(np.float32)
    both = np.stack([1 - foreground, foreground])
    return mean_field(image.transpose(1, 2, 0), both, parameters)[1]


def mean_field(
    image: np.ndarray, probabilities: np.ndarray, parameters: CrfParameters
) -> np.ndarray:
    """`dense_crf` on arrays."""
    _check(image, probabilities, parameters)
    densecrf = import_densecrf()
    labels, height, width = probabilities.shape
    unary = -np.log(np.clip(probabilities.astype(np.float32), _CLIP, 1 - _CLIP))
    field = densecrf.DenseCRF2D(width, height, labels)
    # pydensecrf refuses arrays that are read-only or not contiguous in C order.
    field.setUnaryEnergy(np.ascontiguousarray(unary.reshape(labels, -1)))
    field.addPairwiseGaussian(sxy=parameters.gaussian_sxy, compat=parameters.gaussian_compat)
    field.addPairwiseBilateral(
        sxy=parameters.bilateral_sxy,
        srgb=parameters.bilateral_srgb,
        rgbim=np.array(image, order="C"),
        compat=parameters.bilateral_compat,
    )
    result = np.array(field.inference(int(parameters.iterations)), order="C")
    if not np.isfinite(result).all():
        raise ValueError(
            "The CRF's energies overflow float32: gaussian_compat and bilateral_compat are too large "
            f"({parameters.gaussian_compat} and {parameters.bilateral_compat})."
        )
    return result.reshape(labels, height, width)


def import_densecrf() -> Any:
    """The module pydensecrf.densecrf.

    Raises:
        ImportError: it is missing; the message says how to install it.
    """
    try:
        return importlib.import_module("pydensecrf.densecrf")
    except ImportError as error:
        how = "pip install 'cmsa_fast[crf]'"
        if sys.version_info >= (3, 13):
            how = (
                "pip install cython setuptools wheel && "
                "CYTHON_FORCE_REGEN=1 pip install --no-build-isolation pydensecrf2"
            )
        raise ImportError(
            f"The dense CRF needs pydensecrf, which cannot be imported ({error}). Install it with: {how} "
            "It is compiled on installation, which takes a C++ compiler and Python's headers "
            "(Debian: apt-get install g++ python3-dev)."
        ) from error


def as_array(name: str, value: Any) -> np.ndarray:
    """An array or tensor as an array, sharing memory where it can."""
    if isinstance(value, np.ndarray):
        return value
    import torch

    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be an array or a tensor, but it is a {type(value).__name__}.")
    value = value.detach().cpu()
    # NumPy has no bfloat16; every one of its values is a float32.
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def _check(image: np.ndarray, probabilities: np.ndarray, parameters: CrfParameters) -> None:
    if image.dtype != np.uint8:
        raise TypeError(f"image must have dtype uint8, but it has {image.dtype}.")
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image must be [H, W, 3], but its shape is {list(image.shape)}.")
    if probabilities.ndim != 3:
        raise ValueError(
            f"probabilities must be [L, H, W], but their shape is {list(probabilities.shape)}."
        )
    if len(probabilities) < 2:
        raise ValueError(
            f"probabilities must have at least 2 labels, but they have {len(probabilities)}."
        )
    size = image.shape[:2]
    if probabilities.shape[1:] != size:
        raise ValueError(
            f"image and probabilities must have one size, but they have {list(size)} and "
            f"{list(probabilities.shape[1:])}."
        )
    if 0 in size:
        raise ValueError(f"image must have pixels, but its shape is {list(image.shape)}.")
    _check_probabilities("probabilities", probabilities)
    for name, extent, limit in (
        ("gaussian_sxy", max(size), _POSITION_RANGE),
        ("bilateral_sxy", max(size), _BILATERAL_RANGE),
        ("bilateral_srgb", 255, _BILATERAL_RANGE),
    ):
        least, value = extent / limit, getattr(parameters, name)
        if value < least:
            raise ValueError(
                f"{name} must be at least {least:.2g} for an image of {size[1]} x {size[0]} pixels, "
                f"but it is {value}."
            )


def _check_probabilities(name: str, values: np.ndarray) -> None:
    if not np.issubdtype(values.dtype, np.floating):
        raise TypeError(f"{name} must have a floating dtype, but it has {values.dtype}.")
    if values.size == 0:
        return
    low, high = values.min(), values.max()
    if np.isnan(low):
        raise ValueError(f"{name} must be in [0, 1], but there are NaN.")
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise ValueError(f"{name} must be in [0, 1], but the values go from {low} to {high}.")
