"""Compile every tile of every Triton kernel for every supported architecture, and predict the time of calls.

    python -m benchmarks.compile_report --json benchmarks/results/compile.json

No GPU is needed. Launchers run on meta tensors with a substitute for Triton's driver, so they compile exactly what
a launch on that GPU would compile. The report lists for each kernel its shared memory, registers, bytes of spilled
registers and CTAs per multiprocessor, and what an iteration of its hot loops executes: tensor-core instructions,
barriers, plain loads and asynchronous copies. For whole calls it lists launches, products and bytes, and a
predicted time, which is no measurement. The exit status is 1 if a kernel exceeds the limit of shared memory or
spills more than 256 bytes.
"""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from . import table
from .cases import ARCHITECTURES, ARITHMETICS, FAMILIES, VARIANTS, WIDTHS, Case, shipped


def _results(tasks: Sequence[table.Task], processes: int) -> Iterator[list[table.Row]]:
    """The rows of each task, in order; with 0 processes they are made in this one."""
    if not processes:
        yield from map(table.rows_of, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(table.rows_of, tasks)


def _print(text: Callable[[table.Row], str], results: Iterable[list[table.Row]]) -> list[table.Row]:
    rows = []
    for part in results:
        for row in part:
            print(text(row), flush=True)
        rows += part
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="file whose rows are updated")
    choices = (tuple(FAMILIES), ARCHITECTURES, ARITHMETICS, WIDTHS, VARIANTS)
    for name, values in zip(Case._fields, choices, strict=True):
        parser.add_argument(f"--{name}", nargs="+", choices=values, default=values, type=type(values[0]))
    parser.add_argument("--only", choices=("kernels", "calls"), help="default: both")
    parser.add_argument(
        "--processes",
        type=int,
        default=os.cpu_count() or 1,
        help="number of processes; 0 compiles in this one",
    )
    options = parser.parse_args()
    if os.environ.pop("TRITON_INTERPRET", None):
        print("TRITON_INTERPRET is ignored: kernels are only compiled.", file=sys.stderr)
    cases = [
        case for case in shipped() if all(getattr(case, name) in getattr(options, name) for name in Case._fields)
    ]
    calls = [
        call for call in table.shipped_calls() if call[0] in options.family and call[1] in options.architecture
    ]
    parts: dict[str, list[table.Row]] = {"kernels": [], "calls": []}
    work: dict[str, tuple[Callable[[table.Row], str], list[table.Task]]] = {
        "kernels": (table.format_kernel, [("case", case) for case in cases]),
        "calls": (table.format_call, [("call", call) for call in calls]),
    }
    for part, (text, tasks) in work.items():
        if options.only in (None, part):
            parts[part] = _print(text, _results(tasks, options.processes))
    if options.json:
        table.write(options.json, **parts)
    exceeding = [row for row in parts["kernels"] if not table.within_limits(row)]
    print(f"{len(parts['kernels'])} kernels compiled, {len(exceeding)} exceed a limit.")
    sys.exit(bool(exceeding))


if __name__ == "__main__":
    main()
