"""Shared parts of the CPU benchmarks: interleaved timing, page faults, peak memory, the machine, the command."""

import argparse
import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from cmsa_fast.system.files import write_json

Result = TypeVar("Result")

_FEWEST_WARM = 4


def time_interleaved(
    runs: Mapping[str, Callable[[], object]], rounds: int | Mapping[str, int]
) -> dict[str, list[float]]:
    """Time functions in turn, round by round, so that a drift of the machine's speed affects all of them alike.

    A function with at least four rounds is first run once without being timed.

    Args:
        runs: The functions by name.
        rounds: Number of timed runs, of all or of each function.

    Returns:
        The seconds of every run, by name.
    """
    counts = {name: rounds if isinstance(rounds, int) else rounds[name] for name in runs}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(-1, max(counts.values())):
        for name, run in runs.items():
            if index >= counts[name] or (index < 0 and counts[name] < _FEWEST_WARM):
                continue
            start = time.perf_counter()
            run()
            if index >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def summarize(times: Sequence[float]) -> dict[str, float]:
    """Median and range of seconds."""
    return {"median_s": statistics.median(times), "min_s": min(times), "max_s": max(times)}


class Run(NamedTuple):
    """What one run took: the time, page faults without disk access, and growth of the process's peak memory."""

    seconds: float
    page_faults: int
    added_mib: float


_prepared: Callable[[], object]


def run_in_processes(
    build: Callable[[str], Callable[[], object]], rounds: Mapping[str, int]
) -> dict[str, list[Run]]:
    """Run functions in turn, round by round, each in its own new process.

    What one function leaves behind, such as the memory that malloc has kept, therefore helps no other.

    Args:
        build: A module-level function that returns the function of a name.
        rounds: Number of runs after the first, by name.

    Returns:
        The runs by name. The first of each is the first run in its process.
    """
    context = multiprocessing.get_context("spawn")
    runs: dict[str, list[Run]] = {name: [] for name in rounds}
    with ExitStack() as stack:
        pools = {name: stack.enter_context(ProcessPoolExecutor(1, mp_context=context)) for name in rounds}
        for name, pool in pools.items():
            pool.submit(_prepare, build, name).result()
        for index in range(1 + max(rounds.values())):
            for name, pool in pools.items():
                if index <= rounds[name]:
                    runs[name].append(pool.submit(_run_once).result())
    return runs


def _prepare(build: Callable[[str], Callable[[], object]], name: str) -> None:
    global _prepared
    _prepared = build(name)
    torch.randn(64, 64) @ torch.randn(64, 64)  # lets the libraries allocate their own buffers


def _run_once() -> Run:
    peak, faults = peak_mib(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    start = time.perf_counter()
    _prepared()
    seconds = time.perf_counter() - start
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return Run(seconds, faults, peak_mib() - peak)


def in_fresh_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a module-level function in a new process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def peak_mib() -> float:
    """Peak resident memory of this process in MiB.

    It is read from /proc because a process inherits the peak that getrusage reports from its parent.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM: peak memory can be measured only on Linux.")


def added_peak_mib(build: Callable[[str], Callable[[], object]], name: str) -> float:
    """MiB that one run of `build(name)` adds to the peak memory of a new process."""
    return in_fresh_process(_added_peak_mib, build, name)


def _added_peak_mib(build: Callable[[str], Callable[[], object]], name: str) -> float:
    _prepare(build, name)
    return _run_once().added_mib


def machine() -> dict[str, Any]:
    """Processor, number of threads, versions and date."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                processor = line.split(":", 1)[1].strip()
                break
    return {
        "processor": processor,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def run_command(
    description: str | None,
    collect: Callable[..., dict[str, Any]],
    format_table: Callable[[dict[str, Any]], str],
    rounds: int | None = None,
) -> None:
    """Run a benchmark from the command line: measure, print a table, and write the figures to a file.

    Args:
        description: Text of --help.
        collect: Measures and returns the figures; takes the number of rounds unless `rounds` is None.
        format_table: Formats the figures as a table.
        rounds: Default of --rounds; None for a benchmark without that option.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    if rounds is not None:
        parser.add_argument(
            "--rounds", type=int, default=rounds, help=f"timed runs of each case (default {rounds})"
        )
    arguments = parser.parse_args()
    if rounds is not None and arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1; got {arguments.rounds}.")
    figures = collect() if rounds is None else collect(arguments.rounds)
    print(format_table(figures))
    if arguments.json:
        write_json(arguments.json, figures)
