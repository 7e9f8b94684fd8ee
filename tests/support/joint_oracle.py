"""How close the joint attention and its tail must come to the literal form, and the inputs to measure it on.

The budget is that of `oracle.py`, for a function of any number of differentiable inputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from support.oracle import EXTENDED, Array, padding
from torch import Tensor

from cmsa_fast.kernels import reference

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Operation:
    """A function of some inputs and a mask, its literal form, and that with its gradients in numpy."""

    names: tuple[str, ...]
    literal: Function
    written_out: Callable[..., list[Array]]


@dataclass(frozen=True)
class JointCase:
    """Arguments of a function and the gradient that comes back to its result.

    The function is called as function(*inputs, mask, **options), for the public functions, their literal forms
    and the backends alike. An input may be None (the tail's bias).
    """

    operation: Operation
    inputs: tuple[Tensor | None, ...]  # in the order of operation.names
    mask: Tensor | None
    grad: Tensor
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def given(self) -> tuple[str, ...]:
        """The names of the inputs that are not None."""
        named = zip(self.operation.names, self.inputs, strict=True)
        return tuple(name for name, part in named if part is not None)

    def to(self, *arguments: Any) -> JointCase:
        """On another device or in another dtype; the mask keeps its own."""
        inputs = tuple(None if part is None else part.to(*arguments) for part in self.inputs)
        grad = self.grad.to(*arguments)
        mask = None if self.mask is None else self.mask.to(grad.device)
        return replace(self, inputs=inputs, mask=mask, grad=grad)

    def with_inputs(self, **changed: Tensor | None) -> JointCase:
        inputs = dict(zip(self.operation.names, self.inputs, strict=True)) | changed
        return replace(self, inputs=tuple(inputs[name] for name in self.operation.names))

    def __getitem__(self, name: str) -> Tensor:
        part = self.inputs[self.operation.names.index(name)]
        assert part is not None, name
        return part


def draw_joint(
    queries: int = 37,
    keys: int = 53,
    width: int = 11,
    value_width: int | None = None,
    batch: int = 2,
    *,
    scale: float | None = None,
    spread: float = 1.0,
    grad_spread: float = 1.0,
    masked: bool = True,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> JointCase:
    """A case of `joint_attention`: normal inputs times `spread`, exact in `dtype`, keys masked as words are."""
    normal = _normal(dtype, seed)
    value_width = width if value_width is None else value_width
    shapes = ((batch, queries, width), (batch, keys, width), (batch, keys, value_width))
    return JointCase(
        ATTENTION,
        tuple(normal(*shape, times=spread) for shape in shapes),
        padding(batch, keys) if masked else None,
        normal(batch, queries, value_width, times=grad_spread),
        {} if scale is None else {"scale": scale},
    )


def draw_tail(
    places: int = 13,
    words: int = 6,
    width: int = 11,
    channels: int = 9,
    batch: int = 2,
    *,
    relu: bool = False,
    bias: bool = True,
    spread: float = 1.0,
    masked: bool = True,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> JointCase:
    """A case of `joint_attention_tail`: normal inputs, the attended values times `spread`, exact in `dtype`."""
    normal = _normal(dtype, seed)
    return JointCase(
        TAIL,
        (
            normal(batch, places, words, width, times=spread),
            normal(channels, width),
            normal(channels) if bias else None,
        ),
        padding(batch, words) if masked else None,
        normal(batch, places, channels),
        {"relu": relu},
    )


def poisoned(case: JointCase, value: float) -> JointCase:
    """The case with `value` in every place that the mask keeps from having influence."""
    assert case.mask is not None
    if case.operation is TAIL:
        unread = ~case.mask[:, None, :, None]
        return case.with_inputs(attended=case["attended"].masked_fill(unread, value))
    unread = ~case.mask[..., None]
    return case.with_inputs(
        **{name: case[name].masked_fill(unread, value) for name in ("key", "value")}
    )


def run_joint(function: Function, case: JointCase) -> list[Tensor]:
    """The result and the gradient of each input that is not None."""
    inputs = [None if part is None else part.detach().requires_grad_() for part in case.inputs]
    result = function(*inputs, case.mask, **case.options)
    given = [part for part in inputs if part is not None]
    return [result.detach(), *torch.autograd.grad(result, given, case.grad)]


def joint_errors(function: Function, case: JointCase, truth: list[Array]) -> list[float]:
    """Distance of each output from the exact one, relative to the exact norm; norms over the whole tensor.

    A gradient's is relative to the largest of them, because some vanish exactly (the queries' at one key).
    """
    norms = [_norm(part) for part in truth]
    norms[1:] = [max(norms[1:])] * len(norms[1:])
    found = run_joint(function, case)
    for part in found:
        assert part.dtype == case.grad.dtype
    return [
        _relative(_norm(part.cpu().double().numpy() - true), norm)
        for part, true, norm in zip(found, truth, norms, strict=True)
    ]


def assert_joint_within_budget(function: Function, cases: JointCase | Sequence[JointCase]) -> None:
    """error <= 2 max(error of the literal form in the same dtype, eps), for medians over the cases.

    The literal form runs on the device of the case, the exact one (float64 for lower dtypes, the processor's
    extended precision for float64) on the CPU.
    """
    cases = [cases] if isinstance(cases, JointCase) else cases
    truths = [exact(case) for case in cases]
    ours, literal = (
        _medians([measure(case, truth) for case, truth in zip(cases, truths, strict=True)])
        for measure in (functools.partial(joint_errors, function), _literal_errors)
    )
    eps = torch.finfo(cases[0].grad.dtype).eps
    outputs = ("result", *(f"gradient of {name}" for name in cases[0].given))
    over = [
        f"{name}: error {error:.2e}, literal form {allowed:.2e}"
        for name, error, allowed in zip(outputs, ours, literal, strict=True)
        if not error <= 2 * max(allowed, eps)
    ]
    assert not over, "; ".join(over)


def exact(case: JointCase) -> list[Array]:
    """The literal form's result and gradients, in more digits than the case has."""
    case = case.to("cpu")
    if case.grad.dtype != torch.float64:
        literal = run_joint(case.operation.literal, case.to(torch.float64))
        return [part.numpy() for part in literal]
    inputs = [None if part is None else part.numpy().astype(np.longdouble) for part in case.inputs]
    mask = None if case.mask is None else case.mask.numpy()
    grad = case.grad.numpy().astype(np.longdouble)
    return case.operation.written_out(inputs, mask, grad, **case.options)


