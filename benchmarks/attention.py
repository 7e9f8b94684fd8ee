"""Time and memory of the attention on the CPU, compared with other forms and with square matrix products.

    python -m benchmarks.attention --json benchmarks/results/attention-cpu.json

All cases run interleaved in one process in float32, and medians are reported. Peak memory is measured in a new
process for each case.
"""

import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cmsa_fast.kernels import cross_modal_attention

from . import measuring

# A 320 px image at output stride 8, the paper's words and width. The literal form needs the small size.
PLACES, WORDS, WIDTH = 1600, 20, 512
SMALL_PLACES, SMALL_WORDS = 400, 10
MATMUL_SIZES = (1024, 1600, 2048)
NAMES = (
    *(f"matmul {size}" for size in MATMUL_SIZES),
    "separable forward",
    "separable forward + backward",
    "sdpa forward",
    "separable forward 400 x 10",
    "literal forward 400 x 10",
    "separable forward + backward 400 x 10",
    "literal forward + backward 400 x 10",
)
STATEMENTS = ("import cmsa_fast", "import torch", "from cmsa_fast.nn import CMSA")


@dataclass(frozen=True)
class Case:
    """A function to time.

    Attributes:
        run: Runs the case once.
        flops: Floating-point operations counted as its work; None if no rate is reported.
        rounds: Number of timed runs.
    """

    run: Callable[[], object]
    flops: float | None
    rounds: int


def features(places: int, words: int, width: int = WIDTH) -> list[Tensor]:
    """Query, key and value of places [1, P, d] and words [1, N, d]; the logits' deviation is about 1."""
    generator = torch.Generator().manual_seed(0)
    scale = (2 * width**0.5) ** -0.5
    sizes = [places] * 3 + [words] * 3
    return [torch.randn(1, size, width, generator=generator) * scale for size in sizes]


def attend(parts: list[Tensor], backend: str) -> Tensor:
    """The attended values averaged over words, [1, P, d]."""
    return cross_modal_attention(*parts, backend=backend)


def sdpa(parts: list[Tensor]) -> Tensor:
    """`attend` computed by PyTorch's fused attention over all (place, word) tokens."""
    query, key, value = (
        (place[:, :, None] + word[:, None]).flatten(1, 2)[:, None]
        for place, word in zip(parts[:3], parts[3:], strict=True)
    )
    attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)[:, 0]
    return attended.unflatten(1, (parts[0].shape[1], parts[3].shape[1])).mean(2)


def build(name: str) -> Case:
    """The case of that name, one of NAMES."""
    kind, _, rest = name.partition(" ")
    if kind == "matmul":
        size = int(rest)
        left, right = torch.randn(size, size), torch.randn(size, size)
        return Case(lambda: left @ right, 2.0 * size**3, 15)
    small = "400" in rest
    parts = features(*(SMALL_PLACES, SMALL_WORDS) if small else (PLACES, WORDS))
    if kind == "sdpa":
        return Case(lambda: sdpa(parts), None, 2)
    backend = "reference" if kind == "literal" else "torch"
    rounds = 3 if kind == "literal" else 15
    if rest.startswith("forward + backward"):
        flops = None if small else 7 * 2.0 * PLACES**2 * WIDTH
        leaves = [part.clone().requires_grad_() for part in parts]
        grad = torch.randn(leaves[0].shape, generator=torch.Generator().manual_seed(1))
        return Case(lambda: torch.autograd.grad(attend(leaves, backend), leaves, grad), flops, rounds)
    flops = None if small else 2.0 * PLACES**2 * (2 * WIDTH + 2 * WORDS)
    return Case(lambda: attend(parts, backend), flops, rounds)


def build_run(name: str) -> Callable[[], object]:
    return build(name).run


def run_seconds(statement: str) -> float:
    """Seconds that a statement takes in a process that has not run it before."""
    code = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout)


def collect() -> dict[str, Any]:
    """Measure times, rates, shares of the matrix-product rate, ratios, memory and import times."""
    cases = {name: build(name) for name in NAMES}
    seconds = measuring.time_interleaved(
        {name: case.run for name, case in cases.items()},
        {name: case.rounds for name, case in cases.items()},
    )
    median = {name: statistics.median(times) for name, times in seconds.items()}
    rates = {name: case.flops / median[name] / 1e9 for name, case in cases.items() if case.flops is not None}
    matmul = max(rates[f"matmul {size}"] for size in MATMUL_SIZES)
    rows = {
        name: {
            "rounds": len(times),
            **measuring.summarize(times),
            "gflop_per_s": rates.get(name),
            "share_of_matmul": rates[name] / matmul if name in rates else None,
            "peak_mib": measuring.added_peak_mib(build_run, name),
        }
        for name, times in seconds.items()
    }
    ratios = {"sdpa / separable, forward": median["sdpa forward"] / median["separable forward"]}
    for passes in ("forward", "forward + backward"):
        literal, separable = (median[f"{form} {passes} 400 x 10"] for form in ("literal", "separable"))
        ratios[f"literal / separable, {passes}, 400 x 10"] = literal / separable
    return {
        "machine": measuring.machine(),
        "sizes": {"places": PLACES, "words": WORDS, "width": WIDTH},
        "cases": rows,
        "ratios": ratios,
        "import_s": {
            statement: statistics.median(run_seconds(statement) for _ in range(5)) for statement in STATEMENTS
        },
    }


def format_table(figures: dict[str, Any]) -> str:
    lines = [f"{'':38}{'median':>11}{'GFLOP/s':>10}{'of matmul':>11}{'peak':>11}"]
    for name, row in figures["cases"].items():
        rate = "" if row["gflop_per_s"] is None else f"{row['gflop_per_s']:.1f}"
        share = "" if row["share_of_matmul"] is None else f"{row['share_of_matmul']:.0%}"
        lines.append(f"{name:38}{row['median_s'] * 1e3:>8.1f} ms{rate:>10}{share:>11}{row['peak_mib']:>7.0f} MiB")
    lines += [f"{name}: {ratio:.1f}" for name, ratio in figures["ratios"].items()]
    lines += [f"{name}: {seconds:.3f} s" for name, seconds in figures["import_s"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    measuring.run_command(__doc__, collect, format_table)
