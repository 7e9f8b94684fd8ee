"""What the writers of Parquet tables and manifests share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from torch import Tensor

from ..images import image_size
from ..types import ImageSource, Record
from .converted import Description

SUFFIXES = (".parquet", ".jsonl")


@dataclass
class SplitCounts:
    """Numbers of what was written of a split."""

    references: int = 0
    expressions: int = 0
    masks: int = 0
    images: set[ImageSource] = field(default_factory=set)


@dataclass(frozen=True)
class Conversion:
    """What was written."""

    path: Path
    description: Description
    splits: Mapping[str, SplitCounts]
    embedded: int  # number of images in the file, or in the folder beside the manifest
    size: int  # bytes of the file


def count_record(splits: dict[str, SplitCounts], record: Record) -> None:
    """Counts a record that was written."""
    counts = splits.setdefault(record.split, SplitCounts())
    counts.references += 1
    counts.expressions += len(record.expressions)
    counts.masks += len(record.objects)
    counts.images.add(record.image)


class MaskSizes:
    """The sizes at which masks are decoded; an image is opened once, and only if its record states no size."""

    def __init__(self) -> None:
        self._sizes: dict[ImageSource, tuple[int, int]] = {}

    def of(self, record: Record) -> tuple[int, int] | None:
        """Height and width for the masks of a record, None if there is nothing to decode."""
        if all(one.is_empty for one in (*record.objects, *record.ignored)):
            return None
        if record.mask_size is not None:
            return record.mask_size
        image = record.image
        if image not in self._sizes:
            self._sizes[image] = image_size(image, apply_orientation=False)
        return self._sizes[image]


def run_lengths(mask: Tensor) -> dict[str, Any]:
    """The compressed run lengths of a mask, bool `[height, width]`, as pycocotools writes them."""
    pixels: Any = np.asfortranarray(mask.numpy().view(np.uint8))
    encoded: dict[str, Any] = coco_mask.encode(pixels)
    return encoded


def check_free(to: Path) -> None:
    """Raises ValueError or FileExistsError if a file cannot be written."""
    if to.suffix not in SUFFIXES:
        raise ValueError(f"to must be a file name that ends in {' or '.join(SUFFIXES)}, not {to}")
    if to.exists():
        raise FileExistsError(f"to must not exist; {to} exists and is never overwritten")
