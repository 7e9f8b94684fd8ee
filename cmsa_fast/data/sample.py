"""One item of a data set: a sentence about a picture, and the mask it asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Sample:
    """One referring expression with its picture and its mask.

    Two samples are equal only when they are the same object: comparing tensors field by field has
    no single truth value.

    Attributes:
        image: uint8 `[3, H, W]`, RGB, at the picture's own size. Samples of one picture may share
            this memory: clone it before writing to it.
        mask: bool `[H, W]`, True where the referred object is.
        sentence: The expression as it was written, not split into words.
        image_id: The data set's number for the picture; sentences of one picture share it.
        ref_id: The data set's number for the referred object; its sentences share it.
        sent_id: The data set's number for the sentence.
        kind: The kind of sentence where the data set knows it ("attribute", "place", "relation",
            "ordinal"), else empty.
        names_nothing: Whether the sentence is about something that the picture does not have. (A mask
            may be empty without that, where the object's parts enclose nothing.)
    """

    image: Tensor
    mask: Tensor
    sentence: str
    image_id: int
    ref_id: int
    sent_id: int
    kind: str = ""
    names_nothing: bool = False


class ReferringDataset(Protocol):
    """A map-style data set with one item per sentence."""

    def __len__(self) -> int:
        """Number of sentences."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """The item at `index`."""
        ...

    def sentences(self) -> list[str]:
        """The sentence of every item, in order, without loading a picture."""
        ...

    def image_ids(self) -> list[int]:
        """The picture number of every item, in order, without loading a picture."""
        ...
