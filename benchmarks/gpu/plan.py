"""What is done, in order of importance: plain data, so that planning needs no torch.

A job is a dictionary that a worker process understands. Its `items` (cases of a correctness job, forms of a speed
job) are prepared one after another; an item that kills the worker is left out when the job is tried again.
"""

from typing import Any

Job = dict[str, Any]
Key = dict[str, str]

PRECISIONS = ("bfloat16", "float16", "tf32", "float32")
PASSES = ("forward", "backward", "forward + backward")
SECTIONS = ("correctness", "ceilings", "separable", "joint", "tail")
OWN = ("fused", "torch")  # the names in `forms.OWN` by importance; a test compares the two
PEERS = ("sdpa efficient", "naive", "naive compiled", "chunked", "flex")
FEW_PEERS = ("sdpa efficient", "naive", "chunked")
TAIL_PEERS = ("naive", "naive compiled")

WORDS, PLACES, BATCHES = (20, 10, 5, 3), (1600, 400, 6400), (8, 1, 32)
WIDTH = 512
# Tokens of the published code: 40 x 40 places and 20 words, and after its 2 x 2 x 2 max-pooling.
QUERIES, KEYS = 32000, 4000
JOINT_WIDTHS = (512, 256, 128, 64)

CASE_LIMIT_S = 2.0  # of one form's measured rounds


def size_name(size: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in size.items())


def separable_size(places: int, words: int, batch: int, width: int = WIDTH) -> dict[str, int]:
    return {"places": places, "words": words, "batch": batch, "width": width}


def joint_size(width: int, batch: int) -> dict[str, int]:
    return {"queries": QUERIES, "keys": KEYS, "batch": batch, "width": width}


def tail_size(batch: int) -> dict[str, int]:
    return {
        "places": 1600,
        "words": 20,
        "batch": batch,
        "width": WIDTH,
        "channels": WIDTH,
    }


HEADLINE = separable_size(1600, 20, 8)

# Each case: its size, then what `correctness.draw_cases` makes of the rest. One list holds what compiles alike.
_SEPARABLE_CASES: tuple[list[dict[str, Any]], ...] = (
    [
        {"size": separable_size(100, 7, 3, 64)},
        {"size": separable_size(100, 7, 3, 64), "spread": 1.0, "seeds": 10},
        {"size": separable_size(100, 7, 3, 64), "spread": 4.0, "seeds": 10},
        {"size": separable_size(100, 7, 3, 64), "spread": 30.0, "seeds": 10},
        {"size": separable_size(100, 7, 3, 64), "strided": True},
    ],
    [{"size": separable_size(100, 20, 5, 64), "pictures": 2}],
    [
        {"size": separable_size(67, 5, 2, 33)},
        {"size": separable_size(1, 4, 2, 33)},
        {"size": separable_size(37, 1, 2, 33)},
    ],
    [{"size": separable_size(100, 7, 2, 128)}],
    [{"size": separable_size(100, 7, 2, 256)}],
    [{"size": separable_size(131, 20, 2, 512)}],
    [{"size": separable_size(65, 64, 2, 64)}],
)
_JOINT_CASES: tuple[list[dict[str, Any]], ...] = (
    [
        {"size": {"queries": 301, "keys": 203, "batch": 3, "width": 64}},
        {
            "size": {"queries": 301, "keys": 203, "batch": 3, "width": 64},
            "spread": 4.0,
            "seeds": 10,
        },
        {
            "size": {"queries": 301, "keys": 203, "batch": 3, "width": 64},
            "spread": 30.0,
            "seeds": 10,
        },
        {"size": {"queries": 301, "keys": 203, "batch": 3, "width": 64}, "strided": True},
    ],
    [
        {"size": {"queries": 77, "keys": 131, "batch": 2, "width": 33}},
        {"size": {"queries": 5, "keys": 1, "batch": 2, "width": 33}},
    ],
    [{"size": {"queries": 301, "keys": 203, "batch": 2, "width": 128}}],
    [{"size": {"queries": 301, "keys": 203, "batch": 2, "width": 256}}],
    [{"size": {"queries": 301, "keys": 203, "batch": 2, "width": 512}}],
)
_TAIL_CASES: tuple[list[dict[str, Any]], ...] = (
    [
        {"size": {"places": 67, "words": 7, "batch": 3, "width": 33, "channels": 45}},
        {
            "size": {"places": 67, "words": 7, "batch": 3, "width": 33, "channels": 45},
            "strided": True,
        },
    ],
    [{"size": {"places": 100, "words": 20, "batch": 2, "width": 512, "channels": 512}}],
)
_CASES = {"separable": _SEPARABLE_CASES, "joint": _JOINT_CASES, "tail": _TAIL_CASES}

_TINY_CASES = {
    "separable": ([{"size": separable_size(9, 3, 2, 8)}],),
    "joint": ([{"size": {"queries": 9, "keys": 7, "batch": 2, "width": 8}}],),
    "tail": ([{"size": {"places": 5, "words": 3, "batch": 2, "width": 8, "channels": 4}}],),
}


def case_name(case: dict[str, Any]) -> str:
    """The size, and what is special about it."""
    rest = [f"{name} {case[name]}" for name in ("spread", "pictures") if name in case]
    rest += [name for name in ("strided", "full") if case.get(name)]
    return "; ".join([size_name(case["size"]), *rest])


