"""Speed and memory of an operation's forms at one size, each compared with the exact result before it is timed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from . import budget, forms, parity, timing
from .parity import Bound, Exact
from .plan import PASSES, TRITON
from .timing import Clock, Entry

Emit = Callable[[dict[str, Any]], None]
Step = Callable[[str, float], None]

_PREPARE_LIMIT_S = 75.0


@dataclass
class _Prepared:
    """A form at one size before it is timed. Dictionaries are keyed by pass."""

    form: forms.Form
    parity: dict[str, Any]
    prepare_s: float
    bytes_: dict[str, float]
    entries: dict[str, Entry] = field(default_factory=dict)
    graphs: dict[str, Entry] = field(default_factory=dict)
    graph_notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    peaks: dict[str, float | None] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)  # why a pass is not measured
    failures: dict[str, str] = field(default_factory=dict)
    estimates: dict[str, float] = field(default_factory=dict)


def measure(
    job: dict[str, Any], items: list[str], step: Step, emit: Emit, alive: Callable[[], bool]
) -> None:
    """Emit a record for each form and pass.

    Args:
        job: A job of `plan.speed`.
        items: The forms to measure.
        step: Called as step(item, limit in seconds) before each item.
        emit: Called with each record.
        alive: Whether the device still responds after an error; if not, the rest is left for another process.
    """
    device, operation = job["device"], job["operation"]
    with budget.matmul_precision(job["dtype"]):
        step("inputs", _PREPARE_LIMIT_S)
        if device != "cpu" and any(item in parity.COMPILED for item in items):
            # So that the limit of recompilations applies to each size. Never between preparing and timing.
            torch._dynamo.reset()
        case = _draw(job)
        truth = parity.exact(operation, job["size"], case, job["dtype"])
        clock = Clock(device)
        prepared = []
        for item in items:
            step(item, _PREPARE_LIMIT_S)
            reason = _why_not(item, device)
            try:
                if reason is None:
                    prepared.append(_prepare(job, item, case, truth, clock))
                    continue
                status = "skipped"
            except Exception as error:  # a form that fails is recorded
                status, reason = "failed", timing.describe(error)
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
    """Run forms once forward and backward, so that their compiled code is in the cache on disk."""
    for item in items:
        step(item, _PREPARE_LIMIT_S)
        if item in parity.COMPILED:
            torch._dynamo.reset()
        bound = _bind(job, item)
        with budget.matmul_precision(job["dtype"]):
            bound.forward()
            bound.both()


def kernel_names(job: dict[str, Any], item: str) -> dict[str, Any]:
    """The record of the kernels that a form runs forward and backward."""
    bound = _bind(job, item)
    with budget.matmul_precision(job["dtype"]):
        bound.both()
        return {"status": "measured", "reason": None, "kernels": timing.kernel_names(bound.both)}


def _why_not(item: str, device: str) -> str | None:
    """Why a form is not measured on a device; None if it is."""
    if device == "cpu" and item in parity.COMPILED:
        return "compiled peers are measured only on a GPU"
    if device == "cpu" and item in TRITON:
        return "the speed of Triton's interpreter is meaningless"
    return None


def _bind(job: dict[str, Any], item: str) -> Bound:
    return parity.bind(job["operation"], item, job["size"], _draw(job))


def _draw(job: dict[str, Any]) -> budget.Case:
    dtype = budget.torch_dtype(job["dtype"])
    spread = budget.spread(job["dtype"])
    return forms.draw(job["operation"], job["size"], dtype, job["device"], spread=spread)


def _prepare(
    job: dict[str, Any], item: str, case: budget.Case, truth: Exact, clock: Clock
) -> _Prepared:
    """Compare a form with the exact one, which also compiles it and warms it up, then make its entries."""
    device = job["device"]
    bound = parity.bind(job["operation"], item, job["size"], case)
    start = time.perf_counter()
    broken = None
    try:
        errors = parity.compare(bound, case, truth)
    except Exception as error:  # at some sizes a form has no backward, or not enough memory
        broken = timing.describe(error)
    if broken is not None:
        _free(device)
        errors = parity.compare(bound, case, truth, forward_only=True)
    bound.forward()
    made = _Prepared(bound.form, errors, time.perf_counter() - start, {})
    for part, entry in _entries(bound).items():
        if broken is not None and part != PASSES[0]:
            made.failures[part] = broken
            continue
        made.bytes_[part] = forms.least_bytes(bound.leaves, case.grad, part)
        made.estimates[part] = clock.plan(entry, job["target_s"], job["case_limit_s"])
        if not entry.rounds:
            made.peaks[part] = None
            made.notes[part] = (
                f"one run takes {made.estimates[part]:.0f} ms, "
                f"more than the limit of {job['case_limit_s']:g} s"
            )
            continue
        made.peaks[part] = timing.peak_mib(entry, device)
        made.entries[part] = entry
        _add_graph(job, made, part, entry, clock)
    return made


def _entries(bound: Bound) -> dict[str, Entry]:
    """Forward without gradients, backward alone after a forward that is not timed, and both."""
    return {
        PASSES[0]: Entry(lambda _: [bound.forward()]),
        PASSES[1]: Entry(bound.gradients, bound.result),
        PASSES[2]: Entry(lambda _: bound.both()),
    }


def _add_graph(job: dict[str, Any], made: _Prepared, part: str, entry: Entry, clock: Clock) -> None:
    """Add a CUDA graph of one of the library's forms, or the reason why there is none."""
    reason = None
    if job["device"] == "cpu":
        reason = "a CPU has no CUDA graphs"
    elif not made.form.own:
        reason = "only the library's own forms are captured"
    elif made.form.name in forms.NOT_CAPTURED:
        reason = forms.NOT_CAPTURED[made.form.name]
    elif part == PASSES[1]:
        reason = "a backward is captured only together with its forward"
    if reason is None:
        try:
            run = cast("Callable[[None], Sequence[torch.Tensor]]", entry.run)
            graph, same = timing.capture(lambda: run(None))
        except Exception as error:  # a form that cannot be captured is recorded
            reason = timing.describe(error)
        else:
            replay = Entry(lambda _: graph.replay())
            clock.plan(replay, job["target_s"], job["case_limit_s"])
            replay.rounds = max(replay.rounds, 1)
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
    if part in one.failures:
        identity = _identity(job, one.form.name, part)
        return identity | {"status": "failed", "reason": one.failures[part]}
    record = _identity(job, one.form.name, part) | {
        "parity": one.parity,
        "prepare_s": one.prepare_s,
        "least_bytes": one.bytes_[part],
        "peak_mib": one.peaks[part],
        "estimate_ms": one.estimates[part],
    }
    if part in one.notes:
        return record | {"status": "skipped", "reason": one.notes[part]}
    if one.entries[part].failure:
        return record | {"status": "failed", "reason": one.entries[part].failure}
    graph = dict(one.graph_notes[part])
    if part in one.graphs:
        replay = one.graphs[part]
        graph |= {"reason": replay.failure} if replay.failure else timing.summary(replay.samples)
    record |= timing.summary(one.entries[part].samples) | {"graph": graph, "reason": None}
    if "median_ms" in graph:
        record["launch_overhead_ms"] = record["median_ms"] - graph["median_ms"]
    if not one.parity["kept"] and (one.form.own or None in one.parity["errors"]):
        reason = f"errors {one.parity['errors']} exceed those allowed, {one.parity['allowed']}"
        return record | {"status": "inexact", "reason": reason}
    return record | {"status": "measured"}


def _free(device: str) -> None:
    if device != "cpu":
        torch.cuda.empty_cache()
