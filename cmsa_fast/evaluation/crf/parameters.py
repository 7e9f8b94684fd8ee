"""The parameters of the dense CRF, and the sets of them that have a name."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class CrfParameters:
    """The parameters of the two pairwise terms and of the inference.

    Attributes:
        gaussian_sxy: standard deviation of the smoothness term's positions, in pixels.
        gaussian_compat: weight of the smoothness term (Potts).
        bilateral_sxy: standard deviation of the appearance term's positions, in pixels.
        bilateral_srgb: standard deviation of its colours, in grey levels of 0 to 255.
        bilateral_compat: weight of the appearance term (Potts).
        iterations: mean-field steps.

    Raises:
        TypeError: a value is no number, or `iterations` is no whole number.
        ValueError: a value is not positive and finite.
    """

    gaussian_sxy: float
    gaussian_compat: float
    bilateral_sxy: float
    bilateral_srgb: float
    bilateral_compat: float
    iterations: int

    def __post_init__(self) -> None:
        """Check every value."""
        for name, value in vars(self).items():
            kind, expected = (
                (Integral, "a whole number of at least 1")
                if name == "iterations"
                else (Real, "a positive finite number")
            )
            if isinstance(value, bool) or not isinstance(value, kind):
                raise TypeError(f"{name} must be {expected}, but it is {value!r}.")
            if not (math.isfinite(float(value)) and float(value) > 0):
                raise ValueError(f"{name} must be {expected}, but it is {value}.")


PRESETS = MappingProxyType(
    {
        "paper": CrfParameters(
            gaussian_sxy=3,
            gaussian_compat=3,
            bilateral_sxy=20,
            bilateral_srgb=3,
            bilateral_compat=10,
            iterations=5,
        )
    }
)
"""`paper`: what CMSA was published with (lwye/CMSA-Net, main_cmsa.py), there on images of 320 x 320."""


def crf_parameters(preset: str = "paper", **given: float | None) -> CrfParameters:
    """A preset's parameters, with those that are given in place of its own.

    Args:
        preset: a name in `PRESETS`.
        given: fields of `CrfParameters`; None stands for the preset's value.

    Raises:
        TypeError: no such parameter, or a value of the wrong kind.
        ValueError: no such preset, or a value that is not positive and finite.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, but it is {preset!r}.")
    names = [field.name for field in fields(CrfParameters)]
    for name in given:
        if name not in names:
            raise TypeError(f"{name} is no parameter of the CRF; there are {', '.join(names)}.")
    changes: dict[str, Any] = {name: v for name, v in given.items() if v is not None}
    return replace(PRESETS[preset], **changes)
