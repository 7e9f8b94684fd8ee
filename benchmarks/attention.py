"""Time, page faults and memory of the attention on the CPU, compared with other forms and with matrix products.

    python -m benchmarks.attention --json benchmarks/results/attention-cpu.json

All cases run in float32 and in interleaved rounds, each in its own new process. Rates and ratios are those of the
lower quartiles of the times, on which other work of the machine has little influence. Page faults are the mean of
all calls but the first; peak memory is what the first call adds.
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
ROUNDS = 31
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
        rounds: The most timed runs.
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
        left, right, out = (torch.randn(size, size) for _ in range(3))
        return Case(lambda: torch.mm(left, right, out=out), 2.0 * size**3, ROUNDS)
    small = "400" in rest
    parts = features(*(SMALL_PLACES, SMALL_WORDS) if small else (PLACES, WORDS))
    if kind == "sdpa":
        return Case(lambda: sdpa(parts), None, 3)
    backend = "reference" if kind == "literal" else "torch"
    rounds = 5 if kind == "literal" else ROUNDS
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


def collect(rounds: int = ROUNDS) -> dict[str, Any]:
    """Measure times, rates, shares of the matrix-product rate, ratios, page faults, memory and import times."""
    cases = {name: build(name) for name in NAMES}
    runs = measuring.run_in_processes(build_run, {name: min(rounds, case.rounds) for name, case in cases.items()})
    seconds = {name: [run.seconds for run in later] for name, (_, *later) in runs.items()}
    quartile = {name: lower_quartile(times) for name, times in seconds.items()}
    rates = {name: case.flops / quartile[name] / 1e9 for name, case in cases.items() if case.flops is not None}
    matmul = max(rates[f"matmul {size}"] for size in MATMUL_SIZES)
    rows = {
        name: {
            "rounds": len(later),
            "lower_quartile_s": quartile[name],
            **measuring.summarize(seconds[name]),
            "gflop_per_s": rates.get(name),
            "share_of_matmul": rates[name] / matmul if name in rates else None,
            "page_faults": statistics.mean(run.page_faults for run in later),
            "first_page_faults": first.page_faults,
            "peak_mib": first.added_mib,
        }
        for name, (first, *later) in runs.items()
    }
    ratios = {"sdpa / separable, forward": quartile["sdpa forward"] / quartile["separable forward"]}
    for passes in ("forward", "forward + backward"):
        literal, separable = (quartile[f"{form} {passes} 400 x 10"] for form in ("literal", "separable"))
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


def lower_quartile(times: list[float]) -> float:
    return sorted(times)[len(times) // 4]


def format_table(figures: dict[str, Any]) -> str:
    lines = [f"{'':38}{'quartile':>11}{'GFLOP/s':>10}{'of matmul':>11}{'faults':>8}{'peak':>11}"]
    for name, row in figures["cases"].items():
        rate = "" if row["gflop_per_s"] is None else f"{row['gflop_per_s']:.1f}"
        share = "" if row["share_of_matmul"] is None else f"{row['share_of_matmul']:.0%}"
        time = f"{row['lower_quartile_s'] * 1e3:>8.1f} ms"
        lines.append(f"{name:38}{time}{rate:>10}{share:>11}{row['page_faults']:>8.0f}{row['peak_mib']:>7.0f} MiB")
    lines += [f"{name}: {ratio:.1f}" for name, ratio in figures["ratios"].items()]
    lines += [f"{name}: {seconds:.3f} s" for name, seconds in figures["import_s"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    measuring.run_command(__doc__, collect, format_table, ROUNDS)
