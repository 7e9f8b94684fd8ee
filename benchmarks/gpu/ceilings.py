"""The rates that the GPU's libraries reach: matrix products and copies."""

import functools
from typing import Any

import torch

from . import budget
from .timing import Clock, Entry, summary

_SIZES, _SMALL_SIZES = (4096, 8192, 16384), (256, 1024)
_COPY_BYTES, _SMALL_COPY_BYTES = 4 * 2**30, 2**22


def measure(item: str, device: str, quick: bool) -> dict[str, Any]:
    """The record of one item of `plan.ceilings`: TFLOP/s at the best size, or TB/s read and written."""
    clock = Clock(device)
    if item == "copy":
        count = _SMALL_COPY_BYTES if device == "cpu" else _COPY_BYTES
        source = torch.randint(256, (count,), dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        entry = Entry(lambda _: target.copy_(source))
        figures = _time(clock, entry)
        rate = 2 * count / figures["median_ms"] / 1e9
        return {"unit": "TB/s", "value": rate, "bytes": count, **figures}
    name = item.removeprefix("matmul ")
    best: dict[str, Any] = {}
    sizes = _SMALL_SIZES if device == "cpu" else _SIZES[: 2 if quick or name == "float32" else 3]
    with budget.matmul_precision(name):
        for size in sizes:
            left, right = (torch.randn(size, size, device=device).to(budget.torch_dtype(name)) for _ in range(2))
            figures = _time(clock, Entry(functools.partial(_multiply, left, right)))
            rate = 2.0 * size**3 / figures["median_ms"] / 1e9
            if rate > best.get("value", 0.0):
                best = {"unit": "TFLOP/s", "value": rate, "matrix": size, **figures}
    return best


def _multiply(left: torch.Tensor, right: torch.Tensor, _: None) -> torch.Tensor:
    return left @ right


def _time(clock: Clock, entry: Entry) -> dict[str, float]:
    clock.once(entry)
    clock.plan(entry, target_s=0.4, limit_s=2.0)
    entry.rounds = max(entry.rounds, 1)
    clock.interleave([entry])
    return summary(entry.samples)