def _literal_errors(case: JointCase, truth: list[Array]) -> list[float]:
    """Errors of the literal form run wholly in the dtype of the case; see `oracle.literal_errors`."""
    if case.grad.dtype != torch.float64 or EXTENDED:
        return joint_errors(case.operation.literal, case, truth)
    rounding = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    single = case.to(torch.float32)
    of_single = joint_errors(case.operation.literal, single, exact(single))
    return [rounding * error for error in of_single]


def _attention_written_out(
    inputs: list[Array], mask: Array | None, grad: Array, scale: float = 1.0
) -> list[Array]:
    query, key, value = inputs
    result, gradients = np.zeros_like(grad), [np.zeros_like(part) for part in inputs]
    for entry in range(len(grad)):
        true = np.arange(key.shape[1]) if mask is None else np.flatnonzero(mask[entry])
        keys, values = key[entry, true], value[entry, true]
        logits = query[entry] @ keys.T * scale
        weights = np.exp(logits - logits.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        result[entry] = weights @ values
        of_weights = grad[entry] @ values.T
        of_logits = weights * (of_weights - (weights * of_weights).sum(1, keepdims=True)) * scale
        gradients[0][entry] = of_logits @ keys
        gradients[1][entry, true] = of_logits.T @ query[entry]
        gradients[2][entry, true] = weights.T @ grad[entry]
    return [result, *gradients]


def _tail_written_out(
    inputs: list[Array | None], mask: Array | None, grad: Array, relu: bool = False
) -> list[Array]:
    attended, weight, bias = inputs
    assert attended is not None
    assert weight is not None
    result = np.zeros_like(grad)
    of_attended, of_weight = np.zeros_like(attended), np.zeros_like(weight)
    of_bias = np.zeros(len(weight), dtype=np.longdouble)
    for entry in range(len(grad)):
        words = attended.shape[2]
        true = range(words) if mask is None else np.flatnonzero(mask[entry]).tolist()
        for word in true:
            projected = attended[entry, :, word] @ weight.T + (0 if bias is None else bias)
            upstream = grad[entry] / len(true)
            if relu:
                upstream = upstream * (projected > 0)
                projected = np.maximum(projected, 0)
            result[entry] += projected / len(true)
            of_attended[entry, :, word] = upstream @ weight
            of_weight += upstream.T @ attended[entry, :, word]
            of_bias += upstream.sum(0)
    return [result, of_attended, of_weight, *([] if bias is None else [of_bias])]


def _normal(dtype: torch.dtype, seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, times: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * times).to(dtype)

    return normal


def _medians(rows: list[list[float]]) -> list[float]:
    return torch.tensor(rows, dtype=torch.float64).median(0).values.tolist()


def _relative(distance: float, norm: float) -> float:
    """An exact zero (a ReLU that lets nothing pass) must be met exactly."""
    if norm == 0:
        return 0.0 if distance == 0 else float("inf")
    return distance / norm


def _norm(part: Array) -> float:
    return float(np.sqrt((part.astype(np.longdouble) ** 2).sum()))


ATTENTION = Operation(("query", "key", "value"), reference.token_attention, _attention_written_out)
TAIL = Operation(("attended", "weight", "bias"), reference.joint_attention_tail, _tail_written_out)
