"""What a model keeps of an image between expressions."""

from typing import NamedTuple

from torch import Tensor


class ImageFeatures(NamedTuple):
    """Features of a batch of images.

    Attributes:
        levels: [B_images, C_i, H_i, W_i] each.
        size: (height, width) of the images they came from, to which logits are brought back.
    """

    levels: tuple[Tensor, ...]
    size: tuple[int, int]
