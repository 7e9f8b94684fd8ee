"""Correctness, speed and memory of the kernels on one GPU.

    python -m benchmarks.gpu --out DIR

Run it from the checkout with Python >= 3.11, torch >= 2.11 and Triton >= 3.6: it installs and downloads nothing.
It writes gpu.json and, if matplotlib is installed, plots (*.png) to DIR.

Until --minutes are over, it measures in this order:
  1. correctness of every kernel and dtype against the literal equations, in parallel processes, which also compile
     what is timed later; then at the paper's size, where the literal form runs over blocks of queries
  2. the ceilings: the library's matrix products in each dtype, and copies
  3. speed and peak memory, forward, backward and both: the paper's size with all peers, a whole CMSA level and a
     whole folded model; then this library's forms with padded words, with 1, 3 and 7 expressions an image, with
     wider logits, in other dtypes, and over a grid of places, words and batches; the tails and projections; the
     joint attention at every width

A time that the compile report predicts (benchmarks/results/compile.json) is given beside the measured one.

Failures are recorded and the run goes on. What is out of memory is repeated alone, then recorded as out of memory;
what does not fit the time is recorded as skipped. The exit status is
  0  every check passed
  1  one of the library's own forms is incorrect or failed
  2  the arguments are wrong
  3  nothing is known to be wrong, but some cases of correctness were not checked (no time, or out of memory)

  python -m benchmarks.gpu --out /tmp/gpu                     everything, in less than 8 minutes
  python -m benchmarks.gpu --out /tmp/gpu --quick             only the paper's size
  python -m benchmarks.gpu --out /tmp/gpu --only joint tail   only these sections
  python -m benchmarks.gpu --out /tmp/gpu --redraw            draw the plots of an existing gpu.json again
  python -m benchmarks.gpu --out /tmp/gpu --device cpu --quick    a trial on the CPU at tiny sizes, in seconds
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from cmsa_fast.system.files import write_json

from . import driver, metadata, plan, summary
from .driver import Deadline
from .plan import Job

_SCHEMA = 2  # of schema.json
_FIRST_RESPONSE_S = 150.0  # for the device's description
_PARALLEL_SHARE = 0.4  # of the time, at most, for the small cases of correctness and compilation
_MINUTES = 7.5  # the rest of 8 minutes is for the plots
_WRITE_EVERY_S = 3.0
_WORKER_LIMIT = 14  # each holds a CUDA context
_NOTES = (
    "forward is timed without gradients; backward after a forward that is not timed; each with a cold L2",
    "the tokens of the all-pairs peers are made before the timing, in their favour; the mean over words is timed",
    "own_flop counts two products forward, five backward, seven both (joint tail 1, 3, 4; projections 1, 2, 3); "
    "further recomputation and a model are not counted. floor_flop is that of the cheapest exact form",
    "predicted_ms comes from the compile report and was not measured",
    "direct_share: rows (expression, place, word) whose factored sum is below the floor, computed directly",
    "times and shares are those of the CUDA graph if there is one; ratios between forms include launches",
    "inexact: timed, but beyond the error budget, and so excluded from goals, comparisons and plots; a peer is "
    "excluded only if its errors are not finite",
)


class Results:
    """The result file, written every few seconds, so that an interrupted run keeps what was measured."""

    def __init__(self, folder: Path, arguments: dict[str, Any], minutes: float) -> None:
        self.path = folder / "gpu.json"
        self._start = self._written = time.monotonic()
        self._lock = threading.Lock()
        self.content: dict[str, Any] = {
            "schema": _SCHEMA,
            "metadata": {
                **metadata.host(arguments),
                "device": None,
                "minutes": minutes,
                "seconds": 0.0,
                "finished": False,
                "notes": list(_NOTES),
            },
            "correctness": [],
            "ceilings": [],
            "speed": [],
            "kernels": [],
            "summary": {"counts": {}, "goals": []},
            "plots": {},
        }

    def add(self, job: Job, record: dict[str, Any]) -> None:
        with self._lock:
            if job["kind"] == "metadata":
                self.content["metadata"]["device"] = record
            else:
                self.content[job["kind"]].append(record)
            if time.monotonic() > self._written + _WRITE_EVERY_S:
                self._write()
        if job["kind"] != "metadata":
            name = " ".join(str(value) for value in _key(job, record))
            print(f"[{time.monotonic() - self._start:6.1f} s] {name}: {record['status']}", flush=True)

    def finish(self, finished: bool) -> None:
        """Draw the plots and write the file for the last time; `finished` is False if the run was interrupted."""
        with self._lock:
            self.content["metadata"]["finished"] = finished
            self._write()
            self.content["plots"] = draw(self.content, self.path.parent)
            self._write()

    def _write(self) -> None:
        summary.add_shares(self.content)
        self.content["summary"] = summary.summarise(self.content)
        self._written = time.monotonic()
        self.content["metadata"]["seconds"] = time.monotonic() - self._start
        write_json(self.path, self.content)


def draw(content: dict[str, Any], folder: Path) -> dict[str, str | None]:
    """Draw the plots; returns for each file name None, or why it was not drawn."""
    try:
        from . import plots
    except ImportError as error:
        reason = f"{error}; draw them where matplotlib is installed: python -m benchmarks.gpu --redraw --out DIR"
        return {"*.png": reason}
    return plots.draw_all(content, folder)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run everything; returns the content of the result file."""
    device, only, quick = arguments.device, tuple(arguments.only), arguments.quick
    deadline = Deadline(arguments.minutes * 60)
    results = Results(arguments.out, vars(arguments) | {"out": str(arguments.out)}, arguments.minutes)
    first: list[Job] = [{"kind": "metadata", "device": device, "items": ["metadata"]}]
    small = plan.correctness(device, quick) if "correctness" in only else []
    speed, finished = plan.speed(device, quick, only), False
    ceilings = plan.ceilings(device, quick) if "ceilings" in only or speed else []
    try:
        if device == "cpu":
            jobs = first + small + ceilings + speed
            again = driver.do_all(jobs, 1, {"TRITON_INTERPRET": "1"}, deadline, results.add)
        else:
            driver.do_all(first, 1, {}, Deadline(_FIRST_RESPONSE_S), results.add)
            described = results.content["metadata"]["device"] or {"error": "it does not respond"}
            if "error" in described:
                raise SystemExit(f"{device} cannot be used: {described['error']}")
            # In parallel; what takes longest to compile comes first.
            parallel = plan.warm_ups(speed) + plan.kernels(device, only) + small
            cores = os.cpu_count() or 1
            workers = max(1, min(_WORKER_LIMIT, cores - 2))
            threads = {"OMP_NUM_THREADS": str(max(1, cores // workers))}
            share = Deadline(min(deadline.left(), _PARALLEL_SHARE * deadline.seconds))
            again = driver.do_all(parallel, workers, threads, share, results.add)
            full = plan.correctness(device, quick, full=True) if small else []
            again = driver.do_all(again + full + ceilings + speed, 1, {}, deadline, results.add)
        driver.do_all(again, 1, {}, deadline, results.add)
        finished = True
    finally:
        results.finish(finished)
    return results.content


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    add("--quick", action="store_true", help="only the most important sizes")
    sections, text = list(plan.SECTIONS), "only these sections (speed includes the ceilings)"
    add("--only", nargs="+", choices=sections, default=sections, help=text)
    add("--minutes", type=float, default=_MINUTES, help=f"time limit (default {_MINUTES})")
    add("--device", default="cuda", help="cuda (default), cuda:1, ... or cpu")
    add("--redraw", action="store_true", help="only draw the plots of DIR/gpu.json again")
    arguments = parser.parse_args()
    if not arguments.minutes > 0:
        parser.error(f"--minutes must be above 0; got {arguments.minutes}.")
    if arguments.redraw:
        path = arguments.out / "gpu.json"
        if not path.is_file():
            parser.error(f"{path} does not exist.")
        content = json.loads(path.read_text(encoding="utf-8"))
        content["plots"] = draw(content, arguments.out)
        write_json(path, content)
        print(json.dumps(content["plots"], indent=1))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the file is completed
    content = measure(arguments)
    print(summary.format_tables(content))
    seconds = content["metadata"]["seconds"]
    print(f"{arguments.out / 'gpu.json'}, {seconds:.0f} s; plots: {content['plots']}")
    sys.exit(summary.exit_status(content))


def _key(job: Job, record: dict[str, Any]) -> list[Any]:
    names = ("operation", "form", "dtype", "case", "name", "size_name", "pass")
    return [record[name] for name in names if name in record]


if __name__ == "__main__":
    main()
