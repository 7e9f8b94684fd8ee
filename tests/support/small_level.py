"""A CMSA level of small odd sizes and its inputs, in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from cmsa_fast.nn import CMSA

VISUAL, WORD, WIDTH, PROJECTED = 11, 7, 5, 6
TOKEN = VISUAL + WORD + 8

Inputs = tuple[Tensor, ...]


def build(backend: str = "auto", width: int = WIDTH) -> CMSA:
    torch.manual_seed(0)
    return CMSA(VISUAL, WORD, width, backend=backend).double()


def draw(images: int, expressions: int, words: int, height: int, width: int) -> Inputs:
    """Visual features with channels innermost in memory, words, and weight and bias of a 1x1 convolution."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    visual = normal(images, height, width, VISUAL).permute(0, 3, 1, 2)
    return (
        visual,
        normal(expressions, words, WORD),
        normal(PROJECTED, TOKEN, 1, 1),
        normal(PROJECTED),
    )


def padding(expressions: int, words: int) -> Tensor:
    """A word mask with padding at the front and in the middle."""
    mask = torch.ones(expressions, words, dtype=torch.bool)
    mask[0, 0] = mask[-1, 1:-1] = False
    return mask


def project(module: CMSA, inputs: Inputs, mask: Tensor | None = None, index: Tensor | None = None) -> Tensor:
    visual, words, weight, bias = inputs
    return module.project(visual, words, mask, weight=weight, bias=bias, image_index=index)


def convolve(module: CMSA, inputs: Inputs, mask: Tensor | None = None, index: Tensor | None = None) -> Tensor:
    """The definition of `CMSA.project`."""
    visual, words, weight, bias = inputs
    return F.conv2d(module(visual, words, mask, image_index=index), weight, bias)


def assert_rounded_like(ours: Tensor, theirs: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """The error is at most twice that of another computation in this dtype, or of rounding the result."""
    allowed = max((theirs - exact).norm(), torch.finfo(dtype).eps * exact.norm())
    assert (ours - exact).norm() <= 2 * allowed


def tensor_shapes(run: Callable[[], object]) -> set[tuple[int, ...]]:
    """Shapes of all tensors that the operators of a function take or return."""
    with _Shapes() as shapes:
        run()
    return shapes.seen


class _Shapes(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if func is not torch.ops.cmsa_fast.weights_are_unchanged.default:  # reads no values
            leaves = pytree.tree_leaves((args, result))
            self.seen |= {tuple(part.shape) for part in leaves if isinstance(part, Tensor)}
        return result
