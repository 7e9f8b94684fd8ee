"""Dense CRF (Krähenbühl and Koltun, NeurIPS 2011): refines probabilities along image edges, by pydensecrf."""

from __future__ import annotations

import importlib
import math
import sys
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np

# PyTorch is imported only where tensors are used, so that the processes of `crf_pool` start without it.
if TYPE_CHECKING:
    from torch import Tensor

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

    Raises:
        TypeError: A value is not a number, or `iterations` is not an integer.
        ValueError: A value is not positive and finite.
    """

    gaussian_sxy: float = 3  # standard deviation of the smoothness term's positions, in pixels
    gaussian_compat: float = 3  # weight of the smoothness term (Potts)
    bilateral_sxy: float = 20  # standard deviation of the appearance term's positions, in pixels
    bilateral_srgb: float = 3  # standard deviation of its colours, in grey levels of 0 to 255
    bilateral_compat: float = 10  # weight of the appearance term (Potts)
    iterations: int = 5  # mean-field steps

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


def dense_crf(image: np.ndarray, probabilities: np.ndarray, parameters: CrfParameters = PAPER) -> np.ndarray:
    """Label probabilities after mean-field inference in a fully connected CRF.

    The unary term is -log p, with p clipped to [1e-6, 1 - 1e-6] so that p = 0 and p = 1 stay finite. The
    pairwise terms are a Gaussian of position and a Gaussian of position and colour, both with Potts
    compatibility and symmetric normalization. Runs on the CPU, on one thread.

    Args:
        image: uint8 `[H, W, 3]`, RGB, of any strides.
        probabilities: Floating-point `[L, H, W]`, of any strides: one plane for each of L >= 2 labels, in [0, 1]
            (1e-5 beyond is taken as rounding). They need not sum to 1.
        parameters: Of the CRF.

    Returns:
        float32 `[L, H, W]`, summing to 1 over the labels.

    Raises:
        ImportError: pydensecrf is not installed.
        TypeError: An argument is not an array of the right dtype.
        ValueError: A shape is wrong, sizes differ, values are NaN or outside [0, 1], or a parameter is out of
            range for an image of this size.
    """
    _check_arrays(image, probabilities)
    _check_parameters(parameters, *image.shape[:2])
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


def refine(image: Tensor, probability: Tensor, parameters: CrfParameters = PAPER) -> Tensor:
    """Foreground probability after `dense_crf` with the labels background and foreground, [1 - p, p].

    Args:
        image: uint8 `[3, H, W]`, RGB.
        probability: Floating-point `[H, W]`, of the foreground, in [0, 1].
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
    """The tensors of `refine` as arrays uint8 `[3, H, W]` and float32 `[H, W]`; checks types and shapes."""
    import torch

    for name, value, floating, shape in (
        ("image", image, False, "[3, H, W]"),
        ("probability", probability, True, "[H, W]"),
    ):
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, but it is a {type(value).__name__}.")
        if value.is_floating_point() != floating:
            kind = "a floating-point dtype" if floating else "dtype uint8"
            raise TypeError(f"{name} must have {kind}, but it has {value.dtype}.")
        if value.ndim != len(shape.split()) or (not floating and len(value) != 3):
            raise ValueError(f"{name} must be {shape}, but its shape is {list(value.shape)}.")
    return image.detach().cpu().numpy(), probability.detach().cpu().float().numpy()


def refine_array(image: np.ndarray, probability: np.ndarray, parameters: CrfParameters) -> np.ndarray:
    """`refine` on the arrays of `as_arrays`: float32 `[H, W]`."""
    both = np.stack([1 - probability, probability])
    return dense_crf(image.transpose(1, 2, 0), both, parameters)[1]


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
            "It is compiled on installation, which needs a C++ compiler and Python's headers "
            "(Debian: apt-get install g++ python3-dev)."
        ) from error


def _check_arrays(image: np.ndarray, probabilities: np.ndarray) -> None:
    for name, array, kind, expected in (
        ("image", image, np.uint8, "dtype uint8"),
        ("probabilities", probabilities, np.floating, "a floating-point dtype"),
    ):
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name} must be an array, but it is a {type(array).__name__}.")
        if not np.issubdtype(array.dtype, kind):
            raise TypeError(f"{name} must have {expected}, but it has {array.dtype}.")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"image must be [H, W, 3] with at least one pixel, but its shape is {list(image.shape)}.")
    if probabilities.shape[1:] != image.shape[:2] or len(probabilities) < 2:
        raise ValueError(
            f"probabilities must be [L, {image.shape[0]}, {image.shape[1]}], like the image, with L >= 2, but "
            f"their shape is {list(probabilities.shape)}."
        )
    low, high = probabilities.min(), probabilities.max()
    if not -_ROUNDING <= low <= high <= 1 + _ROUNDING:  # NaN fails the comparison
        raise ValueError(f"probabilities must be in [0, 1], but they go from {low} to {high}.")


def _check_parameters(parameters: CrfParameters, height: int, width: int) -> None:
    for name, extent, limit in (
        ("gaussian_sxy", max(height, width), _POSITION_RANGE),
        ("bilateral_sxy", max(height, width), _BILATERAL_RANGE),
        ("bilateral_srgb", 255, _BILATERAL_RANGE),
    ):
        least, value = extent / limit, getattr(parameters, name)
        if value < least:
            raise ValueError(
                f"{name} must be at least {least:.2g} for an image of {width} x {height} pixels, "
                f"but it is {value}."
            )
