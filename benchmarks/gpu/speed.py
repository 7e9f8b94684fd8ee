"""Speed and memory of the forms of an operation at one size, each compared with the exact one first."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import budget, forms, timing
from .budget import Case
from .plan import PASSES
from .timing import Clock, Entry

Emit = Callable[[dict[str, Any]], None]
Step = Callable[[str, float], None]

_PREPARE_LIMIT_S = 75.0
_COMPILED = ("naive compiled", "flex")


@dataclass
class _Prepared:
    """A form at a size: what is timed, and what is known before it is."""

    form: forms.Form
    parity: dict[str, Any]
    prepare_s: float
    bytes_: dict[str, float]
    entries: dict[str, Entry] = field(default_factory=dict)
    graphs: dict[str, Entry] = field(default_factory=dict)
    graph_notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    peaks: dict[str, float | None] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)  # pass -> why it is not measured
    estimates: dict[str, float] = field(default_factory=dict)
    kernels: list[dict[str, Any]] | str | None = None


def measure(
    job: dict[str, Any], items: list[str], step: Step, emit: Emit, alive: Callable[[], bool]
) -> None:
    """Emit a record for each form and pass.

    Args:
        job: of `plan.speed`.
        items: the forms to do.
        step: step(item, limit in seconds) says what is being done.
        emit: takes each record.
        alive: whether the device still answers after an error; where not, the rest is left for another process.
    """
    device, operation = job["device"], job["operation"]
    with budget.matmul_precision(job["dtype"]):
        step("inputs", _PREPARE_LIMIT_S)
        case = forms.draw(operation, job["size"], budget.torch_dtype(job["dtype"]), device)
        truth, allowed = _reference(operation, case, job["dtype"])
        clock = Clock(device)
        prepared = []
        for item in items:
            step(item, _PREPARE_LIMIT_S)
            reason = _why_not(item, device)
            try:
                if reason is None:
                    prepared.append(_prepare(job, item, case, truth, allowed, clock))
                    continue
                status = "skipped"
            except Exception as error:  # a form that fails is part of the figures
                status, reason = "failed", describe(error)
            for part in PASSES:
                emit(_identity(job, item, part) | {"status": status, "reason": reason})
            if not alive():
                return
            _free(device)
        for part in PASSES:
            entries = [
                entry
                for one in prepared
                for group in (one.entries, one.graphs)
                if (entry := group.get(part)) is not None
            ]
            step("rounds", 20 + len(entries) * 2 * job["case_limit_s"])
            clock.interleave(entries)
            for one in prepared:
                emit(_record(job, one, part))


def warm_up(job: dict[str, Any], items: list[str], step: Step) -> None:
    """Run forms once each way, so that what they compile is kept on disk."""
    with budget.matmul_precision(job["dtype"]):
        dtype = budget.torch_dtype(job["dtype"])
        case = forms.draw(job["operation"], job["size"], dtype, job["device"])
        for item in items:
            step(item, _PREPARE_LIMIT_S)
            call, leaves = _bind(job, forms.get(job["operation"], item), case)
            with torch.no_grad():
                call(leaves)
            _gradients(call(leaves), leaves, case.grad)


def describe(error: BaseException) -> str:
    """An error in one line of reasonable length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:400]}"


def _why_not(item: str, device: str) -> str | None:
    """Why a form is not measured on a device, if so."""
    if device == "cpu" and item in _COMPILED:
        return "compiled peers are measured on a GPU alone"
    if device == "cpu" and item == "fused":
        return "Triton's interpreter is no measure of speed"
    return None


def _bind(
    job: dict[str, Any], form: forms.Form, case: Case
) -> tuple[Callable[[list[Tensor | None]], Tensor], list[Tensor | None]]:
    """The form as a function of its leaves, and these."""
    if form.name in _COMPILED and not form.own:
        torch._dynamo.reset()  # so that one size's compilation does not count against another's
    leaves = [
        None if part is None else part.detach().requires_grad_(True)
        for part in form.leaves(case.features)
    ]
    options = dict(case.options)
    if not form.own and job["operation"] == "separable":
        options = {"words": job["size"]["words"]}
    return (lambda parts: form.call(*parts, case.mask, **options)), leaves


def _gradients(result: Tensor, leaves: list[Tensor | None], grad: Tensor) -> tuple[Tensor, ...]:
    given = [part for part in leaves if part is not None]
    return torch.autograd.grad(result, given, grad)


def _reference(operation: str, case: Case, dtype: str) -> tuple[list[Tensor], list[float]]:
    """The torch backend in a wider dtype, and the error that is allowed for each output.

    The literal form does not fit at every size, so the torch backend in the same dtype stands for it in the
    budget, error <= 2 max(its error, eps); the torch backend itself is compared with the literal form by
    `correctness`.
    """
    backend = forms.OWN[operation]["torch"]
    wide = torch.float64 if dtype in ("float32", "tf32") else torch.float32
    with budget.matmul_precision("float32"):
        truth = budget.run(backend, case.to(wide))
    own = budget.errors(budget.run(backend, case), truth)
    return truth, [2 * max(error, budget.rounding(dtype)) for error in own]


