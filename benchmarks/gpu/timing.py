"""Timing by CUDA events or the wall clock, interleaved rounds, CUDA graphs, and peak memory."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_ROUNDS, FEWEST_ROUNDS = 30, 3
_FLUSH_BYTES = 256 * 2**20  # several times the L2 cache of any GPU


@dataclass
class Entry:
    """A function to time.

    Attributes:
        run: Runs it once.
        before: Runs before each `run`, not timed (the forward of a backward); its result is passed to `run`.
        rounds: Number of timed runs.
        samples: Their milliseconds.
        failure: Status and reason of the error that ended the rounds of this entry early.
    """

    run: Callable[[Any], object]
    before: Callable[[], Any] = lambda: None
    rounds: int = 0
    samples: list[float] = field(default_factory=list)
    failure: dict[str, str] | None = None


class Clock:
    """Times runs on a device, each with a cold L2 cache."""

    def __init__(self, device: str) -> None:
        self.cuda = device != "cpu"
        if self.cuda:
            self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device)
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def once(self, entry: Entry) -> float:
        """Milliseconds of one run."""
        given = entry.before()
        if not self.cuda:
            start = time.perf_counter()
            entry.run(given)
            return (time.perf_counter() - start) * 1e3
        self._flush.zero_()
        self._events[0].record()
        result = entry.run(given)
        self._events[1].record()
        self._events[1].synchronize()
        del result
        return self._events[0].elapsed_time(self._events[1])

    def plan(self, entry: Entry, target_s: float, limit_s: float) -> float:
        """Set the number of rounds of a warm entry from one run; returns that run's milliseconds.

        The rounds take about `target_s`, including what is not timed, and never more than `limit_s`; if a single
        round would take longer, there is none.
        """
        start = time.perf_counter()
        milliseconds = self.once(entry)
        seconds = max(time.perf_counter() - start, 1e-6)
        wanted = min(MOST_ROUNDS, max(FEWEST_ROUNDS, int(target_s / seconds)))
        entry.rounds = min(wanted, int(limit_s / seconds))
        return milliseconds

    def interleave(self, entries: Sequence[Entry]) -> None:
        """Time all entries in turn, round by round, so that a drift of the clock rate affects all alike."""
        for number in range(max((entry.rounds for entry in entries), default=0)):
            for entry in entries:
                if number >= entry.rounds or entry.failure:
                    continue
                try:
                    entry.samples.append(self.once(entry))
                except Exception as error:  # recorded
                    entry.failure = outcome(error)


def outcome(error: BaseException) -> dict[str, str]:
    """Status ("out of memory" or "failed") and reason, one line of limited length, of a record with an error."""
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    # Libraries report it as a RuntimeError with one of these texts.
    memory = isinstance(error, torch.OutOfMemoryError) or any(
        part in text for part in ("out of memory", "ALLOC_FAILED")
    )
    reason = f"{type(error).__name__}: {text[:400]}"
    return {"status": "out of memory" if memory else "failed", "reason": reason}


def summary(samples: Sequence[float]) -> dict[str, float]:
    """The median and the 20th and 80th percentiles, in milliseconds."""
    low, median, high = np.percentile(samples, [20, 50, 80]).tolist()
    return {"median_ms": median, "low_ms": low, "high_ms": high, "rounds": len(samples)}


def peak_mib(entry: Entry, device: str) -> float | None:
    """MiB that one run allocates at its peak beyond what was allocated before; None on a CPU."""
    if device == "cpu":
        return None
    given = entry.before()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = entry.run(given)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    del result
    return (peak - before) / 2**20


def capture(run: Callable[[], Sequence[Tensor]]) -> tuple[torch.cuda.CUDAGraph, bool]:
    """A CUDA graph of a run, and whether its replay is bitwise identical to the run."""
    expected = [part.clone() for part in run()]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()
    graph.replay()  # capture runs nothing, so the outputs are undefined before
    torch.cuda.synchronize()
    same = all(torch.equal(one, two) for one, two in zip(outputs, expected, strict=True))
    return graph, same


def kernels(run: Callable[[], object]) -> list[dict[str, Any]]:
    """The kernels, copies and fills that one run launches, with their numbers and times, longest first."""
    run()
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    rows = [
        {"kernel": row.key, "calls": row.count, "ms": row.self_device_time_total / 1e3}
        for row in profiler.key_averages()
        if row.self_device_time_total > 0
    ]
    if not rows:
        raise RuntimeError("the profiler recorded no kernel.")
    return sorted(rows, key=lambda row: -row["ms"])
