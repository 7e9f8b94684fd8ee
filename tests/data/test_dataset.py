"""Data sets of records: what is left out, images and masks, other processes."""

from __future__ import annotations

import logging
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.damage import damage
from support.refer_layout import ReferLayout, open_refer, small_refcoco, square
from torch.utils.data import DataLoader

from cmsa_fast.data.masks import parse_segmentation
from cmsa_fast.data.types import Sample

LOGGER = "cmsa_fast.data.dataset"
FLAT = [4.0, 5.0, 9.0, 9.0]  # two points, which enclose nothing


def first(batch: list[Sample]) -> Sample:
    return batch[0]


def test_empty_expressions_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layout = small_refcoco(tmp_path)
    layout.add_reference(11, [square(1, 1, 3)], ["", "tree", " \t", " . "])
    with caplog.at_level(logging.WARNING, LOGGER):
        data = open_refer(layout.write())
    assert data.expressions()[5:] == ["tree"]
    assert data[5].sent_id == 8
    assert data.report.empty_expressions == 3
    assert data.report.recorded_expressions == 9
    assert data.report.expressions == 6
    assert "left out 3 expressions without a word" in caplog.text


def test_split_of_empty_expressions_has_no_item(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    layout.add_reference(11, [square(1, 1, 3)], ["", " "], split="blank")
    with pytest.raises(ValueError, match="no usable expression.*empty_expressions=2"):
        open_refer(layout.write(), split="blank")


@pytest.mark.parametrize("split", ["train", "val"])
def test_objects_without_a_mask(tmp_path: Path, split: str, caplog: pytest.LogCaptureFixture) -> None:
    layout = ReferLayout(tmp_path)
    layout.add_image(7, 23, 37)
    layout.add_reference(7, [FLAT, square(3, 2, 10)], ["partly flat"], split)
    layout.add_reference(7, [FLAT, []], ["flat", "nothing there"], split)
    with caplog.at_level(logging.WARNING, LOGGER):
        data = open_refer(layout.write(), split=split)
    assert int(data[0].mask.sum()) == 100
    assert data.report.degenerate_parts == 3
    assert data.report.objects_without_mask == 1
    assert data.report.expressions_without_mask == 2
    assert caplog.text.count("3 polygons") == 1
    if split == "train":
        assert data.expressions() == ["partly flat"]
        assert "left out" in caplog.text
    else:
        assert data.expressions() == ["partly flat", "flat", "nothing there"]
        assert data[1].mask.shape == (23, 37)
        assert not data[1].mask.any()
        assert "kept with an empty mask" in caplog.text


def test_parts_shared_by_two_references_count_once(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    layout.annotations[1]["segmentation"].append(FLAT)
    layout.references.append({**layout.references[1], "ref_id": 999})
    data = open_refer(layout.write())
    assert data.report.references == 4
    assert data.report.degenerate_parts == 1


def test_clean_split_reports_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layout = small_refcoco(tmp_path)
    layout.split_by = "google"
    with caplog.at_level(logging.WARNING, LOGGER):
        report = open_refer(layout.write(), split_by="google").report
    assert (report.references, report.expressions, report.images) == (3, 5, 2)
    assert report.empty_expressions == report.degenerate_parts == report.objects_without_mask == 0
    assert report.published_expressions is None
    assert not caplog.records


def test_another_number_of_expressions_than_published_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small_refcoco(tmp_path).write()
    with caplog.at_level(logging.WARNING, LOGGER):
        data = open_refer(tmp_path, split="val")
    assert data.report.published_expressions == 10834
    assert "2 expressions" in caplog.text
    assert "10834" in caplog.text


def test_missing_image_is_an_error_on_access(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    (layout.image_folder / layout.images[1]["file_name"]).unlink()
    data = open_refer(layout.write())
    assert data[0].image_id == 7
    with pytest.raises(FileNotFoundError, match=r"COCO_train2014_000000000011\.jpg"):
        data[2]


SEGMENTATION = ("annotations", 1, "segmentation")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("images", 1, "height"), 42, "41 x 29.*ref_id 101.*42 x 29"),
        (SEGMENTATION, {"size": [5, 7], "counts": [3, 4, 28]}, "41 x 29.*ref_id 101.*5 x 7"),
        # In other units than pixels.
        (SEGMENTATION, [square(10, 10, 1e8)], r"instances\.json: annotation 1101: a polygon"),
    ],
)
def test_mask_that_does_not_fit_is_an_error_on_access(
    tmp_path: Path, path: tuple[Any, ...], value: Any, message: str
) -> None:
    layout = small_refcoco(tmp_path)
    damage(vars(layout), path, value)
    data = open_refer(layout.write())
    with pytest.raises(ValueError, match=message):
        data[2]


