"""The jobs in order of importance, as plain data, so that planning does not import torch.

A job is a dictionary for a worker process. Its `items` (cases of a correctness job, forms of a speed job) are
prepared one after another; an item that kills the worker is left out when the job is repeated.
"""

import itertools
from typing import Any

from .cases import (
    CASES,
    FULL_CASES,
    TINY_CASES,
    WIDTH,
    case_name,
    joint_size,
    level_size,
    model_size,
    projection_size,
    separable_size,
    size_name,
    tail_size,
)

Job = dict[str, Any]
Key = dict[str, str]

PRECISIONS = ("bfloat16", "float16", "tf32", "float32")
PASSES = ("forward", "backward", "forward + backward")
OPERATIONS = ("separable", "joint", "tail", "projection", "level", "model")
SECTIONS = ("correctness", "ceilings", *OPERATIONS)
OWN = ("triton", "torch")  # the library's forms of every operation
PEERS = ("sdpa efficient", "naive", "naive compiled", "chunked", "flex")
FEW_PEERS = ("sdpa efficient", "naive", "chunked")
TAIL_PEERS = ("naive", "naive compiled")
COMPILED = ("naive compiled", "flex")

BATCHES, WORDS = (8, 1, 32), {1600: (20, 10, 5, 3), 400: (20, 5), 6400: (20, 5)}  # words by places
JOINT_WIDTHS = (512, 256, 128, 64)
# The same 21 expressions with 1, 3 and 7 of them an image.
EXPRESSIONS, IMAGES = 21, (21, 7, 3)
LOGITS = (8, 16, 24)  # standard deviations; that of the other sizes is 1

CASE_LIMIT_S = 2.0  # for the timed rounds of one form
HEADLINE = separable_size(1600, 20, 8)
SMALL = separable_size(400, 20, 1)


def correctness(device: str, quick: bool, full: bool = False) -> list[Job]:
    """The jobs of small cases, which may run in parallel, or those of the paper's size."""
    precisions: tuple[str, ...] = PRECISIONS
    cases: dict[str, Any] = CASES
    if full:
        cases, precisions = FULL_CASES, ("bfloat16",) if quick else ("bfloat16", "float32")
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
            "cases": {case_name(case): case for case in list_},
        }
        for dtype in precisions
        for name in (OWN[:1] if full else OWN)
        for operation, lists in cases.items()
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
    target_s: float = 0.1,
) -> Job:
    """A job without its device: both own forms of the operation, and some peers."""
    job = {"kind": "speed", "operation": operation, "size": size, "dtype": dtype, "target_s": target_s}
    # The folded model is for inference only.
    passes = PASSES[:1] if operation == "model" else PASSES
    return {**job, "items": [*OWN, *peers], "passes": list(passes), "case_limit_s": CASE_LIMIT_S}


def speed(device: str, quick: bool, only: tuple[str, ...] = SECTIONS) -> list[Job]:
    """The headline sizes with all peers, then the library's own forms over what changes their speed."""
    jobs = _cpu_speed(quick) if device == "cpu" else _headlines()
    if device != "cpu" and not quick:
        jobs += _grid([job["size"] for job in jobs])
    return [{**job, "device": device} for job in jobs if job["operation"] in only]


def _cpu_speed(quick: bool) -> list[Job]:
    size = separable_size(16, 3, 1, 8) if quick else separable_size(400, 10, 1)
    larger = [{**size, axis: 2 * size[axis]} for axis in ("places", "words")]
    variants = ({"batch": 3, "masked": 1}, {"batch": 3, "images": 1}, {"logits": 100})
    return [
        _speed("separable", size, PEERS, "float32"),
        *(_speed("separable", other, (), "float32") for other in larger),
        *(_speed("separable", {**size, **options}, (), "float32") for options in variants),
        _speed("joint", joint_size(8, 1, 48, 24), PEERS, "float32"),
        _speed("tail", tail_size(1, 16, 3, 8, 8), TAIL_PEERS, "float32"),
        _speed("projection", projection_size(3, 1, 5, 8, 4), TAIL_PEERS, "float32"),
        _speed("level", level_size(3, 1, 16, 3, 8, 4), (), "float32"),
        _speed("model", model_size(1, 64, 3, 18), (), "float32"),
    ]


