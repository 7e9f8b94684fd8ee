"""What a model keeps of a picture between sentences."""

from typing import NamedTuple

from torch import Tensor


class ImageFeatures(NamedTuple):
    """Features of a batch of pictures.

    Attributes:
        levels: [B_images, C_i, H_i, W_i] each.
        size: (height, width) of the pictures they came from, to which logits are brought back.
    """

    levels: tuple[Tensor, ...]
    size: tuple[int, int]
