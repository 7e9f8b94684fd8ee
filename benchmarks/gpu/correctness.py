"""Correctness of a form: its errors against the literal equations, and bitwise identity of two runs."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from . import budget, forms, parity
from .budget import Case

_SEEDS = 3
# So that the error comes from the literal form's rounding and not from single operations.
_LOGITS = 4.0
_POISON_MIB = (1, 8, 64)


def measure(job: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    """The record of one case: its errors (medians over seeds) and those allowed."""
    operation, device, dtype = job["operation"], job["device"], job["dtype"]
    form = forms.OWN[operation][job["form"]]
    ours, literal, repeatable, finite = [], [], True, True
    with budget.matmul_precision(dtype):
        for drawn in draw_cases(operation, case, budget.torch_dtype(dtype), device):
            truth = parity.literal(operation, case["size"], drawn.to(torch.float64))
            _poison(device)
            outputs = budget.run(form, drawn)
            again = budget.run(form, drawn)
            repeatable &= all(torch.equal(one, two) for one, two in zip(outputs, again, strict=True))
            finite &= all(bool(part.isfinite().all()) for part in outputs)
            ours.append(budget.errors(outputs, truth))
            literal.append(budget.errors(parity.literal(operation, case["size"], drawn), truth))
    labels = ["result", *(f"gradient of {name}" for name in forms.FEATURES[operation])]
    figures = budget.verdict(labels, ours, literal, budget.rounding(dtype))
    reasons = [
        f"{name}: error {row['error']}, allowed {row['allowed']}"
        for name, row in figures.items()
        if not row["kept"]
    ]
    if not finite:
        reasons.append("some of the output is not finite")
    if not repeatable:
        reasons.append("two runs differ")
    return {
        "status": "passed" if not reasons else "failed",
        "reason": "; ".join(reasons) or None,
        "errors": figures,
        "repeatable": repeatable,
        "seeds": len(ours),
    }


def draw_cases(operation: str, case: dict[str, Any], dtype: torch.dtype, device: str) -> Iterator[Case]:
    """One case for each seed.

    Options of a case: standard deviation of the `logits`, number of `seeds`, `strided` for inputs that are not
    contiguous, `full` for the paper's size (one seed, no padded words).
    """
    full = bool(case.get("full"))
    for seed in range(1 if full else case.get("seeds", _SEEDS)):
        logits = case.get("logits", _LOGITS)
        masked = not full and operation != "projection"
        drawn = forms.draw(operation, case["size"], dtype, device, seed=seed, logits=logits, masked=masked)
        yield _strided(drawn) if case.get("strided") else drawn


def _strided(case: Case) -> Case:
    """The same numbers in tensors whose last axis has a stride of 2."""

    def spread_out(part: Tensor) -> Tensor:
        wide = part.new_full((*part.shape[:-1], 2 * part.shape[-1]), torch.nan)
        wide[..., ::2] = part
        return wide[..., ::2]

    features = tuple(part if part is None else spread_out(part) for part in case.features)
    grad = None if case.grad is None else spread_out(case.grad)
    return Case(features, case.mask, grad, case.options)


def _poison(device: str) -> None:
    """Fill freed memory with NaN, so that an output element that is never written is detected."""
    if device != "cpu":
        blocks = [torch.full((mib * 2**18,), torch.nan, device=device) for mib in _POISON_MIB for _ in range(4)]
        del blocks
