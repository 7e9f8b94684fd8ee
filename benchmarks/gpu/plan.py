"""The jobs in order of importance, as plain data, so that planning does not import torch.

A job is a dictionary for a worker process. Its `items` (cases of a correctness job, forms of a speed job) are
prepared one after another; an item that kills the worker is left out when the job is repeated.
"""

import itertools
from typing import Any

from .cases import (
    CASES,
    TINY_CASES,
    WIDTH,
    case_name,
    joint_size,
    level_size,
    separable_size,
    size_name,
    tail_size,
)

Job = dict[str, Any]
Key = dict[str, str]

PRECISIONS = ("bfloat16", "float16", "tf32", "float32")
PASSES = ("forward", "backward", "forward + backward")
SECTIONS = ("correctness", "ceilings", "separable", "joint", "tail", "level")
# The names in `forms.OWN`, most important first; a test compares the two.
OWN = {
    "separable": ("tiled", "fused", "torch"),
    "joint": ("fused", "torch"),
    "tail": ("fused", "torch"),
    "level": ("fused", "torch"),
}
TRITON = ("tiled", "fused")
PEERS = ("sdpa efficient", "naive", "naive compiled", "chunked", "flex")
FEW_PEERS = ("sdpa efficient", "naive", "chunked")
TAIL_PEERS = ("naive", "naive compiled")

WORDS, PLACES, BATCHES = (20, 10, 5, 3), (1600, 400, 6400), (8, 1, 32)
JOINT_WIDTHS = (512, 256, 128, 64)

CASE_LIMIT_S = 2.0  # for the timed rounds of one form
HEADLINE = separable_size(1600, 20, 8)


def correctness(device: str, quick: bool, full: bool = False) -> list[Job]:
    """The jobs of small cases, which may run in parallel, or those of the paper's size."""
    precisions: tuple[str, ...] = PRECISIONS
    names: tuple[str, ...] = (*TRITON, "torch")
    cases: dict[str, Any] = CASES
    if full:
        sizes = {"separable": separable_size(1600, 20, 1), "joint": joint_size(WIDTH, 1)}
        sizes |= {"tail": tail_size(1), "level": level_size(2048, 2)}
        cases = {name: ([{"size": size, "full": True}],) for name, size in sizes.items()}
        precisions, names = ("bfloat16",) if quick else ("bfloat16", "float32"), TRITON
    elif device == "cpu":
        cases, precisions = TINY_CASES, ("float32",) if quick else ("float32", "float16")
    elif quick:
        cases = {operation: lists[:1] for operation, lists in CASES.items()}
    return [
        {
            "kind": "correctness",
            "operation": operation,
            "form": name,
            "dtype": dtype,
            "device": device,
            "items": [case_name(case) for case in list_],
            "cases": list_,
        }
        for dtype in precisions
        for name in names
        for operation, lists in cases.items()
        if name in OWN[operation]
        for number, list_ in enumerate(lists)
        # float16 and tf32 use the same code: for them the first and the widest sizes are enough.
        if dtype in ("bfloat16", "float32") or number in (0, len(lists) - 1)
    ]


def ceilings(device: str, quick: bool) -> list[Job]:
    items = [f"matmul {name}" for name in PRECISIONS] + ["copy"]
    if device == "cpu":
        items = ["matmul float32", "copy"]
    return [{"kind": "ceilings", "device": device, "quick": quick, "items": items}]


def _speed(
    operation: str,
    size: dict[str, int],
    peers: tuple[str, ...] = (),
    dtype: str = "bfloat16",
    target_s: float = 0.2,
) -> Job:
    """A job without its device: all own forms of the operation, and some peers."""
    job = {"kind": "speed", "operation": operation, "size": size, "dtype": dtype}
    items = [*OWN[operation], *peers]
    return {**job, "items": items, "target_s": target_s, "case_limit_s": CASE_LIMIT_S}


def speed(device: str, quick: bool, only: tuple[str, ...] = SECTIONS) -> list[Job]:
    """The headline sizes with all peers, then the grid of the library's own forms, then the rest."""
    jobs = _cpu_speed(quick) if device == "cpu" else _headlines()
    if device != "cpu" and not quick:
        jobs += _grid([job["size"] for job in jobs])
    return [{**job, "device": device} for job in jobs if job["operation"] in only]


