"""A level of odd sizes and its input, for the tests of the convolution folded into it."""

from __future__ import annotations

import torch
from torch import Tensor

from cmsa_fast.nn import CMSA

VISUAL, WORD, WIDTH, PROJECTED = 11, 7, 5, 6
TOKEN = VISUAL + WORD + 8

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def build(backend: str = "auto", width: int = WIDTH) -> CMSA:
    """A level in float64."""
    torch.manual_seed(0)
    return CMSA(VISUAL, WORD, width, backend=backend).double()


def draw(images: int, expressions: int, words: int, height: int, width: int) -> Inputs:
    """Visual features whose channels are innermost, words, and a convolution's weight and bias."""
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
    """A mask of words with padding in front and in the middle."""
    mask = torch.ones(expressions, words, dtype=torch.bool)
    mask[0, 0] = mask[-1, 1:-1] = False
    return mask
