"""What is measured: the attention on the CPU in float32, its peers, and square matrix products."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cmsa_fast.kernels import cross_modal_attention

# 320 px at output stride 8, the paper's words and width; the literal form where its memory allows.
PLACES, WORDS, WIDTH = 1600, 20, 512
SMALL_PLACES, SMALL_WORDS = 400, 10
MATMUL_SIZES = (1024, 1600, 2048)


@dataclass(frozen=True)
class Case:
    """Something to time.

    Attributes:
        run: does it once.
        flops: floating-point operations that count as its work; None where only the time is of interest.
        rounds: how often it is measured.
    """

    run: Callable[[], object]
    flops: float | None
    rounds: int


def features(places: int, words: int, width: int = WIDTH) -> list[Tensor]:
    """Query, key and value of one image's places and one expression's words; logits of deviation about 1."""
    generator = torch.Generator().manual_seed(0)
    scale = (2 * width**0.5) ** -0.5
    sizes = [places] * 3 + [words] * 3
    return [torch.randn(1, size, width, generator=generator) * scale for size in sizes]


def attend(parts: list[Tensor], backend: str) -> Tensor:
    """The mean over words of the attended values, [1, P, d]."""
    return cross_modal_attention(*parts, backend=backend)


def sdpa(parts: list[Tensor]) -> Tensor:
    """The same by torch's fused attention over all (place, word) tokens."""
    query, key, value = (
        (place[:, :, None] + word[:, None]).flatten(1, 2)[:, None]
        for place, word in zip(parts[:3], parts[3:], strict=True)
    )
    attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)[:, 0]
    return attended.unflatten(1, (parts[0].shape[1], parts[3].shape[1])).mean(2)


def _backward(parts: list[Tensor], backend: str) -> Callable[[], object]:
    leaves = [part.clone().requires_grad_() for part in parts]
    grad = torch.randn(leaves[0].shape, generator=torch.Generator().manual_seed(1))
    return lambda: torch.autograd.grad(attend(leaves, backend), leaves, grad)


def build(name: str) -> Case:
    """A case by its name, one of NAMES."""
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
        return Case(_backward(parts, backend), flops, rounds)
    flops = None if small else 2.0 * PLACES**2 * (2 * WIDTH + 2 * WORDS)
    return Case(lambda: attend(parts, backend), flops, rounds)


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
