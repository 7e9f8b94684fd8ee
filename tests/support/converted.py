"""Data sets for tests of `data convert`, and the comparison of a converted one with its original."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from support.refer_layout import ReferLayout, small_refcoco, square

from cmsa_fast.data import ErrorCollector, RecordDataset, Source, open_split, read_records
from cmsa_fast.data.formats.convert import convert
from cmsa_fast.data.source import Reading


def refer(root: Path, **options: Any) -> Source:
    return Source(form="refer", root=root, **options)


def converted(root: Path, **options: Any) -> Source:
    return Source(form="converted", root=root, **options)


def all_records(source: Source) -> Reading:
    return read_records(source, None, ErrorCollector(strict=True))


def assert_same(one: RecordDataset, other: RecordDataset) -> None:
    assert (one.title, one.report) == (other.title, other.report)
    assert one.expressions() == other.expressions()
    assert one.image_ids() == other.image_ids()
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.mask, b.mask)
        assert replace(a, image=b.image, mask=b.mask).__dict__ == b.__dict__


def assert_converted(source: Source, tmp_path: Path, splits: list[str]) -> None:
    """Compares each split, with referenced images and with embedded ones after the original is gone."""
    originals = {split: open_split(source, split) for split in splits}
    images = {split: [sample.image for sample in data] for split, data in originals.items()}
    for name in ("referenced", "embedded"):
        file = tmp_path / f"{name}.parquet"
        convert(source, file, copy_images=name == "embedded")
        for split, data in originals.items():
            assert_same(data, open_split(converted(file), split))
    shutil.rmtree(source.root)
    for split in splits:
        data = open_split(converted(tmp_path / "embedded.parquet"), split)
        assert all(torch.equal(a.image, b) for a, b in zip(data, images[split], strict=True))


def run_lengths(height: int, width: int, *, seed: int) -> dict[str, Any]:
    pixels = np.random.default_rng(seed).random((height, width)) < 0.3
    rle: dict[str, Any] = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    return {"size": [height, width], "counts": rle["counts"].decode()}


def every_mask_form(root: Path) -> ReferLayout:
    """All forms of masks, in images of odd sizes and in alternating splits."""
    layout = small_refcoco(root)
    layout.add_image(17, 19, 53)
    layout.add_image(19, 7, 5)
    plain = {"size": [7, 5], "counts": [4, 6, 25]}
    parts = [run_lengths(19, 53, seed=seed) for seed in (2, 3)]
    layout.add_reference(17, run_lengths(19, 53, seed=1), ["compressed 左のカップ"], split="testA")
    layout.add_reference(19, plain, ["plain numbers", "second"], split="testB")
    layout.add_reference(17, parts, ["a list of run lengths"], split="testA")
    outside = [square(-4, -3, 9), square(40, 12, 20)]
    layout.add_reference(17, outside, ["over the edge"], split="testB")
    layout.add_reference(19, [[1, 2, 3, 4], square(1, 1, 2)], ["one degenerate part"], split="testA")
    layout.add_reference(19, [[1, 2, 3, 4]], ["no part is left", "really"], split="testB")
    layout.add_reference(19, [[0.0] * 6], ["a polygon without area"], split="testA")
    layout.add_reference(19, [[1, 2, 3, 4]], ["nothing to learn from", "."], split="train")
    layout.add_reference(7, square(3, 2, 10), ["the same cup"])
    layout.references[-1]["ann_id"] = layout.references[0]["ann_id"]
    return layout
