"""One item of a data set: an expression about an image, and the mask it asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Sample:
    """One referring expression with its image and its mask.

    Two samples are equal only when they are the same object: comparing tensors field by field has
    no single truth value.

    Attributes:
        image: uint8 `[3, H, W]`, RGB, at the image's own size. Samples of one image may share
            this memory: clone it before writing to it.
        mask: bool `[H, W]`, True where the referred object is.
        expression: The expression as it was written, not split into words.
        image_id: The data set's number for the image; expressions of one image share it.
        ref_id: The data set's number for the referred object; its expressions share it.
        sent_id: The data set's number for the expression.
        kind: The kind of expression where the data set knows it ("attribute", "place", "relation",
            "ordinal"), else empty.
        names_nothing: Whether the expression is about something that the image does not have. (A mask
            may be empty without that, where the object's parts enclose nothing.)
    """

    image: Tensor
    mask: Tensor
    expression: str
    image_id: int
    ref_id: int
    sent_id: int
    kind: str = ""
    names_nothing: bool = False


class ReferringDataset(Protocol):
    """A map-style data set with one item per expression."""

    def __len__(self) -> int:
        """Number of expressions."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """The item at `index`."""
        ...

    def expressions(self) -> list[str]:
        """The expression of every item, in order, without loading an image."""
        ...

    def image_ids(self) -> list[int]:
        """The image number of every item, in order, without loading an image."""
        ...
