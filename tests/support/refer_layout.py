"""Small data sets in the layout of REFER."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cmsa_fast.data import RecordDataset, Source, open_split

COCO_FOLDER = "images/mscoco/images/train2014"


class ReferLayout:
    """Collects images and references and writes them as one data set.

    Records are dictionaries in `references`, `images` and `annotations`; a test can damage them before
    `write`.

    Args:
        root: The folder to write to.
        name: The data set's folder.
        split_by: Who made the split.
        image_folder: Where images go, relative to the root.
    """

    def __init__(
        self,
        root: Path,
        name: str = "refcoco",
        split_by: str = "unc",
        image_folder: str = COCO_FOLDER,
    ) -> None:
        self.root, self.name, self.split_by = root, name, split_by
        self.image_folder = root / image_folder
        self.references: list[dict[str, Any]] = []
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add_image(self, image_id: int, height: int, width: int, file_name: str | None = None) -> np.ndarray:
        """Writes an image of noise as PNG, whose name is COCO's where None, and returns its pixels."""
        file_name = file_name or coco_name(image_id)
        pixels = noise(image_id, height, width)
        self.image_folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(self.image_folder / file_name, "PNG")
        self.images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        return pixels

    def add_reference(
        self,
        image_id: int,
        segmentation: object,
        expressions: list[str],
        split: str = "train",
        ann_id: int | str | None = None,
    ) -> None:
        """Adds an annotation, with a number of its own where `ann_id` is None, and a reference to it."""
        ann_id = 1100 + len(self.references) if ann_id is None else ann_id
        self.annotations.append({"id": ann_id, "image_id": image_id, "segmentation": segmentation})
        self.refer(ann_id, *expressions, split=split, image_id=image_id)

    def refer(self, ann_id: Any, *expressions: str, split: str = "train", image_id: int) -> None:
        """Adds a reference to annotations that are added separately."""
        ref_id = 100 + len(self.references)
        first = sum(len(reference["sentences"]) for reference in self.references)
        self.references.append(
            {
                "ref_id": ref_id,
                "ann_id": ann_id,
                "image_id": image_id,
                "file_name": f"COCO_train2014_{image_id:012d}_{ref_id}.jpg",  # no such file
                "split": split,
                "sentences": sentences(*expressions, first=first),
            }
        )

    def write(self, protocol: int = 2) -> Path:
        """Writes the references, as JSON for gRefCOCO, and `instances.json`; returns the root."""
        folder = self.root / self.name
        folder.mkdir(parents=True, exist_ok=True)
        if self.name == "grefcoco":
            text = json.dumps(self.references, ensure_ascii=False)
            (folder / f"grefs({self.split_by}).json").write_text(text, encoding="utf-8")
        else:
            records = pickle.dumps(self.references, protocol=protocol)
            (folder / f"refs({self.split_by}).p").write_bytes(records)
        content = {"images": self.images, "annotations": self.annotations, "categories": []}
        (folder / "instances.json").write_text(json.dumps(content))
        return self.root


def noise(image_id: int, height: int, width: int) -> np.ndarray:
    """The pixels of an image, uint8 `[height, width, 3]`."""
    return np.random.default_rng(image_id).integers(0, 256, (height, width, 3), np.uint8)


def coco_name(image_id: int) -> str:
    """COCO's name of an image."""
    return f"COCO_train2014_{image_id:012d}.jpg"


def sentences(*expressions: str, first: int = 0) -> list[dict[str, Any]]:
    """Expressions as REFER's references hold them; "raw" gets them in upper case."""
    return [
        {"raw": one.upper(), "sent": one, "sent_id": first + i, "tokens": one.split()}
        for i, one in enumerate(expressions)
    ]


def square(left: float, top: float, side: float) -> list[float]:
    """A polygon that covers `side * side` pixels."""
    right, bottom = left + side, top + side
    return [left, top, right, top, right, bottom, left, bottom]


def unpublished(root: Path, name: str = "own") -> ReferLayout:
    """A data set without published counts; one train and one val image; not yet written."""
    layout = ReferLayout(root, name)
    layout.add_image(7, 23, 37)
    layout.add_image(11, 41, 29)
    layout.add_reference(7, [square(3, 2, 10)], ["left cup", "cup"])
    layout.add_reference(11, [square(1, 20, 9)], ["man"], split="val")
    return layout


def small_refcoco(root: Path) -> ReferLayout:
    """Three images of odd sizes, four references, seven expressions; not yet written."""
    layout = ReferLayout(root)
    layout.add_image(7, 23, 37)
    layout.add_image(11, 41, 29)
    layout.add_image(13, 31, 31)
    layout.add_reference(7, [square(3, 2, 10), square(8, 7, 10)], ["left cup", "café on the left"])
    layout.add_reference(11, [square(1, 20, 9)], ["man"])
    layout.add_reference(7, square(20, 3, 7), ["right cup", "the other one"])
    layout.add_reference(13, [square(5, 5, 11)], ["dog", "brown dog"], split="val")
    return layout


def open_refer(
    root: Path, name: str = "refcoco", split_by: str = "", split: str = "train", **options: Any
) -> RecordDataset:
    """Opens a split in the layout of REFER, "train" as for training."""
    errors = options.pop("errors", None)
    source = Source(form="refer", root=root, name=name, split_by=split_by, **options)
    return open_split(source, split, for_training=split == "train", errors=errors)
