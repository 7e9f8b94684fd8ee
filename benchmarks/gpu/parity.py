"""A form with its inputs as it is timed, and its error at that size, which is measured before timing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import budget, forms
from .budget import Case

_MOST_PAIRS = 2**27  # pairs of tokens up to which the literal form in float64 fits any GPU


@dataclass(frozen=True)
class Exact:
    """The outputs and errors with which a form is compared.

    Attributes:
        against: "literal", or "torch backend" if the literal form does not fit; `correctness` compares the two at
            smaller sizes.
        outputs: The result and the gradients.
        allowed: The allowed error of each output, 2 max(error of the literal form or the torch backend in the
            case's dtype, eps).
    """

    against: str
    outputs: list[Tensor]
    allowed: list[float]


@dataclass(frozen=True)
class Bound:
    """A form with its inputs."""

    form: forms.Form
    leaves: tuple[Tensor | None, ...]
    mask: Tensor | None
    options: Mapping[str, Any]
    grad: Tensor | None

    def result(self) -> Tensor:
        return self.form.call(*self.leaves, self.mask, **self.options)

    def gradients(self, result: Tensor) -> tuple[Tensor, ...]:
        """The gradients of the leaves."""
        given = [part for part in self.leaves if part is not None]
        return torch.autograd.grad(result, given, self.grad)

    def both(self) -> list[Tensor]:
        """The result and the gradients of the leaves, if the form has a backward."""
        if self.grad is None:
            return [self.forward()]
        result = self.result()
        return [result.detach(), *self.gradients(result)]

    def forward(self) -> Tensor:
        """The result without gradients."""
        with torch.no_grad():
            return self.result()


def literal(operation: str, size: dict[str, int], case: Case) -> list[Tensor]:
    """The outputs of the literal form, over blocks of queries if the pairs of all tokens take too much memory."""
    if operation not in ("separable", "joint") or _pairs(operation, size) <= _MOST_PAIRS:
        return budget.run(forms.LITERAL[operation], case)
    bound = bind(operation, "chunked", size, case)
    result, *gradients = bound.both()
    return [result, *bound.form.gradients(gradients, case.features)]


def exact(operation: str, size: dict[str, int], case: Case, dtype: str) -> Exact:
    """The outputs in a wider dtype, and the allowed errors."""
    if operation in forms.LITERAL and _pairs(operation, size) <= _MOST_PAIRS:
        against, form = "literal", forms.LITERAL[operation]
        wide = torch.float64
    else:
        against, form = "torch backend", forms.OWN[operation]["torch"]
        wide = torch.float64 if dtype in ("float32", "tf32") else torch.float32
    with budget.matmul_precision("float32"):
        outputs = budget.run(form, case.to(wide))
    own = budget.errors(budget.run(form, case), outputs)
    return Exact(against, outputs, [2 * max(error, budget.rounding(dtype)) for error in own])


def bind(operation: str, name: str, size: dict[str, int], case: Case) -> Bound:
    """A form with its own leaves; the tokens that peers need are made here, outside the timing."""
    form = forms.get(operation, name)
    leaves = tuple(
        None if part is None else part.detach().requires_grad_(case.grad is not None)
        for part in form.leaves(case.features)
    )
    options = dict(case.options)
    if not form.own and operation == "separable":
        options = {"words": size["words"]}
    return Bound(form, leaves, case.mask, options, case.grad)


def compare(bound: Bound, case: Case, truth: Exact, forward_only: bool = False) -> dict[str, Any]:
    """The errors of the result and of the features' gradients, those allowed, and whether all are within them."""
    if forward_only or bound.grad is None:
        errors = budget.errors([bound.forward()], truth.outputs[:1])
    else:
        result, *gradients = bound.both()
        outputs = [result, *bound.form.gradients(gradients, case.features)]
        errors = budget.errors(outputs, truth.outputs)
    allowed = truth.allowed[: len(errors)]
    return {
        "kept": all(error <= most for error, most in zip(errors, allowed, strict=True)),
        "against": truth.against,
        "errors": [budget.number(error) for error in errors],
        "allowed": [budget.number(most) for most in allowed],
    }


def _pairs(operation: str, size: dict[str, int]) -> int:
    if operation == "joint":
        return size["batch"] * size["queries"] * size["keys"]
    if operation == "projection":
        return 0  # the literal form has no pairs
    tokens = size["places"] * size["words"]
    return size["batch"] * tokens * (size["channels"] if operation == "tail" else tokens)
