"""Small data sets in the folders `anns` and `masks`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 23, 37
IMAGE = "COCO_train2014_000000000007.jpg"


class AnnsLayout:
    """Writes images and masks as records are added, and the JSON files in `write`."""

    def __init__(self, root: Path, name: str = "refcoco", images: str = "images/train2014"):
        self.root, self.name = root, name
        self.images = root / images
        self.masks = root / "masks" / name
        self.splits: dict[str, list[Any]] = {}
        self.pixels: dict[str, np.ndarray] = {}

    def add(self, split: str, *expressions: str, image: str = IMAGE) -> np.ndarray:
        """Adds a record; returns its mask, bool `[HEIGHT, WIDTH]`."""
        ref_id = 50 + sum(len(records) for records in self.splits.values())
        generator = np.random.default_rng(ref_id)
        if image not in self.pixels:
            self.pixels[image] = generator.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
            self.images.mkdir(parents=True, exist_ok=True)
            Image.fromarray(self.pixels[image]).save(self.images / image, "PNG")
        mask = generator.random((HEIGHT, WIDTH)) < 0.3
        self.masks.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask.astype(np.uint8) * 255).save(self.masks / f"{ref_id}.png")
        self.splits.setdefault(split, []).append(
            {
                "bbox": [1, 2, 11, 12],
                "cat": 0,
                "segment_id": ref_id,
                "img_name": image,
                "sentences": [
                    {"idx": i, "sent_id": 10 * ref_id + i, "sent": one} for i, one in enumerate(expressions)
                ],
                "sentences_num": len(expressions),
            }
        )
        return mask

    def write(self) -> Path:
        folder = self.root / "anns" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        for split, records in self.splits.items():
            text = json.dumps(records, ensure_ascii=False)
            (folder / f"{split}.json").write_text(text, encoding="utf-8")
        return self.root


def small_anns(root: Path) -> AnnsLayout:
    """Two images, four records, five expressions; the JSON files are not yet written."""
    layout = AnnsLayout(root)
    layout.add("train", "left cup")
    layout.add("val", "right cup", "café on the right")
    layout.add("val", "man", image="COCO_train2014_000000000011.jpg")
    layout.add("val", "dog")
    return layout
