"""Correctness of a form: its errors against the literal equations, and bitwise identity of two runs."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from . import budget, forms
from .budget import Case
from .plan import TRITON

_FULL_SEEDS, _SEEDS = 1, 3
# Logits of deviation 4, so that the error comes from the literal form's rounding and not from single operations.
_SPREAD = 2.0
_POISON_MIB = (1, 8, 64)


def measure(job: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    """The record of one case: its errors (medians over seeds) and those allowed."""
    operation, device, dtype = job["operation"], job["device"], job["dtype"]
    if device == "cpu" and dtype == "bfloat16" and job["form"] in TRITON:
        return {"status": "skipped", "reason": "Triton's interpreter multiplies bfloat16 wrongly"}
    if job["form"] == "tiled" and "images" in case:
        return {"status": "skipped", "reason": "the tiled plan does not support image_index"}
    form = forms.get(operation, job["form"])
    ours, literal, repeatable, finite = [], [], True, True
    with budget.matmul_precision(dtype):
        for drawn in draw_cases(operation, case, budget.torch_dtype(dtype), device):
            truth = _truth(operation, drawn, full=bool(case.get("full")))
            _poison(device)
            with form.within():
                outputs = budget.run(form.call, drawn)
                again = budget.run(form.call, drawn)
            repeatable &= all(torch.equal(one, two) for one, two in zip(outputs, again, strict=True))
            finite &= all(bool(part.isfinite().all()) for part in outputs)
            ours.append(budget.errors(outputs, truth))
            literal.append(budget.errors(budget.run(forms.LITERAL[operation], drawn), truth))
    labels = ["result", *(f"gradient of {name}" for name in forms.FEATURES[operation])]
    # Under TF32 the least budget is float32's rounding too: the error of its literal form sets the budget.
    eps = torch.finfo(budget.torch_dtype(dtype)).eps
    figures = budget.verdict(labels, ours, literal, eps)
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

    Options of a case: `spread` of the logits, number of `seeds`, number of `images` that the expressions share,
    `strided` for inputs that are not contiguous, `full` for the paper's size (one seed, no padded words).
    """
    full = bool(case.get("full"))
    for seed in range(case.get("seeds", _FULL_SEEDS if full else _SEEDS)):
        drawn = forms.draw(
            operation,
            case["size"],
            dtype,
            device,
            seed=seed,
            spread=case.get("spread", 1.0 if full else _SPREAD),
            masked=not full,
            images=case.get("images"),
        )
        yield _strided(drawn) if case.get("strided") else drawn


def _truth(operation: str, case: Case, full: bool) -> list[Tensor]:
    """The literal form in float64 on the CPU; at full size the torch backend in float64 on the case's device."""
    if full:
        return budget.run(forms.OWN[operation]["torch"], case.to(torch.float64))
    return budget.run(forms.LITERAL[operation], case.to("cpu").to(torch.float64))


def _strided(case: Case) -> Case:
    """The same numbers in tensors whose last axis has a stride of 2."""

    def spread_out(part: Tensor) -> Tensor:
        wide = part.new_full((*part.shape[:-1], 2 * part.shape[-1]), torch.nan)
        wide[..., ::2] = part
        return wide[..., ::2]

    features = tuple(part if part is None else spread_out(part) for part in case.features)
    return Case(features, case.mask, spread_out(case.grad), case.options)


def _poison(device: str) -> None:
    """Fill freed memory with NaN, so that an output element that is never written is detected."""
    if device != "cpu":
        blocks = [torch.full((mib * 2**18,), torch.nan, device=device) for mib in _POISON_MIB for _ in range(4)]
        del blocks