def correctness(device: str, quick: bool, full: bool = False) -> list[Job]:
    """Jobs of small cases, which may run side by side, or those of full size."""
    if full:
        cases: dict[str, Any] = {
            "separable": ([{"size": separable_size(1600, 20, 1), "full": True}],),
            "joint": ([{"size": joint_size(WIDTH, 1), "full": True}],),
            "tail": ([{"size": tail_size(1), "full": True}],),
        }
        precisions: tuple[str, ...] = ("bfloat16",) if quick else ("bfloat16", "float32")
        names: tuple[str, ...] = ("fused",)
    else:
        cases = _TINY_CASES if device == "cpu" else _CASES
        precisions, names = PRECISIONS, OWN
        if device == "cpu":
            precisions = ("float32",) if quick else ("float32", "float16")
        elif quick:
            cases = {operation: lists[:1] for operation, lists in cases.items()}
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
        for list_ in lists
    ]


def ceilings(device: str, quick: bool) -> list[Job]:
    items = [f"matmul {name}" for name in PRECISIONS] + ["copy"]
    if device == "cpu":
        items = ["matmul float32", "copy"]
    return [{"kind": "ceilings", "device": device, "quick": quick, "items": items}]


def _speed(
    operation: str,
    size: dict[str, int],
    device: str,
    names: tuple[str, ...],
    dtype: str = "bfloat16",
    target_s: float = 0.2,
) -> Job:
    return {
        "kind": "speed",
        "operation": operation,
        "size": size,
        "dtype": dtype,
        "device": device,
        "items": list(names),
        "target_s": target_s,
        "case_limit_s": CASE_LIMIT_S,
    }


def speed(device: str, quick: bool, only: tuple[str, ...] = SECTIONS) -> list[Job]:
    """The headline sizes with all peers first, then our own grid, then the rest."""
    if device == "cpu":
        places, words, width = (16, 3, 8) if quick else (400, 10, WIDTH)
        joint = {"queries": 48, "keys": 24, "batch": 1, "width": 8}
        tail = {"places": 16, "words": 3, "batch": 1, "width": 8, "channels": 8}
        jobs = [
            _speed("separable", separable_size(places, words, 1, width), device, OWN + PEERS, "float32"),
            _speed("separable", separable_size(2 * places, words, 1, width), device, OWN, "float32"),
            _speed("separable", separable_size(places, 2 * words, 1, width), device, OWN, "float32"),
            _speed("joint", joint, device, OWN + PEERS, "float32"),
            _speed("tail", tail, device, OWN + TAIL_PEERS, "float32"),
        ]  # fmt: skip
        return [job for job in jobs if job["operation"] in only]
    without_flex = tuple(name for name in PEERS if name != "flex")
    jobs = [
        # FlexAttention's backward has tiles of 16 x 16 at this width: one picture is enough of it.
        _speed("separable", HEADLINE, device, OWN + without_flex, target_s=0.6),
        _speed("joint", joint_size(WIDTH, 8), device, OWN + PEERS, target_s=0.6),
        _speed("joint", joint_size(WIDTH, 1), device, OWN + PEERS, target_s=0.6),
        _speed("separable", separable_size(1600, 20, 1), device, OWN + PEERS, target_s=0.6),
    ]
    if not quick:
        done = [job["size"] for job in jobs]
        few = [separable_size(400, words, 8) for words in (5, 20)]
        jobs += [
            _speed("separable", size, device, OWN + (FEW_PEERS if size in few else ()))
            for batch in BATCHES
            for places in PLACES
            for words in WORDS
            if (size := separable_size(places, words, batch)) not in done
        ]
        jobs += [_speed("tail", tail_size(batch), device, OWN + TAIL_PEERS) for batch in (8, 1)]
        jobs += [
            _speed("joint", joint_size(width, batch), device, (*OWN, "sdpa efficient", "naive"))
            for width in JOINT_WIDTHS[1:]
            for batch in (8, 1)
        ]
        jobs += [
            _speed(operation, size, device, OWN, dtype)
            for dtype in ("float16", "float32", "tf32")
            for operation, size in (("separable", HEADLINE), ("joint", joint_size(WIDTH, 1)))
        ]
    return [job for job in jobs if job["operation"] in only]


def kernels(device: str, only: tuple[str, ...] = SECTIONS) -> list[Job]:
    """Which kernels run; none on a CPU."""
    if device == "cpu":
        return []
    sizes = {"separable": separable_size(1600, 20, 1), "joint": joint_size(WIDTH, 1)}
    return [
        {**_speed(operation, size, device, ("sdpa efficient", "fused")), "kind": "kernels"}
        for operation, size in sizes.items()
        if operation in only
    ]


def warm_ups(jobs: list[Job]) -> list[Job]:
    """What compiles, once for all that compiles alike, so that it can be done side by side before the clock."""
    seen, warm = set(), []
    for job in jobs:
        size = job["size"]
        # The kernels have tiles for up to 16 words and beyond; Triton compiles anew for a batch of one.
        alike = (size["batch"] == 1, size.get("words", 0) > 16, size["width"], job["dtype"])
        for name in job["items"]:
            compiled_whole = name in ("naive compiled", "flex")
            if name != "fused" and not compiled_whole:
                continue
            key = (job["operation"], name, *(size.values() if compiled_whole else alike))
            if key in seen:
                continue
            seen.add(key)
            warm.append({**job, "kind": "warm", "items": [name]})
    return warm


def keys(job: Job) -> list[tuple[str, Key]]:
    """(item, key) of every record that a job owes; a key has the fields that tell a record from the others."""
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
        return [
            (item, {**shared, "form": item, "pass": part})
            for item in job["items"]
            for part in PASSES
        ]
    return []