def _headlines() -> list[Job]:
    # Compiled peers take long to compile, so they are measured with one image only.
    not_compiled = tuple(name for name in PEERS if name not in COMPILED)
    return [
        _speed("separable", HEADLINE, not_compiled, target_s=0.6),
        _speed("separable", SMALL, (), target_s=0.6),
        _speed("level", level_size(2048, 8)),
        _speed("model", model_size(8)),
        _speed("joint", joint_size(WIDTH, 8), not_compiled, target_s=0.6),
        _speed("joint", joint_size(WIDTH, 1), PEERS, target_s=0.6),
        _speed("separable", separable_size(1600, 20, 1), PEERS, target_s=0.6),
    ]


def _grid(done: list[dict[str, int]]) -> list[Job]:
    few = [separable_size(400, words, 8) for words in WORDS[400]]
    sizes = [
        separable_size(places, words, batch)
        for batch, places in itertools.product(BATCHES, WORDS)
        for words in WORDS[places]
    ]
    by_dtype = (("separable", HEADLINE), ("joint", joint_size(WIDTH, 1)))
    return [
        _speed("separable", {**HEADLINE, "masked": 1}),
        *(_speed("separable", separable_size(1600, 20, EXPRESSIONS, images=images)) for images in IMAGES),
        *(_speed("separable", {**HEADLINE, "logits": logits}) for logits in LOGITS),
        *(_speed("level", level_size(visual, batch)) for visual, batch in ((512, 8), (1024, 8), (2048, 1))),
        _speed("model", model_size(1)),
        *(
            _speed(operation, size, (), dtype)
            for dtype in ("float16", "float32", "tf32")
            for operation, size in by_dtype
        ),
        *(_speed("separable", size, FEW_PEERS if size in few else ()) for size in sizes if size not in done),
        *(_speed("projection", projection_size(visual, 8), TAIL_PEERS) for visual in (512, 1024, 2048)),
        *(_speed("tail", tail_size(batch), TAIL_PEERS) for batch in (8, 1)),
        _speed("joint", joint_size(WIDTH, 1, masked=1)),
        *(
            _speed("joint", joint_size(width, batch), ("sdpa efficient", "naive"))
            for width in JOINT_WIDTHS[1:]
            for batch in (8, 1)
        ),
    ]


def kernels(device: str, only: tuple[str, ...] = SECTIONS) -> list[Job]:
    """Jobs that count the launches of a call and list its kernels; none on a CPU."""
    if device == "cpu":
        return []
    sizes = {"separable": HEADLINE, "joint": joint_size(WIDTH, 1), "tail": tail_size(1)}
    sizes |= {"projection": projection_size(2048, 8), "level": level_size(2048, 8), "model": model_size(1)}
    jobs = [_speed(operation, size) for operation, size in sizes.items() if operation in only]
    return [{**job, "kind": "kernels", "device": device, "items": list(OWN[:1])} for job in jobs]


def warm_ups(jobs: list[Job]) -> list[Job]:
    """Jobs that compile what `jobs` need, once for all that compile to the same code, to run before the timing.

    They run in parallel. Peers over all tokens take too much memory for that; they compile when they are timed,
    alone.
    """
    warm: dict[tuple[Any, ...], Job] = {}
    for job in jobs:
        size = job["size"]
        # Words are padded to a power of two from 16 on.
        alike: tuple[Any, ...] = (size["width"], size.get("visual"), size.get("words", 0) > 16, "images" in size)
        if job["operation"] == "joint":  # has no mask or a mask, and splits its keys if there are few images
            alike += ("masked" in size, size["batch"] == 1)
        for name in job["items"]:
            key = (job["operation"], name, *alike, job["dtype"])
            if name == "triton":
                warm.setdefault(key, {**job, "kind": "warm", "items": [name]})
            elif name in COMPILED and job["operation"] in ("tail", "projection"):
                warm.setdefault((*key, *size.values()), {**job, "kind": "warm", "items": [name]})
    return list(warm.values())


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
        products = itertools.product(job["items"], job["passes"])
        return [(item, {**shared, "form": item, "pass": part}) for item, part in products]
    return []
