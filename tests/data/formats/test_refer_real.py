"""Real RefCOCO expressions against published boxes and scores."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.refer_layout import open_refer

from cmsa_fast.data.types import Sample

COUNTS = {"train": 37, "val": 19, "testA": 10}


def every_sample(real: Path) -> Iterator[Sample]:
    for split in COUNTS:
        data = open_refer(real / "refer", split=split)
        for i in range(len(data)):
            yield data[i]


@pytest.mark.parametrize("split", COUNTS)
def test_number_of_expressions(real: Path, split: str) -> None:
    data = open_refer(real / "refer", split=split)
    assert len(data) == data.report.recorded_expressions == COUNTS[split]
    assert data.report.degenerate_parts == data.report.objects_without_mask == 0


def test_images_fit_their_masks_and_recorded_areas(real: Path) -> None:
    content = json.loads((real / "refer" / "refcoco" / "instances.json").read_text())
    areas = {(entry["image_id"], entry["area"]) for entry in content["annotations"]}
    for sample in every_sample(real):
        assert sample.image.shape == (3, *sample.mask.shape)
        assert (sample.image_id, int(sample.mask.sum())) in areas


def test_expressions_and_boxes_are_the_published_ones(real: Path) -> None:
    published: dict[int, dict[str, str]] = {}
    for split in ("val", "testA"):
        with gzip.open(real / "splits" / f"refcoco_unc_{split}.csv.gz", "rt") as file:
            published.update({int(row["sent_id"]): row for row in csv.DictReader(file)})
    for sample in every_sample(real):
        row = published[sample.sent_id]
        assert sample.expression == row["sent"]
        assert (sample.ref_id, sample.image_id) == (int(row["ref_id"]), int(row["img_id"]))
        rows, columns = sample.mask.any(1).nonzero(), sample.mask.any(0).nonzero()
        left, top, width, height = json.loads(row["bbox"])
        box = (left, top, left + width, top + height)
        drawn = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        # The copy's masks were recovered from images, to within two pixels.
        assert max(abs(a - b) for a, b in zip(box, drawn, strict=True)) <= 2


@pytest.mark.parametrize("model", ["base", "ours"])
def test_masks_give_two_models_their_recorded_scores(real: Path, model: str) -> None:
    folder = real / "refer" / "predictions"
    rows = json.loads((folder / "published_iou.json").read_text())
    scores = {row["sent_id"]: row for row in rows}
    for sample in every_sample(real):
        row = scores[sample.sent_id]
        with Image.open(folder / model / row["mask"]) as image:
            predicted = torch.from_numpy(np.array(image.convert("L")) > 127)
        intersection = int((predicted & sample.mask).sum())
        union = int((predicted | sample.mask).sum())
        assert (intersection, union) == (row[model]["I"], row[model]["U"])
        # Printed with two decimals, against the masks from which the copy's were recovered.
        assert abs(intersection / union - row[model]["iou_published_2dp"]) < 0.01
