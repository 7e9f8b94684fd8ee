"""Masks in every form that COCO-style files have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from cmsa_fast.data.masks import parse_segmentation

HEIGHT, WIDTH = 23, 37
SQUARE = [3.0, 2.0, 13.0, 2.0, 13.0, 12.0, 3.0, 12.0]
NEIGHBOUR = [8.0, 7.0, 20.0, 7.0, 20.0, 17.0, 8.0, 17.0]  # overlaps SQUARE


def blob(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((HEIGHT, WIDTH)) < 0.3


def compressed(pixels: np.ndarray) -> dict[str, Any]:
    return coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))


@pytest.mark.parametrize(
    ("segmentation", "area"),
    [
        (SQUARE, 100),
        ([np.array(SQUARE, dtype=np.int32)], 100),
        # 10 x 10 and 12 x 10 pixels that share 5 x 5
        ([SQUARE, NEIGHBOUR], 100 + 120 - 25),
    ],
)
def test_polygons_in_every_form(segmentation: Any, area: int) -> None:
    mask = parse_segmentation(segmentation).decode(HEIGHT, WIDTH)
    assert mask.dtype == torch.bool
    assert mask.shape == (HEIGHT, WIDTH)
    assert mask.is_contiguous()
    assert mask.sum() == area


def test_list_of_run_lengths_is_their_union() -> None:
    first, second = blob(1), blob(2)
    source = parse_segmentation([compressed(first), compressed(second)])
    assert torch.equal(source.decode(HEIGHT, WIDTH), torch.from_numpy(first | second))


@pytest.mark.parametrize(
    "part",
    [
        [],
        [4.0, 5.0],
        [4.0, 5.0, 9.0, 9.0],  # pycocotools takes four numbers for a box
        [*SQUARE, 7.0],
        [float("nan"), *SQUARE[1:]],
        [float("inf"), *SQUARE[1:]],
    ],
)
def test_degenerate_parts_are_dropped_and_counted(part: list[float]) -> None:
    for parts in ([part, SQUARE], [SQUARE, part]):
        source = parse_segmentation(parts)
        assert source.dropped == 1
        assert source.decode(HEIGHT, WIDTH).sum() == 100
    alone = parse_segmentation([part])
    assert alone.is_empty
    assert alone.dropped == 1
    assert alone.decode(HEIGHT, WIDTH).shape == (HEIGHT, WIDTH)
    assert not alone.decode(HEIGHT, WIDTH).any()


def test_segmentation_without_parts_is_empty() -> None:
    source = parse_segmentation([])
    assert source.is_empty
    assert source.dropped == 0


def test_mask_for_another_size_names_both() -> None:
    source = parse_segmentation(compressed(blob()))
    with pytest.raises(ValueError, match=rf"{HEIGHT} x {WIDTH}.*{WIDTH} x {HEIGHT}"):
        source.decode(WIDTH, HEIGHT)


def test_polygon_in_other_units_is_refused() -> None:
    source = parse_segmentation([[value * 1e7 for value in SQUARE]])
    with pytest.raises(ValueError, match="x = 3e"):
        source.decode(HEIGHT, WIDTH)


WHOLE = compressed(blob())


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "NoneType"),
        ("0\\]3", "str"),
        (7, "int"),
        ([SQUARE, compressed(blob())], "list of coordinates, not dict"),
        ([["a", "b", "c", "d", "e", "f"]], "flat list of numbers"),
        ([[SQUARE, SQUARE]], "2-dimensional"),
        ([[SQUARE, [1.0]]], "flat list of numbers"),
        ([[1.0, 2.0, 3.0, 4.0, 5.0, None]], "flat list of numbers"),
        ({"counts": b"0\\]3"}, "'size'"),
        ({"size": [HEIGHT, WIDTH]}, "'counts'"),
        ({"size": [HEIGHT], "counts": b"0"}, "two positive integers"),
        ({"size": [HEIGHT, -WIDTH], "counts": b"0"}, "two positive integers"),
        ({"size": [HEIGHT, 3.5], "counts": b"0"}, "two positive integers"),
        ({"size": [HEIGHT, WIDTH], "counts": 12}, "text, bytes or a list"),
        ({"size": [HEIGHT, WIDTH], "counts": "é"}, "ASCII"),
        ({"size": [HEIGHT, WIDTH], "counts": ""}, "compressed form"),
        ({"size": [HEIGHT, WIDTH], "counts": b"\xff\xff"}, "compressed form"),
        ({"size": [HEIGHT, WIDTH], "counts": b"o"}, "compressed form"),  # stops inside a number
        ({"size": [HEIGHT, WIDTH], "counts": b"oooooooo0"}, "32 bits"),
        ({"size": [HEIGHT, WIDTH], "counts": WHOLE["counts"][:-1]}, "add up"),
        ({"size": [HEIGHT, WIDTH + 1], "counts": WHOLE["counts"]}, "add up"),
        ({"size": [HEIGHT, WIDTH], "counts": [1, 2, 3]}, "add up to 6"),
        ({"size": [2, 3], "counts": [7, -1]}, "1 negative"),
        ({"size": [2, 3], "counts": [2**62, 2**62, 2**62, 2**62, 6]}, "add up"),
        ({"size": [2, 3], "counts": [2.5, 3.5]}, "integers"),
        ({"size": [2, 3], "counts": [[6]]}, "integers"),
        ([compressed(blob()), compressed(np.ones((5, 7)))], f"5 x 7, {HEIGHT} x {WIDTH}"),
    ],
)
def test_invalid_segmentation_states_the_reason(segmentation: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_segmentation(segmentation)


def test_published_areas_of_real_polygons(real: Path) -> None:
    records = json.loads((real / "records" / "refcoco_first_records.json").read_text())
    first = records["ann_of_ref_0"]
    height, width = first["image"]["height"], first["image"]["width"]
    mask = parse_segmentation(first["segmentation"]).decode(height, width)
    assert int(mask.sum()) == first["expected_pycocotools_area"]
    second = records["instances.json annotations[0]"]
    mask = parse_segmentation(second["segmentation"]).decode(424, 640)
    assert int(mask.sum()) == second["expected_pycocotools_area"]


def test_real_panoptic_run_lengths(real: Path) -> None:
    content = json.loads((real / "panoptic" / "panoptic_coco_detection_format.json").read_text())
    annotations = content if isinstance(content, list) else content["annotations"]
    assert annotations
    for annotation in annotations:
        rle = annotation["segmentation"]
        mask = parse_segmentation(rle).decode(*rle["size"])
        assert int(mask.sum()) == annotation["area"]
