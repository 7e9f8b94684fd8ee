"""How close a form must come to the literal equations, and the inputs to measure it on.

error <= 2 max(error of the literal form run wholly in the same dtype, eps), relative to the exact norm, norms over
the whole tensor; a gradient's error is relative to the largest of the gradients. It is the budget of the tests.
"""

import contextlib
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """Arguments of a form and the gradient that comes back to its result.

    A form is called as form(*features, mask, **options); a feature may be None (the tail's bias).
    """

    features: tuple[Tensor | None, ...]
    mask: Tensor | None
    grad: Tensor
    options: Mapping[str, Any] = field(default_factory=dict)

    def to(self, target: torch.dtype | torch.device | str) -> "Case":
        """On another device, or the features in another dtype."""
        if isinstance(target, torch.dtype):
            features = tuple(part if part is None else part.to(target) for part in self.features)
            return replace(self, features=features, grad=self.grad.to(target))
        features = tuple(part if part is None else part.to(target) for part in self.features)
        options = {
            name: value.to(target) if isinstance(value, Tensor) else value
            for name, value in self.options.items()
        }
        mask = None if self.mask is None else self.mask.to(target)
        return Case(features, mask, self.grad.to(target), options)


def torch_dtype(name: str) -> torch.dtype:
    """Of one of `plan.PRECISIONS`; "tf32" is float32 with PyTorch's setting "high"."""
    return torch.float32 if name == "tf32" else getattr(torch, name)


@contextlib.contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """PyTorch's setting for float32 products, as one of `plan.PRECISIONS` asks for it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def spread(name: str) -> float:
    """For `forms.draw`, when speed is measured.

    Under logits of deviation 1 the literal form in float32 errs by less than one rounding, and the torch backend's
    gradients lie up to 1.7 times beyond what that allows. Steeper ones would be rounded too much by the 16-bit
    products of the peers.
    """
    return 2.0 if name in ("float32", "tf32") else 1.0


def rounding(name: str) -> float:
    """The spacing of numbers at 1 in one of `plan.PRECISIONS`; products in TF32 have 10 bits."""
    return 2.0**-10 if name == "tf32" else torch.finfo(torch_dtype(name)).eps


def run(form: Function, case: Case) -> list[Tensor]:
    """The result and the gradient of every feature that is not None."""
    leaves = [
        None if part is None else part.detach().requires_grad_(True) for part in case.features
    ]
    result = form(*leaves, case.mask, **case.options)
    given = [part for part in leaves if part is not None]
    return [result.detach(), *torch.autograd.grad(result, given, case.grad)]


def exact(literal: Function, case: Case) -> list[Tensor]:
    """The literal form's result and gradients in float64, where the case is."""
    return run(literal, case.to(torch.float64))


def errors(found: Sequence[Tensor], truth: Sequence[Tensor]) -> list[float]:
    """Distance of each output from the exact one by the exact norm; of gradients, by the largest one's."""
    norms = [float(part.double().norm()) for part in truth]
    norms[1:] = [max(norms[1:], default=0.0)] * len(norms[1:])
    return [
        _relative(float((part.to(true.device).double() - true.double()).norm()), norm)
        for part, true, norm in zip(found, truth, norms, strict=True)
    ]


def verdict(
    outputs: Sequence[str],
    ours: Sequence[Sequence[float]],
    literal: Sequence[Sequence[float]],
    eps: float,
) -> dict[str, dict[str, float | bool | None]]:
    """For each output the medians over cases (the outer sequences), and whether they keep the budget.

    An error that is not finite is written as None, since JSON has no number for it.
    """
    figures: dict[str, dict[str, float | bool | None]] = {}
    for index, output in enumerate(outputs):
        error = _median([row[index] for row in ours])
        of_literal = _median([row[index] for row in literal])
        # Where the literal form itself breaks down, it allows nothing more than rounding.
        allowed = 2 * max(of_literal if math.isfinite(of_literal) else 0.0, eps)
        figures[output] = {
            "error": number(error),
            "literal": number(of_literal),
            "allowed": allowed,
            "kept": error <= allowed,
        }
    return figures


def _median(values: Sequence[float]) -> float:
    """NaN where one is: a result that is no number never passes."""
    return math.nan if any(math.isnan(value) for value in values) else statistics.median(values)


def number(value: float) -> float | None:
    """The value, or None where JSON has no number for it."""
    return value if math.isfinite(value) else None


def _relative(distance: float, norm: float) -> float:
    """An exact zero must be met exactly."""
    if norm == 0:
        return 0.0 if distance == 0 else math.inf
    return distance / norm
