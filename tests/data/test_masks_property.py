"""Any segmentation is decoded as pycocotools does, or refused."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

pytest.importorskip("hypothesis", reason="hypothesis is not installed")
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from support.strategies import few, segmentations  # noqa: E402

from cmsa_fast.data.masks import parse_segmentation


@few(150)
@given(value=segmentations)
def test_any_segmentation_is_parsed_or_refused(value: Any) -> None:
    try:
        mask = parse_segmentation(value)
    except ValueError as error:
        assert len(str(error)) < 1000  # noqa: PT017
        return
    height, width = mask.size or (7, 11)
    if height * width > 10**6:
        return
    try:
        drawn = mask.decode(height, width)
    except ValueError:
        assert mask.polygons
    else:
        assert drawn.shape == (height, width)
        assert drawn.dtype == torch.bool
        assert not (mask.is_empty and drawn.any())


points = st.lists(st.tuples(st.floats(-9, 49, width=32), st.floats(-9, 49, width=32)), min_size=3, max_size=9)
sides = st.integers(1, 41)


@few(150)
@given(polygons=st.lists(points, min_size=1, max_size=4), height=sides, width=sides)
def test_polygons_are_united_as_pycocotools_fills_them(
    polygons: list[list[tuple[float, float]]], height: int, width: int
) -> None:
    written = [[number for point in polygon for number in point] for polygon in polygons]
    mask = parse_segmentation(written)
    reach = [
        -extent <= number <= 2 * extent
        for polygon in polygons
        for point in polygon
        for number, extent in zip(point, (width, height), strict=True)
    ]
    if not all(reach):
        with pytest.raises(ValueError, match="spans"):
            mask.decode(height, width)
        return
    expected = np.zeros((height, width), bool)
    for polygon in written:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of numpy, about pycocotools
            expected |= coco_mask.decode(coco_mask.frPyObjects([polygon], height, width))[..., 0] > 0
    np.testing.assert_array_equal(mask.decode(height, width).numpy(), expected)
    assert mask.dropped == 0


@few(150)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=sides,
    width=sides,
    filled=st.sampled_from([0.0, 0.03, 0.5, 1.0]),
    form=st.sampled_from(["plain", "text", "bytes", "list"]),
    wrong=st.integers(-1, 1),
)
def test_run_lengths_are_the_pixels_down_the_columns(
    seed: int, height: int, width: int, filled: float, form: str, wrong: int
) -> None:
    pixels = np.random.default_rng(seed).random((height, width)) < filled
    runs, before = [0], False
    for pixel in pixels.T.reshape(-1).tolist():
        if pixel != before:
            runs.append(0)
        runs[-1] += 1
        before = pixel
    counts: Any = runs
    if form != "plain":
        counts = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))["counts"]
    if form in ("text", "list"):
        counts = counts.decode("ascii")
    rle = {"size": [height + wrong, width], "counts": counts}
    if wrong:
        with pytest.raises(ValueError, match="run lengths"):
            parse_segmentation(rle)
        return
    mask = parse_segmentation([rle] if form == "list" else rle)
    assert mask.size == (height, width)
    np.testing.assert_array_equal(mask.decode(height, width).numpy(), pixels)
    with pytest.raises(ValueError, match="its image"):
        mask.decode(height + 1, width)
