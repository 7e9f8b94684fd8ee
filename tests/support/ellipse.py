"""An image with a known object and a noisy guess at its mask, for the tests of the dense CRF."""

from __future__ import annotations

import torch
from torch import Tensor


def ellipse(height: int = 61, width: int = 83) -> tuple[Tensor, Tensor, Tensor]:
    """A red ellipse on green, a noisy and shifted probability map of it, and its mask."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    truth = ((y - 30) / 19.0) ** 2 + ((x - 44) / 27.0) ** 2 < 1
    red, green = (torch.tensor(colour)[:, None, None] for colour in ([200, 40, 40], [40, 160, 60]))
    image = torch.where(truth, red, green)
    generator = torch.Generator().manual_seed(5)
    shifted = truth.roll((3, 4), (0, 1)).float()
    guess = 0.2 + 0.6 * shifted + 0.4 * (torch.rand(height, width, generator=generator) - 0.5)
    return image.to(torch.uint8), guess.clamp(0, 1), truth
