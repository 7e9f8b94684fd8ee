"""The error budget of a form against the literal equations, and the cases on which it is measured.

error <= 2 max(error of the literal form computed in the same dtype, eps), relative to the exact norm, with norms
over the whole tensor; a gradient's error is relative to the largest gradient. The tests use the same budget.
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
    """Arguments of a form, and the gradient of its result.

    A form is called as form(*features, mask, **options); a feature may be None (the tail's bias). If `grad`
    is None, only the result is computed.
    """

    features: tuple[Tensor | None, ...]
    mask: Tensor | None
    grad: Tensor | None
    options: Mapping[str, Any] = field(default_factory=dict)

    def to(self, target: torch.dtype) -> "Case":
        """Copy with the features and the gradient in another dtype."""
        features = tuple(part if part is None else part.to(target) for part in self.features)
        grad = None if self.grad is None else self.grad.to(target)
        return replace(self, features=features, grad=grad)


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of one of `plan.PRECISIONS`; "tf32" is float32 under PyTorch's setting "high"."""
    return torch.float32 if name == "tf32" else getattr(torch, name)


@contextlib.contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Set PyTorch's precision of float32 products as one of `plan.PRECISIONS` requires."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def logits(name: str) -> float:
    """`logits` for `forms.draw` where speed is measured.

    With logits of deviation 1 the error of the literal form in float32 is below one rounding, and the gradients of
    the torch backend exceed the budget that follows by up to 1.7 times. With steeper logits the 16-bit products of
    the peers would round too much.
    """
    return 4.0 if name in ("float32", "tf32") else 1.0


def rounding(name: str) -> float:
    """The spacing of numbers at 1 in one of `plan.PRECISIONS`; TF32 products have a mantissa of 10 bits."""
    return 2.0**-10 if name == "tf32" else torch.finfo(torch_dtype(name)).eps


def run(form: Function, case: Case) -> list[Tensor]:
    """The result and the gradient of every feature that is not None."""
    if case.grad is None:
        with torch.no_grad():
            return [form(*case.features, case.mask, **case.options)]
    leaves = [None if part is None else part.detach().requires_grad_(True) for part in case.features]
    result = form(*leaves, case.mask, **case.options)
    given = [part for part in leaves if part is not None]
    return [result.detach(), *torch.autograd.grad(result, given, case.grad)]


def errors(outputs: Sequence[Tensor], truth: Sequence[Tensor]) -> list[float]:
    """Distance of each output from the exact one relative to its norm; for gradients, to the largest norm."""
    norms = [float(part.double().norm()) for part in truth]
    norms[1:] = [max(norms[1:], default=0.0)] * len(norms[1:])
    return [
        _relative(float((part.to(true.device).double() - true.double()).norm()), norm)
        for part, true, norm in zip(outputs, truth, norms, strict=True)
    ]


def verdict(
    outputs: Sequence[str],
    ours: Sequence[Sequence[float]],
    literal: Sequence[Sequence[float]],
    eps: float,
) -> dict[str, dict[str, float | bool | None]]:
    """For each output the median errors over cases (the outer sequences), and whether they keep the budget.

    An error that is not finite is reported as None, since JSON cannot represent it.
    """
    figures: dict[str, dict[str, float | bool | None]] = {}
    for index, output in enumerate(outputs):
        error = _median([row[index] for row in ours])
        of_literal = _median([row[index] for row in literal])
        # If the literal form itself fails, only rounding is allowed.
        allowed = 2 * max(of_literal if math.isfinite(of_literal) else 0.0, eps)
        figures[output] = {
            "error": number(error),
            "literal": number(of_literal),
            "allowed": allowed,
            "kept": error <= allowed,
        }
    return figures


def _median(values: Sequence[float]) -> float:
    """The median, or NaN if a value is NaN, so that such a result never passes."""
    return math.nan if any(math.isnan(value) for value in values) else statistics.median(values)


def number(value: float) -> float | None:
    """The value, or None if it is not finite."""
    return value if math.isfinite(value) else None


def _relative(distance: float, norm: float) -> float:
    """The distance relative to the norm; infinite for a nonzero distance from an exact zero."""
    if norm == 0:
        return 0.0 if distance == 0 else math.inf
    return distance / norm