def _cpu_speed(quick: bool) -> list[Job]:
    size = separable_size(16, 3, 1, 8) if quick else separable_size(400, 10, 1)
    larger = [{**size, axis: 2 * size[axis]} for axis in ("places", "words")]
    return [
        _speed("separable", size, PEERS, "float32"),
        *(_speed("separable", other, (), "float32") for other in larger),
        _speed("joint", joint_size(8, 1, 48, 24), PEERS, "float32"),
        _speed("tail", tail_size(1, 16, 3, 8, 8), TAIL_PEERS, "float32"),
        _speed("level", level_size(3, 1, 5, 8, 4), TAIL_PEERS, "float32"),
    ]


def _headlines() -> list[Job]:
    # FlexAttention's backward uses tiles of 16 x 16 at this width, so it is measured with one image only.
    without_flex = tuple(name for name in PEERS if name != "flex")
    return [
        _speed("separable", HEADLINE, without_flex, target_s=0.6),
        _speed("joint", joint_size(WIDTH, 8), PEERS, target_s=0.6),
        _speed("joint", joint_size(WIDTH, 1), PEERS, target_s=0.6),
        _speed("separable", separable_size(1600, 20, 1), PEERS, target_s=0.6),
    ]


def _grid(done: list[dict[str, int]]) -> list[Job]:
    few = [separable_size(400, words, 8) for words in (5, 20)]
    grid = itertools.product(BATCHES, PLACES, WORDS)
    sizes = [separable_size(places, words, batch) for batch, places, words in grid]
    by_dtype = (("separable", HEADLINE), ("joint", joint_size(WIDTH, 1)))
    return [
        *(_speed("separable", size, FEW_PEERS if size in few else ()) for size in sizes if size not in done),
        *(_speed("level", level_size(visual, 8), TAIL_PEERS) for visual in (512, 1024, 2048)),
        *(_speed("tail", tail_size(batch), TAIL_PEERS) for batch in (8, 1)),
        *(
            _speed("joint", joint_size(width, batch), ("sdpa efficient", "naive"))
            for width in JOINT_WIDTHS[1:]
            for batch in (8, 1)
        ),
        *(
            _speed(operation, size, (), dtype)
            for dtype in ("float16", "float32", "tf32")
            for operation, size in by_dtype
        ),
    ]


def kernels(device: str, only: tuple[str, ...] = SECTIONS) -> list[Job]:
    """Jobs that list the kernels that run; none on a CPU."""
    if device == "cpu":
        return []
    sizes = {"separable": separable_size(1600, 20, 1), "joint": joint_size(WIDTH, 1)}
    jobs = [_speed(operation, size) for operation, size in sizes.items() if operation in only]
    for job in jobs:
        items = ["sdpa efficient", *OWN[job["operation"]][:-1]]
        job |= {"kind": "kernels", "device": device, "items": items}
    return jobs


def warm_ups(jobs: list[Job]) -> list[Job]:
    """Jobs that compile what `jobs` need, once for all that compile to the same code, to run before the timing."""
    seen, warm = set(), []
    for job in jobs:
        size = job["size"]
        # The kernels have one tile up to 16 words and another beyond; Triton specialises on a batch of one.
        alike = (size["batch"] == 1, size.get("words", 0) > 16, size["width"], size.get("visual"))
        for name in job["items"]:
            compiled_whole = name in ("naive compiled", "flex")
            if name not in TRITON and not compiled_whole:
                continue
            key = (
                job["operation"],
                name,
                *(size.values() if compiled_whole else (*alike, job["dtype"])),
            )
            if key in seen:
                continue
            seen.add(key)
            warm.append({**job, "kind": "warm", "items": [name]})
    return warm


def keys(job: Job) -> list[tuple[str, Key]]:
    """(item, key) of every record that a job owes; a key has the fields that identify a record."""
    if job["kind"] == "correctness":
        shared = {name: job[name] for name in ("operation", "form", "dtype")}
        return [(item, {**shared, "case": item}) for item in job["items"]]
    if job["kind"] == "ceilings":
        return [(item, {"name": item}) for item in job["items"]]
    if job["kind"] in ("speed", "kernels"):
        shared = {"operation": job["operation"], "dtype": job["dtype"]}
        shared["size_name"] = size_name(job["size"])
        if job["kind"] == "kernels":
            return [(item, {**shared, "form": item}) for item in job["items"]]
        products = itertools.product(job["items"], PASSES)
        return [(item, {**shared, "form": item, "pass": part}) for item, part in products]
    return []
