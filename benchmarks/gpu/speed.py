"""Speed and memory of an operation's forms at one size, each compared with the exact result before it is timed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from . import budget, forms, parity, timing
from .parity import Bound, Exact
from .plan import COMPILED, PASSES
from .timing import Clock, Entry

Emit = Callable[[dict[str, Any]], None]
Step = Callable[[str, float], None]

_PREPARE_LIMIT_S = 75.0


@dataclass
class _Pass:
    """A pass of a form: its record so far, and what is timed."""

    record: dict[str, Any]
    entry: Entry | None = None
    replay: Entry | None = None  # of its CUDA graph


def measure(job: dict[str, Any], items: list[str], step: Step, emit: Emit, alive: Callable[[], bool]) -> None:
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
        if device != "cpu" and any(item in COMPILED for item in items):
            # So that the limit of recompilations applies to each size. Never between preparing and timing.
            torch._dynamo.reset()
        case = _draw(job)
        truth = parity.exact(operation, job["size"], case, job["dtype"])
        shared = {"direct_share": forms.direct_share(case)} if operation == "separable" else {}
        clock = Clock(device)
        prepared = []
        for item in items:
            step(item, _PREPARE_LIMIT_S)
            reason = _why_not(item, device)
            try:
                if reason is None:
                    prepared.append(_prepare(job, item, case, truth, clock))
                    continue
                result = {"status": "skipped", "reason": reason}
            except Exception as error:  # a form that fails is recorded
                result = timing.outcome(error)
            for part in job["passes"]:
                emit(_identity(job, item, part) | result)
            if not alive():
                return
            _free(device)
        for part in job["passes"]:
            passes = [one[part] for one in prepared]
            pairs = [(one.entry, one.replay) for one in passes]
            entries = [entry for pair in pairs for entry in pair if entry is not None]
            step("rounds", 20 + len(entries) * 2 * job["case_limit_s"])
            clock.interleave(entries)
            for one in passes:
                emit(_complete(one) | shared)


def warm_up(job: dict[str, Any], items: list[str], step: Step) -> None:
    """Run forms once forward and backward, so that their compiled code is in the cache on disk."""
    for item in items:
        step(item, _PREPARE_LIMIT_S)
        if item in COMPILED:
            torch._dynamo.reset()
        bound = _bind(job, item)
        with budget.matmul_precision(job["dtype"]):
            bound.forward()
            bound.both()


def count_launches(job: dict[str, Any], item: str) -> dict[str, Any]:
    """The record of what a form launches, by pass."""
    bound = _bind(job, item)
    with budget.matmul_precision(job["dtype"]):
        runs = {PASSES[0]: bound.forward, PASSES[2]: bound.both}
        kernels = {part: timing.kernels(run) for part, run in runs.items() if part in job["passes"]}
    launches = {part: sum(row["calls"] for row in rows) for part, rows in kernels.items()}
    return {"status": "measured", "reason": None, "launches": launches, "kernels": kernels}


def _why_not(item: str, device: str) -> str | None:
    """Why a form is not measured on a device; None if it is."""
    if device == "cpu" and item in COMPILED:
        return "compiled peers are measured only on a GPU"
    if device == "cpu" and item == "triton":
        return "the speed of Triton's interpreter is meaningless"
    return None


def _bind(job: dict[str, Any], item: str) -> Bound:
    return parity.bind(job["operation"], item, job["size"], _draw(job))


def _draw(job: dict[str, Any]) -> budget.Case:
    dtype = budget.torch_dtype(job["dtype"])
    logits = budget.logits(job["dtype"])
    return forms.draw(job["operation"], job["size"], dtype, job["device"], logits=logits)


def _prepare(job: dict[str, Any], item: str, case: budget.Case, truth: Exact, clock: Clock) -> dict[str, _Pass]:
    """Compare a form with the exact one, which also compiles it and warms it up, then make its passes."""
    device = job["device"]
    bound = parity.bind(job["operation"], item, job["size"], case)
    start = time.perf_counter()
    broken = None
    try:
        errors = parity.compare(bound, case, truth)
    except Exception as error:  # at some sizes a form has no backward, or not enough memory
        broken = timing.outcome(error)
    if broken is not None:
        _free(device)
        errors = parity.compare(bound, case, truth, forward_only=True)
    bound.forward()
    shared = {"parity": errors, "prepare_s": time.perf_counter() - start, "peak_mib": None}
    passes: dict[str, _Pass] = {}
    for part, entry in _entries(bound).items():
        if part not in job["passes"]:
            continue
        passes[part] = one = _Pass(_identity(job, item, part))
        if broken is not None and part != PASSES[0]:
            one.record |= broken
            continue
        estimate = clock.plan(entry, job["target_s"], job["case_limit_s"])
        least_bytes = forms.least_bytes(bound.leaves, case.grad, part)
        one.record |= {**shared, "least_bytes": least_bytes, "estimate_ms": estimate}
        if not entry.rounds:
            reason = f"one run takes {estimate:.0f} ms, more than the limit of {job['case_limit_s']:g} s"
            one.record |= {"status": "skipped", "reason": reason}
            continue
        one.record["peak_mib"] = timing.peak_mib(entry, device)
        one.entry = entry
        _add_graph(job, bound.form, part, one, clock)
    return passes


def _entries(bound: Bound) -> dict[str, Entry]:
    """Forward without gradients, backward alone after a forward that is not timed, and both."""
    return {
        PASSES[0]: Entry(lambda _: [bound.forward()]),
        PASSES[1]: Entry(bound.gradients, bound.result),
        PASSES[2]: Entry(lambda _: bound.both()),
    }


def _add_graph(job: dict[str, Any], form: forms.Form, part: str, one: _Pass, clock: Clock) -> None:
    """Add a CUDA graph of one of the library's forms, or the reason why there is none."""
    reason = None
    if job["device"] == "cpu":
        reason = "a CPU has no CUDA graphs"
    elif form.name != "triton":
        reason = "only Triton forms are captured; the torch backend reads values on the host"
    elif part == PASSES[1]:
        reason = "a backward is captured only together with its forward"
    one.record["graph"] = {"reason": reason}
    if reason is not None or one.entry is None:
        return
    try:
        run = cast("Callable[[None], Sequence[torch.Tensor]]", one.entry.run)
        graph, same = timing.capture(lambda: run(None))
    except Exception as error:  # a form that cannot be captured is recorded
        one.record["graph"] = {"reason": timing.outcome(error)["reason"]}
        return
    one.replay = Entry(lambda _: graph.replay())
    clock.plan(one.replay, job["target_s"], job["case_limit_s"])
    one.replay.rounds = max(one.replay.rounds, 1)
    one.record["graph"] = {"same_bits": same}


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


def _complete(one: _Pass) -> dict[str, Any]:
    """The record of a pass after its rounds."""
    if one.entry is None:
        return one.record
    if one.entry.failure:
        return one.record | one.entry.failure
    record = one.record | timing.summary(one.entry.samples) | {"reason": None}
    if one.replay is not None and one.replay.failure:
        record["graph"] = record["graph"] | {"reason": one.replay.failure["reason"]}
    elif one.replay is not None:
        record["graph"] = record["graph"] | timing.summary(one.replay.samples)
        record["launch_overhead_ms"] = record["median_ms"] - record["graph"]["median_ms"]
    errors, allowed = record["parity"]["errors"], record["parity"]["allowed"]
    if not record["parity"]["kept"] and (record["own"] or None in errors):
        reason = f"errors {errors} exceed those allowed, {allowed}"
        return record | {"status": "inexact", "reason": reason}
    return record | {"status": "measured"}


def _free(device: str) -> None:
    if device != "cpu":
        torch.cuda.empty_cache()
