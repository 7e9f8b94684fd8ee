"""Time that metrics and conventions take on the CPU for as many expressions as RefCOCO's validation split has.

    python -m benchmarks.metrics --json benchmarks/results/metrics-cpu.json

Masks are 480 x 640 and cycle through a few random pairs. The cases of conventions start from probabilities over a
square of 320 pixels; their times are for one expression: predicted mask, true mask and update. All cases run
interleaved in one process on one thread, since maps of this size gain nothing from more. Medians are reported.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from cmsa_fast.data.transforms import Letterbox
from cmsa_fast.evaluation.conventions import CONVENTIONS
from cmsa_fast.evaluation.metrics import ExpressionCounts, GeneralizedMetrics, SegmentationMetrics

from .measuring import machine, run_command, summarize, time_interleaved

EXPRESSIONS = 10834  # in RefCOCO's validation split
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
    """Pairs of predicted and true masks: discs at random positions, the predicted one shifted."""
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
    """Metrics of a whole split, updated with masks (as tensors or as NumPy arrays)."""
    pairs: list[tuple[Any, Any]] = list(draw())
    if arrays:
        pairs = [(prediction.numpy(), truth.numpy()) for prediction, truth in pairs]
    metrics = SegmentationMetrics()
    for index in range(EXPRESSIONS):
        metrics.update(*pairs[index % PAIRS])
    return metrics


def add(metrics: Metrics, expressions: int) -> Metrics:
    """Add expressions with varying pixel counts."""
    for index in range(expressions):
        true = 7919 * index % 60000
        metrics.add(true * (index % 10) // 10, true, true)
    return metrics


def build(name: str) -> Callable[[], object]:
    """A function that runs one of NAMES once."""
    if name.startswith("update"):
        return lambda: aggregate(arrays=name.endswith("arrays"))
    if name == "add":
        return lambda: add(SegmentationMetrics(), EXPRESSIONS)
    if name.startswith("merge"):
        edges = [EXPRESSIONS * part // PARTS for part in range(PARTS + 1)]
        parts = [add(SegmentationMetrics(), end - start) for start, end in itertools.pairwise(edges)]
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
    """Measure median, minimum and maximum of every case."""
    runs = {name: build(name) for name in NAMES}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = time_interleaved(runs, rounds)
        described = machine()
    finally:
        torch.set_num_threads(threads)
    return {
        "machine": described,
        "sizes": {"expressions": EXPRESSIONS, "height": HEIGHT, "width": WIDTH, "square": SIZE},
        "rounds": rounds,
        "cases": {
            name: {"expressions": EXPRESSIONS if name in WHOLE_SPLIT else 1, **summarize(times)}
            for name, times in seconds.items()
        },
    }


def format_table(figures: dict[str, Any]) -> str:
    lines = [f"{'':24}{'expressions':>12}{'median':>12}{'each':>12}"]
    for name, row in figures["cases"].items():
        median, expressions = row["median_s"], row["expressions"]
        lines.append(f"{name:24}{expressions:>12}{median * 1e3:>9.2f} ms{median / expressions * 1e6:>9.2f} us")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(__doc__, collect, format_table, ROUNDS)
