"""What every reader of a data set gives: an image, the objects that expressions name, the expressions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class ImageSource(Protocol):
    """Where an image's pixels come from. Equal images have equal hashes; all of it can be pickled."""

    @property
    def name(self) -> str:
        """Which image it is, for messages."""
        ...

    def read(self, *, apply_orientation: bool) -> Tensor:
        """uint8 `[3, H, W]`, RGB, as `cmsa_fast.data.images.read_image`, with its errors."""
        ...


class ObjectMask(Protocol):
    """One object's mask, not yet drawn (`cmsa_fast.data.masks.MaskSource` is the usual one)."""

    @property
    def is_empty(self) -> bool:
        """Whether it is known, without drawing, that nothing of the mask is left."""
        ...

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width where the mask itself says them, else None."""
        ...

    @property
    def dropped(self) -> int:
        """Number of parts left out because they enclose nothing."""
        ...

    def decode(self, height: int, width: int) -> Tensor:
        """bool `[height, width]`; ValueError where it does not fit that size."""
        ...


@dataclass(frozen=True, slots=True)
class Record:
    """Expressions that name the same objects in one image.

    Attributes:
        image: The image.
        size: Height and width of the image in pixels where the files say them, else None.
        objects: What the expressions name; their masks are united. None at all: the expressions name
            nothing in this image, and the right answer is an empty mask.
        expressions: `(sent_id, expression)`, in the files' order.
        image_id: The data set's number for the image.
        ref_id: The data set's number for this reference.
        split: The split as the files have it.
        where: The file and the record in it that hold the objects, for messages.
    """

    image: ImageSource
    size: tuple[int, int] | None
    objects: tuple[ObjectMask, ...]
    expressions: tuple[tuple[int, str], ...]
    image_id: int
    ref_id: int
    split: str
    where: str

    @property
    def names_nothing(self) -> bool:
        """Whether the expressions are about something that the image does not have."""
        return not self.objects

    @property
    def has_lost_mask(self) -> bool:
        """Whether objects are named and nothing of their masks is left."""
        return bool(self.objects) and all(one.is_empty for one in self.objects)

    @property
    def mask_size(self) -> tuple[int, int] | None:
        """Height and width that the image must have for the masks, where anything says them."""
        sizes = (one.size for one in self.objects if one.size is not None)
        return next(sizes, self.size)

    def mask(self, height: int, width: int) -> Tensor:
        """Draws the union of the objects.

        Args:
            height: The image's height in pixels.
            width: The image's width in pixels.

        Returns:
            bool `[height, width]`; all False where nothing is named or no valid part is left.

        Raises:
            ValueError: A mask does not fit the image; the message names file and record.
        """
        union = torch.zeros(height, width, dtype=torch.bool)
        for one in self.objects:
            try:
                union |= one.decode(height, width)
            except ValueError as error:
                raise ValueError(f"{self.where}: {error}") from error
        return union