def write_turned(layout: ReferLayout, image: int, orientation: int) -> np.ndarray:
    """Gives an image an EXIF orientation; its pixels stay as they are stored."""
    file = layout.image_folder / layout.images[image]["file_name"]
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(file) as photo:
        pixels = np.array(photo)
    Image.fromarray(pixels).save(file, "PNG", exif=exif)
    return pixels


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_masks_apply_to_the_stored_pixels(
    tmp_path: Path, orientation: int, caplog: pytest.LogCaptureFixture
) -> None:
    layout = small_refcoco(tmp_path)
    pixels = write_turned(layout, 1, orientation)
    data = open_refer(layout.write())
    caplog.clear()
    sample = data[2]
    np.testing.assert_array_equal(sample.image.permute(1, 2, 0).numpy(), pixels)
    assert sample.mask.shape == (41, 29)
    assert not caplog.records


def test_mask_that_fits_only_the_upright_image(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layout = small_refcoco(tmp_path)
    pixels = write_turned(layout, 0, 6)
    layout.images[0].update(height=37, width=23)
    data = open_refer(layout.write())
    caplog.clear()
    for i in (0, 1, 3):
        sample = data[i]
        np.testing.assert_array_equal(sample.image.permute(1, 2, 0).numpy(), np.rot90(pixels, -1))
        assert sample.mask.shape == (37, 23)
    assert caplog.text.count("turned upright") == 1


def test_expressions_of_one_image_decode_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cmsa_fast.data.images as images

    read: list[str] = []
    original = images.read_image

    def counted(source: Any, **options: Any) -> torch.Tensor:
        read.append(Path(source).name)
        return original(source, **options)

    monkeypatch.setattr(images, "read_image", counted)
    data = open_refer(small_refcoco(tmp_path).write())
    for i in range(len(data)):
        data[i]
    assert len(read) == 2


def test_nothing_is_loaded_for_expressions_and_image_ids(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    for image in layout.images:
        (layout.image_folder / image["file_name"]).unlink()
    data = open_refer(layout.write())
    assert len(data.expressions()) == len(data.image_ids()) == 5


def test_pickled_data_set_reads_the_same(tmp_path: Path) -> None:
    data = open_refer(small_refcoco(tmp_path).write())
    data[0]
    copy = pickle.loads(pickle.dumps(data))
    assert copy.expressions() == data.expressions()
    assert copy.report == data.report
    assert torch.equal(copy[3].mask, data[3].mask)
    assert torch.equal(copy[3].image, data[3].image)


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_the_same(tmp_path: Path, start: str) -> None:
    data = open_refer(small_refcoco(tmp_path).write())
    loader = DataLoader(data, batch_size=1, num_workers=2, collate_fn=first, multiprocessing_context=start)
    for i, sample in enumerate(loader):
        here = data[i]
        assert sample.expression == here.expression
        assert torch.equal(sample.image, here.image)
        assert torch.equal(sample.mask, here.mask)


def test_sample_without_pixels(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    data = open_refer(layout.write())
    expected = [data[i] for i in range(len(data))]
    for file in layout.image_folder.iterdir():
        file.unlink()  # instances.json has the sizes
    for i, one in enumerate(expected):
        sample = data.without_pixels(i)
        assert sample.image.shape == one.image.shape
        assert sample.image.is_meta
        assert torch.equal(sample.mask, one.mask)
        assert (sample.sent_id, sample.ref_id, sample.image_id) == (one.sent_id, one.ref_id, one.image_id)
        assert sample.expression == one.expression


def test_ignored_regions_are_decoded(tmp_path: Path) -> None:
    data = open_refer(small_refcoco(tmp_path).write())
    record = data.records[1]
    assert data[2].ignore is None
    regions = tuple(parse_segmentation([square(*corner, 3)]) for corner in ((0, 0), (2, 1)))
    data.records = [data.records[0], replace(record, ignored=regions), *data.records[2:]]
    for sample in (data[2], data.without_pixels(2)):
        assert sample.ignore is not None
        assert sample.ignore.shape == sample.mask.shape
        assert int(sample.ignore.sum()) == 9 + 9 - 2
