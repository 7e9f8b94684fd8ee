"""The synthetic scenes as records, for conversion to files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

from PIL import Image
from torch import Tensor

from ..errors import by
from ..source import Reading
from ..types import Record
from .dataset import SPLITS, ScenesDataset
from .rendering import MAX_OBJECTS

_SEED = 0
_EXPRESSIONS = 2


@dataclass(frozen=True)
class SceneImage:
    """The image of a scene (`cmsa_fast.data.types.EmbeddedImage`), rendered when it is read."""

    dataset: ScenesDataset
    index: int  # of the scene's first item
    file_name: str

    @property
    def name(self) -> str:
        """The name of the image."""
        return self.file_name

    def read_bytes(self) -> bytes:
        """The image as PNG."""
        stream = BytesIO()
        Image.fromarray(self.dataset[self.index].image.permute(1, 2, 0).numpy()).save(stream, "PNG")
        return stream.getvalue()

    def read(self, *, apply_orientation: bool) -> Tensor:
        """uint8 `[3, H, W]`; a scene has no other orientation."""
        return self.dataset[self.index].image


@dataclass(frozen=True)
class SceneMask:
    """The mask of an item (`cmsa_fast.data.types.ObjectMask`), rendered when it is decoded."""

    dataset: ScenesDataset
    index: int
    is_empty: bool = False
    dropped: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.dataset.size, self.dataset.size

    def decode(self, height: int, width: int) -> Tensor:
        """bool `[height, width]`; ValueError for another size."""
        if (height, width) != self.size:
            raise ValueError(f"the mask is {by(self.size)} (height x width) and its image {height} x {width}")
        return self.dataset[self.index].mask


def scene_records(scenes: int, size: int, splits: Sequence[str] = ()) -> Reading:
    """Records of `scenes` scenes of each split, two expressions each; no splits: all.

    Numbers of images differ between splits; those of "val" are those of `ScenesDataset`.
    """
    if unknown := [split for split in splits if split not in SPLITS]:
        raise ValueError(f"split {unknown[0]!r} is none of the scenes' splits ({', '.join(SPLITS)})")
    records: list[Record] = []
    for split in splits or SPLITS:
        first = scenes * ("val", "train", "test").index(split)
        dataset = ScenesDataset(scenes, seed=_SEED, split=split, size=size, expressions_per_scene=_EXPRESSIONS)
        for index, expression, kind, number in zip(
            range(len(dataset)), dataset.expressions(), dataset.kinds(), dataset.image_ids(), strict=True
        ):
            records.append(
                Record(
                    image=SceneImage(dataset, number * _EXPRESSIONS, f"{split}-{number:06d}.png"),
                    size=(size, size),
                    objects=(SceneMask(dataset, index),),
                    expressions=((index, expression),),
                    image_id=first + number,
                    ref_id=number * MAX_OBJECTS + dataset.target(index),
                    split=split,
                    where=f"scene {number} of {split}",
                    kind=kind,
                )
            )
    return Reading(records, "scenes")
