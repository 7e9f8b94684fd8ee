"""Speed and memory of the attention on the CPU beside its peers.

    python -m benchmarks.attention --json benchmarks/results/attention-cpu.json

All cases run in one process, interleaved, and medians are quoted, so that a machine whose speed drifts moves
all of them alike. Peak memory is measured in a fresh process for each case.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from . import cases


def measure() -> dict[str, list[float]]:
    """Seconds of every round of every case, the rounds interleaved."""
    built = {name: cases.build(name) for name in cases.NAMES}
    seconds: dict[str, list[float]] = {name: [] for name in built}
    for round_index in range(-1, max(case.rounds for case in built.values())):
        for name, case in built.items():
            warm_up = round_index < 0 and case.rounds > 3
            if not warm_up and not 0 <= round_index < case.rounds:
                continue
            start = time.perf_counter()
            case.run()
            if not warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_memory(name: str) -> float:
    """MiB that one run of a case adds to the peak of a fresh process."""
    command = [sys.executable, "-m", "benchmarks.attention", "--peak-of", name]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(result.stdout)


def peak_mib() -> float:
    """Peak resident memory of this process. Not getrusage's, which a process inherits from its parent on Linux."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(
        "/proc/self/status has no VmHWM; peak memory can be measured on Linux alone."
    )


def import_seconds(statement: str) -> float:
    """Median over fresh processes of the time an import takes."""
    code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    times = []
    for _ in range(5):
        result = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        )
        times.append(float(result.stdout))
    return statistics.median(times)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
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


def collect() -> dict[str, Any]:
    """All figures: medians, rates, shares of the matrix-product rate, ratios, memory."""
    seconds = measure()
    median = {name: statistics.median(times) for name, times in seconds.items()}
    rates = {
        name: flops / median[name] / 1e9
        for name in cases.NAMES
        if (flops := cases.build(name).flops) is not None
    }
    matmul = max(rates[f"matmul {size}"] for size in cases.MATMUL_SIZES)
    rows = {
        name: {
            "rounds": len(times),
            "median_s": median[name],
            "min_s": min(times),
            "max_s": max(times),
            "gflop_per_s": rates.get(name),
            "share_of_matmul": rates[name] / matmul if name in rates else None,
            "peak_mib": peak_memory(name),
        }
        for name, times in seconds.items()
    }
    small = "400 x 10"
    return {
        "machine": machine(),
        "sizes": {"places": cases.PLACES, "words": cases.WORDS, "width": cases.WIDTH},
        "cases": rows,
        "ratios": {
            "sdpa / separable, forward": median["sdpa forward"] / median["separable forward"],
            "literal / separable, forward, 400 x 10": median[f"literal forward {small}"]
            / median[f"separable forward {small}"],
            "literal / separable, forward + backward, 400 x 10": median[
                f"literal forward + backward {small}"
            ]
            / median[f"separable forward + backward {small}"],
        },
        "import_s": {
            "import cmsa_fast": import_seconds("import cmsa_fast"),
            "import torch": import_seconds("import torch"),
            "from cmsa_fast.nn import CMSA": import_seconds("from cmsa_fast.nn import CMSA"),
        },
    }


def format_table(figures: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [f"{'':38}{'median':>11}{'GFLOP/s':>10}{'of matmul':>11}{'peak':>11}"]
    for name, row in figures["cases"].items():
        rate = "" if row["gflop_per_s"] is None else f"{row['gflop_per_s']:.1f}"
        share = "" if row["share_of_matmul"] is None else f"{row['share_of_matmul']:.0%}"
        lines.append(
            f"{name:38}{row['median_s'] * 1e3:>8.1f} ms{rate:>10}{share:>11}"
            f"{row['peak_mib']:>7.0f} MiB"
        )
    lines += [f"{name}: {ratio:.1f}" for name, ratio in figures["ratios"].items()]
    lines += [f"{name}: {seconds:.3f} s" for name, seconds in figures["import_s"].items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--peak-of", choices=cases.NAMES, help="print the peak memory of one case")
    arguments = parser.parse_args()
    if arguments.peak_of:
        case = cases.build(arguments.peak_of)
        torch.randn(64, 64) @ torch.randn(64, 64)  # the libraries' own buffers
        before = peak_mib()
        case.run()
        print(peak_mib() - before)
        return
    figures = collect()
    print(format_table(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