def _prepare(
    job: dict[str, Any],
    item: str,
    case: Case,
    truth: list[Tensor],
    allowed: list[float],
    clock: Clock,
) -> _Prepared:
    """Compare a form with the exact one, which compiles and warms it, then make its entries."""
    device, form = job["device"], forms.get(job["operation"], item)
    call, leaves = _bind(job, form, case)
    start = time.perf_counter()
    result = call(leaves)
    gradients = _gradients(result, leaves, case.grad)
    found = [result.detach(), *form.gradients(gradients, case.features)]
    errors = budget.errors(found, truth)
    del result, gradients, found
    kept = all(error <= most for error, most in zip(errors, allowed, strict=True))
    parity = {
        "kept": kept,
        "errors": [error if error == error else None for error in errors],
        "allowed": allowed,
    }
    with torch.no_grad():
        call(leaves)
    made = _Prepared(form, parity, time.perf_counter() - start, {})
    frozen = tuple(leaves)
    for part, entry in _entries(call, leaves, case.grad).items():
        made.bytes_[part] = forms.least_bytes(frozen, case.grad, part)
        made.estimates[part] = clock.plan(entry, job["target_s"], job["case_limit_s"])
        made.peaks[part] = timing.peak_mib(entry, device)
        if not entry.rounds:
            made.notes[part] = (
                f"one run takes {made.estimates[part]:.0f} ms: "
                f"past the cap of {job['case_limit_s']:g} s"
            )
            continue
        made.entries[part] = entry
        _add_graph(job, made, part, entry, clock)
    if job["profile"] and device != "cpu" and item in ("fused", "sdpa efficient"):
        both = made.entries.get(PASSES[2])
        if both is not None:
            try:
                made.kernels = timing.kernel_names(lambda: both.run(None))
            except Exception as error:  # the names are wanted, not needed
                made.kernels = describe(error)
    return made


def _entries(
    call: Callable[[list[Tensor | None]], Tensor], leaves: list[Tensor | None], grad: Tensor
) -> dict[str, Entry]:
    """Forward without gradients, backward alone behind a forward that is not timed, and both."""

    def forward(_: Any) -> list[Tensor]:
        with torch.no_grad():
            return [call(leaves)]

    def both(_: Any) -> list[Tensor]:
        result = call(leaves)
        return [result.detach(), *_gradients(result, leaves, grad)]

    backward = Entry(lambda result: _gradients(result, leaves, grad), lambda: call(leaves))
    return {PASSES[0]: Entry(forward), PASSES[1]: backward, PASSES[2]: Entry(both)}


def _add_graph(job: dict[str, Any], made: _Prepared, part: str, entry: Entry, clock: Clock) -> None:
    """A CUDA graph of a form of our own, or why there is none."""
    reason = None
    if job["device"] == "cpu":
        reason = "there are no CUDA graphs on a CPU"
    elif not made.form.own:
        reason = "graphs are captured of our own forms alone"
    elif made.form.name in forms.NOT_CAPTURED:
        reason = forms.NOT_CAPTURED[made.form.name]
    elif part == PASSES[1]:
        reason = "a backward is captured with its forward alone"
    if reason is None:
        try:
            graph, same = timing.capture(lambda: entry.run(None))  # type: ignore[arg-type, return-value]
        except Exception as error:  # a form that cannot be captured is part of the figures
            reason = describe(error)
        else:
            replay = Entry(lambda _: graph.replay())
            clock.plan(replay, job["target_s"], job["case_limit_s"])
            made.graphs[part] = replay
            made.graph_notes[part] = {"same_bits": same}
            return
    made.graph_notes[part] = {"reason": reason}


def _identity(job: dict[str, Any], item: str, part: str) -> dict[str, Any]:
    operation = job["operation"]
    form = forms.get(operation, item)
    return {
        "own": form.own,
        "form": item,
        "pass": part,
        "size": job["size"],
        "floor_flop": forms.work(operation, job["size"], part, all_pairs=operation == "joint"),
        "own_flop": forms.work(operation, job["size"], part, form.all_pairs),
    }


def _record(job: dict[str, Any], one: _Prepared, part: str) -> dict[str, Any]:
    record = _identity(job, one.form.name, part) | {
        "parity": one.parity,
        "prepare_s": one.prepare_s,
        "least_bytes": one.bytes_[part],
        "peak_mib": one.peaks[part],
        "estimate_ms": one.estimates[part],
    }
    if part in one.notes:
        return record | {"status": "skipped", "reason": one.notes[part]}
    graph = dict(one.graph_notes[part])
    if part in one.graphs and one.graphs[part].samples:
        graph |= timing.summary(one.graphs[part].samples)
    record |= timing.summary(one.entries[part].samples) | {"graph": graph, "reason": None}
    if "median_ms" in graph:
        record["launch_overhead_ms"] = record["median_ms"] - graph["median_ms"]
    if part == PASSES[2] and one.kernels is not None:
        record["kernels"] = one.kernels
    if not one.parity["kept"]:
        reason = f"errors {one.parity['errors']} beyond those allowed, {one.parity['allowed']}"
        return record | {"status": "inexact", "reason": reason}
    return record | {"status": "measured"}


def _free(device: str) -> None:
    if device != "cpu":
        torch.cuda.empty_cache()
