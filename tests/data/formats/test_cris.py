"""The folders anns and masks: layout, images, masks in PNG files, and damage."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.anns_layout import HEIGHT, IMAGE, WIDTH, AnnsLayout, small_anns
from support.left_out import check_left_out

from cmsa_fast.data import Source, open_split, read_records
from cmsa_fast.data.dataset import RecordDataset
from cmsa_fast.data.errors import ErrorCollector


def opened(layout: AnnsLayout, split: str = "val", **options: Any) -> RecordDataset:
    errors = options.pop("errors", None)
    source = Source(form="anns-masks", root=layout.write(), **options)
    return open_split(source, split, errors=errors)


@pytest.fixture
def layout(tmp_path: Path) -> AnnsLayout:
    return small_anns(tmp_path)


def test_expressions_images_and_masks(tmp_path: Path) -> None:
    layout = AnnsLayout(tmp_path)
    first = layout.add("val", "right cup", "café on the right")
    other = "COCO_train2014_000000000011.jpg"
    second = layout.add("val", "man", image=other)
    data = opened(layout)
    assert data.expressions() == ["right cup", "café on the right", "man"]
    assert data.image_ids() == [7, 7, 11]
    for i, (mask, image, ref_id, sent_id) in enumerate(
        [(first, IMAGE, 50, 500), (first, IMAGE, 50, 501), (second, other, 51, 510)]
    ):
        sample = data[i]
        np.testing.assert_array_equal(sample.mask.numpy(), mask)
        np.testing.assert_array_equal(sample.image.permute(1, 2, 0).numpy(), layout.pixels[image])
        assert (sample.ref_id, sample.sent_id) == (ref_id, sent_id)
    assert data.title == "refcoco (unc) val"


def test_all_splits_and_missing_ones(layout: AnnsLayout) -> None:
    source = Source(form="anns-masks", root=layout.write())
    reading = read_records(source, None, ErrorCollector(strict=True))
    assert [record.split for record in reading.records] == ["train", "val", "val", "val"]
    for split in ("testA", "../refcoco/val", ""):
        with pytest.raises(ValueError, match="is not in .*refcoco, which has train, val"):
            open_split(source, split)


@pytest.mark.parametrize(
    ("folder", "name", "split_by", "title", "published"),
    [
        ("refcoco+", "refcoco+", "", "refcoco+ (unc) val", 10758),
        ("refcocop", "refcoco+", "", "refcoco+ (unc) val", 10758),
        ("refcocop", "refcocop", "unc", "refcoco+ (unc) val", 10758),
        ("refcocog_u", "refcocog_u", "", "refcocog (umd) val", 4896),
        ("refcocog_u", "refcocog", "", "refcocog (umd) val", 4896),
        ("refcocog_g", "refcocog", "google", "refcocog (google) val", 9536),
        ("refcocog", "refcocog", "google", "refcocog (google) val", 9536),
        ("refcocog", "refcocog", "", "refcocog val", None),
        ("mine", "mine", "", "mine val", None),
    ],
)
def test_names_of_the_folder(
    tmp_path: Path, folder: str, name: str, split_by: str, title: str, published: int | None
) -> None:
    layout = AnnsLayout(tmp_path, folder)
    layout.add("val", "man")
    data = opened(layout, name=name, split_by=split_by)
    assert (data.title, data.report.published_expressions) == (title, published)
    assert data[0].mask.any()


def test_split_by_selects_the_folder_named_after_it(tmp_path: Path) -> None:
    for folder, expression in (("refcocog", "umd's"), ("refcocog_g", "google's")):
        layout = AnnsLayout(tmp_path, folder)
        layout.add("val", expression)
        layout.write()
    assert opened(layout, name="refcocog", split_by="google").expressions() == ["google's"]
    assert opened(layout, name="refcocog").expressions() == ["umd's"]


def test_invalid_arguments(layout: AnnsLayout) -> None:
    with pytest.raises(ValueError, match="'refcoco.' is no folder of .*anns, which has refcoco$"):
        opened(layout, name="refcoco+")
    with pytest.raises(ValueError, match="split_by 'google' of 'refcoco' is not unc"):
        opened(layout, name="refcoco", split_by="google")
    with pytest.raises(ValueError, match="name must be the name of a data set"):
        opened(layout, name="../anns/refcoco")
    with pytest.raises(ValueError, match="text is 'raw'.*only the normalised"):
        opened(layout, text="raw")


@pytest.mark.parametrize(
    "folder", ["images/mscoco/images/train2014", "images/saiapr_tc-12", "../images/train2014"]
)
def test_folders_of_the_images(tmp_path: Path, folder: str) -> None:
    (tmp_path / "data_v2").mkdir()
    layout = AnnsLayout(tmp_path / "data_v2", images=folder)
    layout.add("val", "man")
    assert opened(layout)[0].image.shape == (3, HEIGHT, WIDTH)


def test_given_image_folder(tmp_path: Path) -> None:
    layout = AnnsLayout(tmp_path, images="photos")
    layout.add("val", "man")
    with pytest.raises(FileNotFoundError, match="no folder of images.*--generate_mask"):
        opened(layout)
    assert opened(layout, image_folder=tmp_path / "photos")[0].image.shape == (3, HEIGHT, WIDTH)


def test_numbers_of_images_with_other_names(tmp_path: Path) -> None:
    layout = AnnsLayout(tmp_path, "mine")
    for split, image in (
        ("train", "b.jpg"),
        ("val", "a.jpg"),
        ("val", "b.jpg"),
        ("val", "12.jpg"),
        ("val", "ä.jpg"),
        ("val", "COCO_train2014_000000000012.jpg"),
    ):
        layout.add(split, "it", image=image)
    numbers = opened(layout, name="mine").image_ids()
    assert numbers[-1] == 12
    assert len(set(numbers)) == 5
    assert all(-(2**63) <= number < 0 for number in numbers[:-1])
    assert opened(layout, "train", name="mine").image_ids() == [numbers[1]]


def test_refclef_has_the_numbers_of_its_images(tmp_path: Path) -> None:
    layout = AnnsLayout(tmp_path, "refclef", "images/saiapr_tc-12")
    layout.add("val", "sky", image="38.jpg")
    assert opened(layout, name="refclef").image_ids() == [38]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "record 1 is a value of type NoneType where a dictionary"),
        ({"segment_id": ...}, "record 1 has no 'segment_id'"),
        ({"img_name": ...}, "record 1 has no 'img_name'"),
        ({"sentences": ...}, "record 1 has no 'sentences'"),
        ({"segment_id": "../9"}, "record 1 has .*str as its 'segment_id'"),
        ({"img_name": 7}, "record 1 has .*int as its 'img_name', not text"),
        ({"img_name": "../secret.jpg"}, "record 1: an image is named '../secret.jpg'"),
        ({"sentences": [{"sent": "man"}]}, "record 1 sentence 0 has no 'sent_id'"),
        ({"sentences_num": 2}, "record 1 has 1 sentences, but its 'sentences_num' is 2"),
        ({"sentences_num": "many"}, "record 1 has .*str as its 'sentences_num'"),
    ],
)
def test_damaged_record(layout: AnnsLayout, change: dict[str, Any] | None, message: str) -> None:
    entry = {**layout.splits["val"][1], **(change or {})}
    kept = {key: value for key, value in entry.items() if value is not ...}
    layout.splits["val"][1] = None if change is None else kept
    expressions = ["right cup", "café on the right", "dog"]
    (line,) = check_left_out(lambda errors: opened(layout, errors=errors), message, expressions)
    assert str(layout.root / "anns" / "refcoco" / "val.json") in line


def test_number_of_expressions_may_be_missing(layout: AnnsLayout) -> None:
    del layout.splits["val"][0]["sentences_num"]
    assert len(opened(layout)) == 4


def test_damaged_files(layout: AnnsLayout) -> None:
    file = layout.write() / "anns" / "refcoco" / "val.json"
    source = Source(form="anns-masks", root=layout.root)
    whole = file.read_bytes()
    for content, message in (
        (whole[:-7], r"val\.json is not a JSON file"),
        (b'{"val": []}', r"val\.json holds a value of type dict where a list"),
        (b"[]", "split 'val' has no reference in .*refcoco"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            open_split(source, "val", errors=ErrorCollector(strict=False))


def test_missing_folders(layout: AnnsLayout, tmp_path: Path) -> None:
    root = layout.write()
    source = Source(form="anns-masks", root=root)
    with pytest.raises(FileNotFoundError, match="there is no folder .*absent. A root holds anns/"):
        open_split(Source(form="anns-masks", root=tmp_path / "absent"), "val")
    for file in layout.masks.iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match="refcoco has no PNG file.*--generate_mask"):
        open_split(source, "val")
    layout.masks.rmdir()
    with pytest.raises(FileNotFoundError, match="there is no folder .*masks/refcoco"):
        open_split(source, "val")
    (root / "anns").rename(root / "annotations")
    with pytest.raises(FileNotFoundError, match="there is no folder .*anns"):
        open_split(source, "val")


def test_folder_of_anns_without_json(layout: AnnsLayout) -> None:
    layout.splits.clear()
    with pytest.raises(ValueError, match="there is no split in .*which has no JSON file"):
        read_records(Source(form="anns-masks", root=layout.write()), None, ErrorCollector(strict=True))


@pytest.mark.parametrize("inner", ["lmdb/refcoco", "."])
def test_lmdb_is_refused_with_an_alternative(tmp_path: Path, inner: str) -> None:
    (tmp_path / inner).mkdir(parents=True, exist_ok=True)
    (tmp_path / inner / "train.lmdb").write_bytes(b"")
    with pytest.raises(ValueError, match="LMDB files.*not supported.*data_process.py"):
        open_split(Source(form="anns-masks", root=tmp_path), "train")


def mask_file(layout: AnnsLayout, place: int = 0) -> Path:
    return layout.masks / f"{layout.splits['val'][place]['segment_id']}.png"


def test_missing_mask_or_image_is_an_error_on_access(layout: AnnsLayout) -> None:
    mask_file(layout).unlink()
    data = opened(layout)
    with pytest.raises(FileNotFoundError, match=r"there is no mask .*51\.png"):
        data[0]
    assert data[2].image_id == 11
    (layout.images / IMAGE).unlink()
    data = opened(layout)  # without the last one's images in its cache
    with pytest.raises(FileNotFoundError, match=IMAGE):
        data[3]


def test_damaged_mask_names_the_record_and_the_file(layout: AnnsLayout) -> None:
    mask_file(layout).write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"val\.json: record 0: .*51\.png cannot be read as a"):
        opened(layout)[0]


def test_records_pickle(layout: AnnsLayout) -> None:
    data = opened(layout)
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy[2].mask, data[2].mask)
    assert copy.records == data.records
