"""The cases of the report: families of kernels, and the launches of each."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .architectures import TABLE
from .driver import Launch, recording

ARCHITECTURES = tuple(TABLE)
ARITHMETICS = ("bfloat16", "float16", "tf32", "float32")
WIDTHS = (64, 512)
_WORD_LIMIT = 64
_RELEASED_CHANNELS = 2008  # the widest level of the released network
TAIL_CHANNELS = 2048 + 1000 + 8  # visual features, words and coordinates of the widest level

# "plain" has 20 words and one image for each expression.
VARIANTS = ("plain", "64 words", "image_index")
_FAMILIES_OF = {"64 words": ("separable",), "image_index": ("separable", "level_tail")}


class Case(NamedTuple):
    """One compilation of all kernels of a family.

    Attributes:
        family: One of FAMILIES.
        architecture: Compute capability times ten.
        arithmetic: One of ARITHMETICS; "tf32" and "float32" are float32 input under PyTorch's two settings.
        width: Width of queries, keys and values.
        variant: One of VARIANTS.
    """

    family: str
    architecture: int
    arithmetic: str
    width: int
    variant: str = VARIANTS[0]


class Size(NamedTuple):
    """Sizes of a call."""

    batch: int = 8
    places: int = 1600
    words: int = 20


# A tensor of the given dtype and shape.
New = Callable[..., Tensor]
# The launches of a family: a generator that yields the name of each call after it was made.
Calls = Iterator[str]


def _empty(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def _index(new: New, variant: str, batch: int) -> Tensor | None:
    return new(torch.int64, batch) if variant == "image_index" else None


def _separable(new: New, size: Size, width: int, dtype: torch.dtype, variant: str) -> Calls:
    from cmsa_fast.kernels.separable_attention.state import Sizes
    from cmsa_fast.kernels.separable_attention.triton import schedule

    words = _WORD_LIMIT if variant == "64 words" else size.words
    features = [new(dtype, size.batch, count, width) for count in [size.places] * 3 + [words] * 3]
    weight, index = new(torch.float32, size.batch, words), _index(new, variant, size.batch)
    grad = new(dtype, size.batch, size.places, width)
    attended, state = schedule.forward(features, weight, index)
    yield "forward"
    sizes = Sizes.of(features)
    schedule.backward(grad, attended, index, sizes, state.reading(features, sizes))
    yield "backward"


def _joint(new: New, size: Size, width: int, dtype: torch.dtype, variant: str) -> Calls:
    from cmsa_fast.kernels.joint_attention.triton.backward import launch_joint_backward
    from cmsa_fast.kernels.joint_attention.triton.forward import launch_joint_forward
    from cmsa_fast.kernels.joint_attention.triton.projection import launch_tail_backward, launch_tail_forward

    tokens, keys = size.places * size.words, size.places // 4 * size.words // 2
    query, key, value = (new(dtype, size.batch, count, width) for count in (tokens, keys, keys))
    mask = new(torch.bool, size.batch, keys)
    attended, logsumexp = launch_joint_forward(query, key, value, mask, 1.0)
    yield "forward"
    launch_joint_backward(attended, query, key, value, mask, 1.0, attended, logsumexp)
    yield "backward"

    words = new(torch.bool, size.batch, size.words)
    attended_tokens = attended.unflatten(1, (size.places, size.words))
    projected = (attended_tokens, new(dtype, _RELEASED_CHANNELS, width), new(dtype, _RELEASED_CHANNELS))
    result = launch_tail_forward(*projected, words)
    yield "tail forward"
    launch_tail_backward(result, *projected, words)
    yield "tail backward"


def _level_tail(new: New, size: Size, width: int, dtype: torch.dtype, variant: str) -> Calls:
    from cmsa_fast.kernels.separable_attention.triton.projection import launch_level_tail

    visual, words, coordinates = 2048, 1000, 8
    launch_level_tail(
        new(dtype, size.batch, size.places, width),
        new(dtype, TAIL_CHANNELS, width),
        new(dtype, size.batch, visual, size.places).mT,
        new(dtype, size.batch, words),
        new(dtype, coordinates, size.places),
        _index(new, variant, size.batch),
    )
    yield "forward"


FAMILIES: dict[str, Callable[[New, Size, int, torch.dtype, str], Calls]] = {
    "separable": _separable,
    "joint": _joint,
    "level_tail": _level_tail,
}


@contextlib.contextmanager
def _precision(arithmetic: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if arithmetic == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def run(case: Case, size: Size, new: New) -> Calls:
    """Make the calls of a case on tensors from `new`; yields the name of each."""
    dtype = torch.float32 if case.arithmetic == "tf32" else getattr(torch, case.arithmetic)
    with _precision(case.arithmetic):
        yield from FAMILIES[case.family](new, size, case.width, dtype, case.variant)


def launches(case: Case, size: Size | None = None) -> dict[str, list[Launch]]:
    """Every launch of each call of a case, in order, with the kernels compiled."""
    calls: dict[str, list[Launch]] = {}
    with recording(case.architecture) as recorded:
        done = 0
        for name in run(case, size or Size(), _empty):
            calls[name] = recorded[done:]
            done = len(recorded)
    return calls


def shipped() -> Iterator[Case]:
    """Every case of the report: all arithmetics at the widest features, and what differs in bfloat16.

    The tiles of joint attention depend on the width, so its narrowest is compiled too.
    """
    for family, architecture, arithmetic in itertools.product(FAMILIES, ARCHITECTURES, ARITHMETICS):
        yield Case(family, architecture, arithmetic, WIDTHS[-1])
        if family == "joint":
            yield Case(family, architecture, arithmetic, WIDTHS[0])
        if arithmetic == "bfloat16":
            for variant, families in _FAMILIES_OF.items():
                if family in families:
                    yield Case(family, architecture, arithmetic, WIDTHS[-1], variant)


def case_of(row: dict[str, Any]) -> Case:
    return Case(*(row[field] for field in Case._fields))
