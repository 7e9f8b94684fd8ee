"""The error budget of every attention: operations with an exact counterpart, their cases, and the comparison.

A function must satisfy error <= 2 max(error of the literal form in the same dtype, eps). Errors are distances from
the exact result, which is computed in more digits than the case has.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray
Function = Callable[..., Tensor]

# Whether numpy.longdouble has more digits than float64 on this processor.
EXTENDED = np.finfo(np.longdouble).eps < np.finfo(np.float64).eps


@dataclass(frozen=True)
class Operation:
    """A function of some inputs and a mask.

    Attributes:
        names: The names of the inputs.
        literal: Its literal form in PyTorch.
        in_numpy: Its literal form and gradients in numpy: (inputs, mask, grad, **options) -> [result, *gradients].
    """

    names: tuple[str, ...]
    literal: Function
    in_numpy: Callable[..., list[Array]]


@dataclass(frozen=True)
class Case:
    """Arguments of an operation and the gradient of its result.

    A function is called as function(*inputs, mask, **options). An input may be None (the bias of a projection).
    """

    operation: Operation
    inputs: tuple[Tensor | None, ...]  # in the order of operation.names
    mask: Tensor | None
    grad: Tensor
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def given(self) -> dict[str, Tensor]:
        """The inputs that are not None, by name."""
        named = zip(self.operation.names, self.inputs, strict=True)
        return {name: part for name, part in named if part is not None}

    def to(self, target: torch.dtype | str) -> Case:
        """On another device or in another dtype; mask and index keep their dtype."""

        def move(part: Any) -> Any:
            if not isinstance(part, Tensor):
                return part
            return part.to(target) if part.is_floating_point() else part.to(grad.device)

        grad = self.grad.to(target)
        inputs = tuple(move(part) for part in self.inputs)
        options = {name: move(part) for name, part in self.options.items()}
        return Case(self.operation, inputs, move(self.mask), grad, options)

    def with_inputs(self, **changed: Tensor | None) -> Case:
        inputs = dict(zip(self.operation.names, self.inputs, strict=True)) | changed
        return replace(self, inputs=tuple(inputs[name] for name in self.operation.names))

    def __getitem__(self, name: str) -> Tensor:
        return self.given[name]


def run(function: Function, case: Case) -> list[Tensor]:
    """The result and the gradient of each input that is not None."""
    inputs = [None if part is None else part.detach().requires_grad_() for part in case.inputs]
    result = function(*inputs, case.mask, **case.options)
    given = [part for part in inputs if part is not None]
    return [result.detach(), *torch.autograd.grad(result, given, case.grad)]


def exact(case: Case) -> list[Array]:
    """The literal form's result and gradients, in float64, or in extended precision for a case in float64."""
    case = case.to("cpu")
    if case.grad.dtype != torch.float64:
        return [part.numpy() for part in run(case.operation.literal, case.to(torch.float64))]
    inputs = [None if part is None else part.numpy().astype(np.longdouble) for part in case.inputs]
    mask = None if case.mask is None else case.mask.numpy()
    grad = case.grad.numpy().astype(np.longdouble)
    return case.operation.in_numpy(inputs, mask, grad, **case.options)


def errors(function: Function, case: Case, truth: list[Array]) -> list[float]:
    """Distance of each output from the exact one, relative to the exact norm; norms over the whole tensor.

    For gradients it is the norm of the largest of them, because some are exactly zero (at one place and one word
    all but the values').
    """
    norms = [_norm(part) for part in truth]
    norms[1:] = [max(norms[1:])] * len(norms[1:])
    outputs = run(function, case)
    for part in outputs:
        assert part.dtype == case.grad.dtype
    return [
        _relative(_norm(part.cpu().double().numpy() - true), norm)
        for part, true, norm in zip(outputs, truth, norms, strict=True)
    ]


def assert_within_budget(function: Function, cases: Case | Sequence[Case], eps: float | None = None) -> None:
    """error <= 2 max(error of the literal form in the same dtype, eps), for medians over the cases.

    `eps` is the rounding of the arithmetic, by default that of the dtype; TF32's is larger than float32's.
    """
    cases = [cases] if isinstance(cases, Case) else cases
    truths = [exact(case) for case in cases]
    ours, literal = (
        _medians([measure(case, truth) for case, truth in zip(cases, truths, strict=True)])
        for measure in (functools.partial(errors, function), _literal_errors)
    )
    eps = eps or torch.finfo(cases[0].grad.dtype).eps
    outputs = ("result", *(f"gradient of {name}" for name in cases[0].given))
    over = [
        f"{name}: error {error:.2e}, literal form {allowed:.2e}"
        for name, error, allowed in zip(outputs, ours, literal, strict=True)
        if not error <= 2 * max(allowed, eps)
    ]
    assert not over, "; ".join(over)


def assert_identical(expected: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    for one, other in zip(expected, outputs, strict=True):
        assert torch.equal(one, other)


def assert_close(expected: Sequence[Tensor], outputs: Sequence[Tensor], tolerance: float = 1e-12) -> None:
    for one, other in zip(expected, outputs, strict=True):
        torch.testing.assert_close(other, one, rtol=tolerance, atol=tolerance)


def _literal_errors(case: Case, truth: list[Array]) -> list[float]:
    """Errors of the literal form run wholly in the dtype of the case.

    Without extended precision the literal form in float64 cannot be compared with anything better: its float32
    errors are used, times the ratio of the two roundings.
    """
    if case.grad.dtype != torch.float64 or EXTENDED:
        return errors(case.operation.literal, case, truth)
    rounding = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    single = case.to(torch.float32)
    single_errors = errors(case.operation.literal, single, exact(single))
    return [rounding * error for error in single_errors]


def normal_numbers(dtype: torch.dtype, seed: int) -> Callable[..., Tensor]:
    """A function normal(*shape, times=1.0) that draws normal numbers times a factor, exact in `dtype`."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, times: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * times).to(dtype)

    return normal


def padding(batch: int, words: int) -> Tensor:
    """bool [B, N]: row 0 is padded at the front, row 1 in the middle, row 2 at the end, row 3 not, and so on."""
    mask = torch.ones(batch, words, dtype=torch.bool)
    if words >= 3:
        mask[0::4, : words // 3] = False
        mask[1::4, 1 : words // 2] = False
        mask[2::4, -(words // 3) :] = False
    return mask


def _medians(rows: list[list[float]]) -> list[float]:
    return torch.tensor(rows, dtype=torch.float64).median(0).values.tolist()


def _relative(distance: float, norm: float) -> float:
    """An exact result of zero must be computed exactly."""
    if norm == 0:
        return 0.0 if distance == 0 else float("inf")
    return distance / norm


def _norm(part: Array) -> float:
    return float(np.sqrt((part.astype(np.longdouble) ** 2).sum()))
