"""What measuring as many expressions as RefCOCO's validation split has costs on the CPU.

    python -m benchmarks.metrics --json benchmarks/results/metrics-cpu.json

Masks are 480 x 640 and taken in turn from a few random pairs, so that they need not all be held at once. The
conventions start from probabilities over a square of 320 pixels; their times are for one expression: the predicted
mask, the true one and the update. All cases run in one process, interleaved, on one thread, because maps this
small gain nothing from more. Medians are quoted.
"""

import functools
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from cmsa_fast.data.transforms import Letterbox
from cmsa_fast.evaluation.conventions import CONVENTIONS
from cmsa_fast.evaluation.metrics import ExpressionCounts, GeneralizedMetrics, SegmentationMetrics

from .attention import machine
from .command import run_command

EXPRESSIONS = 10834  # of RefCOCO's validation split
HEIGHT, WIDTH, SIZE = 480, 640, 320
PAIRS = 16
PARTS = 8
ROUNDS = 7
WHOLE_SPLIT = (
    "update, tensors",
    "update, arrays",
    "add",
    f"merge of {PARTS} parts",
    "compute",
    "compute, generalized",
)
NAMES = (*WHOLE_SPLIT, *(f"convention {name}" for name in CONVENTIONS))

Metrics = TypeVar("Metrics", bound=ExpressionCounts)


@functools.cache
def draw() -> list[tuple[Tensor, Tensor]]:
    """Predicted and true masks: discs of random places, a little apart."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.arange(HEIGHT)[:, None], torch.arange(WIDTH)

    def disc(row: float, column: float, radius: float) -> Tensor:
        return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2

    pairs = []
    for _ in range(PAIRS):
        row, column, radius, shift = torch.rand(4, generator=generator).tolist()
        place = (row * HEIGHT, column * WIDTH, 20 + 150 * radius)
        pairs.append((disc(place[0] + 40 * shift, *place[1:]), disc(*place)))
    return pairs


def aggregate(arrays: bool) -> SegmentationMetrics:
    """Metrics of a whole split, from masks."""
    pairs: list[tuple[Any, Any]] = list(draw())
    if arrays:
        pairs = [(prediction.numpy(), truth.numpy()) for prediction, truth in pairs]
    metrics = SegmentationMetrics()
    for index in range(EXPRESSIONS):
        metrics.update(*pairs[index % PAIRS])
    return metrics


def add(metrics: Metrics, expressions: int) -> Metrics:
    """Add expressions of many different counts."""
    for index in range(expressions):
        true = 7919 * index % 60000
        metrics.add(true * (index % 10) // 10, true, true)
    return metrics


def build(name: str) -> Callable[[], object]:
    """A function that does one of NAMES once."""
    if name.startswith("update"):
        return lambda: aggregate(arrays=name.endswith("arrays"))
    if name == "add":
        return lambda: add(SegmentationMetrics(), EXPRESSIONS)
    if name.startswith("merge"):
        edges = [EXPRESSIONS * part // PARTS for part in range(PARTS + 1)]
        parts = [
            add(SegmentationMetrics(), end - start) for start, end in itertools.pairwise(edges)
        ]
        return lambda: merge(parts)
    if name.startswith("compute"):
        kind = GeneralizedMetrics if name.endswith("generalized") else SegmentationMetrics
        metrics: Any = add(kind(), EXPRESSIONS)
        return lambda: metrics.compute()
    convention = CONVENTIONS[name.removeprefix("convention ")]
    box, (prediction, truth) = Letterbox(HEIGHT, WIDTH, SIZE), draw()[0]
    probability = box.mask(prediction).float() * 0.8 + 0.1
    counted = convention.metrics()
    return lambda: counted.update(convention.prediction(probability, box), convention.truth(truth))


def merge(parts: list[SegmentationMetrics]) -> SegmentationMetrics:
    whole = SegmentationMetrics()
    for part in parts:
        whole.merge(part)
    return whole


def collect(rounds: int = ROUNDS) -> dict[str, Any]:
    """All figures: medians, fastest and slowest of the rounds after one to warm up."""
    built = {name: build(name) for name in NAMES}
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for index in range(-1, rounds):
            for name, run in built.items():
                start = time.perf_counter()
                run()
                if index >= 0:
                    seconds[name].append(time.perf_counter() - start)
        described = machine()
    finally:
        torch.set_num_threads(threads)
    return {
        "machine": described,
        "sizes": {"sentences": EXPRESSIONS, "height": HEIGHT, "width": WIDTH, "square": SIZE},
        "rounds": rounds,
        "cases": {
            name: {
                "sentences": EXPRESSIONS if name in WHOLE_SPLIT else 1,
                "median_s": statistics.median(times),
                "min_s": min(times),
                "max_s": max(times),
            }
            for name, times in seconds.items()
        },
    }


def format_table(figures: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [f"{'':24}{'sentences':>10}{'median':>12}{'of one':>12}"]
    for name, row in figures["cases"].items():
        median, expressions = row["median_s"], row["sentences"]
        lines.append(
            f"{name:24}{expressions:>10}{median * 1e3:>9.2f} ms{median / expressions * 1e6:>9.2f} us"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(__doc__, collect, format_table)
