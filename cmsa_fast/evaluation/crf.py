"""Dense CRF (Krähenbühl and Koltun, NeurIPS 2011): refines probabilities along image edges, by pydensecrf."""

from __future__ import annotations

import importlib
import math
import sys
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

# PyTorch is imported only where tensors are used, so that the processes of `crf_pool` start without it.
if TYPE_CHECKING:
    from torch import Tensor

    ArrayLike = TypeVar("ArrayLike", np.ndarray, Tensor)

_CLIP = 1e-6
# Resizing probabilities in float32 exceeds 1 by a few units in the last place.
_ROUNDING = 1e-5
# pydensecrf keeps lattice coordinates in 16 bits; beyond these ranges, in standard deviations, they wrap.
_POSITION_RANGE = 10_000
_BILATERAL_RANGE = 3_000


@dataclass(frozen=True)
class CrfParameters:
    """Parameters of the two pairwise terms and of the inference.

    The defaults are those CMSA was published with (lwye/CMSA-Net, main_cmsa.py), there on images of 320 x 320.

    Attributes:
        gaussian_sxy: Standard deviation of the smoothness term's positions, in pixels.
        gaussian_compat: Weight of the smoothness term (Potts).
        bilateral_sxy: Standard deviation of the appearance term's positions, in pixels.
        bilateral_srgb: Standard deviation of its colours, in grey levels of 0 to 255.
        bilateral_compat: Weight of the appearance term (Potts).
        iterations: Mean-field steps.

    Raises:
        TypeError: A value is not a number, or `iterations` is not an integer.
        ValueError: A value is not positive and finite.
    """

    gaussian_sxy: float = 3
    gaussian_compat: float = 3
    bilateral_sxy: float = 20
    bilateral_srgb: float = 3
    bilateral_compat: float = 10
    iterations: int = 5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            kind, expected = (
                (Integral, "an integer of at least 1")
                if name == "iterations"
                else (Real, "a positive finite number")
            )
            if isinstance(value, bool) or not isinstance(value, kind):
                raise TypeError(f"{name} must be {expected}, but it is {value!r}.")
            if not (math.isfinite(float(value)) and float(value) > 0):
                raise ValueError(f"{name} must be {expected}, but it is {value}.")


PAPER = CrfParameters()


def dense_crf(
    image: np.ndarray | Tensor, probabilities: ArrayLike, parameters: CrfParameters = PAPER
) -> ArrayLike:
    """Label probabilities after mean-field inference in a fully connected CRF.

    The unary term is -log p, with p clipped to [1e-6, 1 - 1e-6] so that p = 0 and p = 1 stay finite. The
    pairwise terms are a Gaussian of position and a Gaussian of position and colour, both with Potts
    compatibility and symmetric normalization. Runs on the CPU, on one thread.

    Args:
        image: uint8 `[H, W, 3]`, RGB, array or tensor of any strides.
        probabilities: Floating-point `[L, H, W]`, array or tensor of any strides: one plane for each of
            L >= 2 labels, in [0, 1] (1e-5 beyond is taken as rounding). They need not sum to 1.
        parameters: Of the CRF.

    Returns:
        float32 `[L, H, W]`, summing to 1 over the labels: an array, or a tensor on the device of
        `probabilities`, as `probabilities` is. It has no gradient.

    Raises:
        ImportError: pydensecrf is not installed.
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape is wrong, sizes differ, values are NaN or outside [0, 1], or a parameter is out of
            range for an image of this size.
    """
    result = _mean_field(
        _as_array("image", image), _as_array("probabilities", probabilities), parameters
    )
    if isinstance(probabilities, np.ndarray):
        return result
    import torch

    return torch.from_numpy(result).to(probabilities.device)


def refine(image: Tensor, probability: Tensor, parameters: CrfParameters = PAPER) -> Tensor:
    """Foreground probability after `dense_crf` with the labels background and foreground, [1 - p, p].

    Args:
        image: uint8 `[3, H, W]` tensor, RGB.
        probability: Floating-point `[H, W]` tensor, of the foreground, in [0, 1].
        parameters: Of the CRF.

    Returns:
        float32 `[H, W]`, on the device of `probability`, without gradient.

    Raises:
        ImportError, TypeError, ValueError: As for `dense_crf`.
    """
    import torch

    result = refine_array(*as_arrays(image, probability), parameters)
    return torch.from_numpy(result).to(probability.device)


def as_arrays(image: Tensor, probability: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The arguments of `refine` as arrays; TypeError for anything but tensors."""
    import torch

    for name, value in (("image", image), ("probability", probability)):
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, but it is a {type(value).__name__}.")
    return _as_array("image", image), _as_array("probability", probability)


def refine_array(
    image: np.ndarray, probability: np.ndarray, parameters: CrfParameters
) -> np.ndarray:
    """`refine` on arrays: uint8 `[3, H, W]` and floating-point `[H, W]` to float32 `[H, W]`."""
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"image must be [3, H, W], but its shape is {list(image.shape)}.")
    if probability.ndim != 2:
        raise ValueError(f"probability must be [H, W], but its shape is {list(probability.shape)}.")
    _check_probabilities("probability", probability)
    foreground = probability.astype(np.float32)
    both = np.stack([1 - foreground, foreground])
    return _mean_field(image.transpose(1, 2, 0), both, parameters)[1]


def import_densecrf() -> Any:
    """The module pydensecrf.densecrf; ImportError with the command that installs it if it is missing."""
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


def _mean_field(
    image: np.ndarray, probabilities: np.ndarray, parameters: CrfParameters
) -> np.ndarray:
    _check(image, probabilities, parameters)
    densecrf = import_densecrf()
    labels, height, width = probabilities.shape
    unary = -np.log(np.clip(probabilities.astype(np.float32), _CLIP, 1 - _CLIP))
    field = densecrf.DenseCRF2D(width, height, labels)
    # pydensecrf rejects arrays that are read-only or not C-contiguous.
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


def _as_array(name: str, value: Any) -> np.ndarray:
    """An array or tensor as an array, sharing memory where possible."""
    if isinstance(value, np.ndarray):
        return value
    import torch

    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be an array or a tensor, but it is a {type(value).__name__}.")
    value = value.detach().cpu()
    # NumPy has no bfloat16; float32 holds all of its values.
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
        raise TypeError(f"{name} must have a floating-point dtype, but it has {values.dtype}.")
    if values.size == 0:
        return
    low, high = values.min(), values.max()
    if np.isnan(low):
        raise ValueError(f"{name} must be in [0, 1], but there are NaN.")
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise ValueError(f"{name} must be in [0, 1], but the values go from {low} to {high}.")
