"""Data sets in the parquet forms of Hugging Face's repositories."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.refer_layout import square
from torch.utils.data import DataLoader

pytest.importorskip("pyarrow", reason="parquet files are read by pyarrow, an extra")

import pyarrow as pa
import pyarrow.parquet as pq
import support.parquet_layout as layout
from pycocotools import mask as coco_mask
from support.parquet_layout import benchmark_entry, benchmark_row, expressions, noise, refcoco_row

from cmsa_fast.data.dataset import RecordDataset
from cmsa_fast.data.errors import ErrorCollector
from cmsa_fast.data.formats.parquet.images import EncodedImage
from cmsa_fast.data.formats.refer import ReferDataset
from cmsa_fast.data.formats.safe_pickle import load_plain_pickle
from cmsa_fast.data.sample import Sample
from cmsa_fast.data.source import Source, open_split, read_records

SIZE = (23, 37)
HASH = "bfeafdc84ca37aa2"


def shard(split: str, number: int = 0, count: int = 1, end: str = f"-{HASH}") -> str:
    return f"{split}-{number:05d}-of-{count:05d}{end}.parquet"


def source(root: Path, **options: Any) -> Source:
    return Source(form="parquet", root=root, **options)


def first(batch: list[Sample]) -> Sample:
    return batch[0]


def covered(*squares: tuple[int, int, int], size: tuple[int, int] = SIZE) -> torch.Tensor:
    mask = torch.zeros(*size, dtype=torch.bool)
    for left, top, side in squares:
        mask[top : top + side, left : left + side] = True
    return mask


def check_images_and_masks(data: RecordDataset, masks: list[torch.Tensor]) -> None:
    for i, mask in enumerate(masks):
        sample = data[i]
        pixels = noise(sample.image_id, *mask.shape)
        np.testing.assert_array_equal(sample.image.permute(1, 2, 0).numpy(), pixels)
        assert torch.equal(sample.mask, mask)
    assert len(data) == len(masks)


# The form without pixels: jxu124/refcoco, refcocoplus, refcocog


def refcoco_rows() -> dict[str, layout.Rows]:
    """The splits of RefCOCO, by the names of the files."""
    two = [square(3, 2, 10), square(8, 7, 10)]
    return {
        "train": [
            refcoco_row(1, 7, SIZE, two, expressions("left cup", "café à gauche"), "train"),
            refcoco_row(2, 11, (41, 29), [square(1, 20, 9)], expressions("杯子", first=2), "train"),
            refcoco_row(3, 7, SIZE, [square(20, 3, 7)], expressions("right cup", first=3), "train"),
        ],
        "validation": [
            refcoco_row(4, 13, SIZE, [square(5, 5, 11)], expressions("dog", first=4), "val")
        ],
        "test": [
            refcoco_row(5, 17, SIZE, [square(2, 2, 3)], expressions("man", "he", first=5), "testA")
        ],
        "testB": [
            refcoco_row(6, 19, SIZE, [square(9, 9, 3)], expressions("tree", first=7), "testB")
        ],
    }


def write_refcoco(
    root: Path, rows: dict[str, layout.Rows] | None = None, images: str = "images/train2014"
) -> Path:
    for split, content in (rows or refcoco_rows()).items():
        layout.write(root / "data" / shard(split), content, layout.REFCOCO)
        for row in content:
            size = json.loads(row["raw_image_info"])
            file = root / images / layout.coco_name(row["image_id"])
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = noise(row["image_id"], size["height"], size["width"])
            Image.fromarray(pixels).save(file, "PNG")
    return root


@pytest.mark.parametrize(
    "images", ["images/train2014", "images/mscoco/images/train2014", "coco/train2014"]
)
def test_refcoco_samples(tmp_path: Path, images: str) -> None:
    data = open_split(source(write_refcoco(tmp_path / "refcoco", images=images)), "train")
    assert data.expressions() == ["left cup", "café à gauche", "杯子", "right cup"]
    both = covered((3, 2, 10), (8, 7, 10))
    other = covered((1, 20, 9), size=(41, 29))
    check_images_and_masks(data, [both, both, other, covered((20, 3, 7))])
    assert [data[i].ref_id for i in range(4)] == [1, 1, 2, 3]
    assert [data[i].sent_id for i in range(4)] == [0, 1, 2, 3]
    assert data.title == "refcoco (unc, parquet) train"
    assert data.report.published_expressions == 120_624


def test_refcoco_roots(tmp_path: Path) -> None:
    root = write_refcoco(tmp_path / "refcoco")
    file = root / "data" / shard("train")
    for where in (
        source(root),
        source(root / "data"),
        source(file),
        source(tmp_path, name="refcoco"),
    ):
        data = open_split(where, "train")
        assert len(data) == 4
        assert data[0].image.shape == (3, *SIZE)
        assert data.report.published_expressions == 120_624


def test_refcoco_in_a_folder_that_does_not_say_what_it_is(tmp_path: Path) -> None:
    root = write_refcoco(tmp_path / "copy")
    data = open_split(source(root), "val")
    assert data.report.published_expressions is None
    assert str(root) in data.title
    named = open_split(source(root, name="refcocoplus"), "val")
    assert named.report.published_expressions == 10_758
    assert named.title.startswith("refcoco+ (unc, parquet)")


def test_a_folder_by_any_name_of_its_data_set(tmp_path: Path) -> None:
    write_refcoco(tmp_path / "refcocoplus")
    for name in ("refcoco+", "refcocoplus", "refcoco_plus"):
        data = open_split(source(tmp_path, name=name), "val")
        assert data.report.published_expressions == 10_758


def test_a_downloaded_revision_is_known_by_its_repository(tmp_path: Path) -> None:
    root = tmp_path / "datasets--jxu124--refcocoplus" / "snapshots" / "2f2f8928"
    data = open_split(source(write_refcoco(root)), "testB")
    assert data.report.published_expressions == 4_889


def test_raw_expressions(tmp_path: Path) -> None:
    data = open_split(source(write_refcoco(tmp_path), text="raw"), "train")
    assert data.expressions()[:2] == ["LEFT CUP", "CAFÉ À GAUCHE"]


@pytest.mark.parametrize(
    ("asked", "published", "expressions_published"),
    [("val", "val", 10_834), ("validation", "val", 10_834), ("testA", "testA", 5_657),
     ("test", "testA", 5_657), ("testB", "testB", 5_095)],
)  # fmt: skip
def test_refcoco_splits_by_both_names(
    tmp_path: Path,
    asked: str,
    published: str,
    expressions_published: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    root = write_refcoco(tmp_path / "refcoco")
    with caplog.at_level(logging.INFO):
        data = open_split(source(root), asked)
    assert {record.split for record in data.records} == {published}
    assert data.report.published_expressions == expressions_published
    said = f"split '{asked}' is the published {published}"
    assert (said in caplog.text) == (asked != published)
    assert (f"its '{asked}' is the published {published}" in data.title) == (asked != published)


def test_the_test_split_of_refcocog_is_a_published_one(tmp_path: Path) -> None:
    rows = refcoco_rows()
    rows["test"][0]["split"] = "test"
    del rows["testB"]
    data = open_split(source(write_refcoco(tmp_path / "refcocog", rows)), "test")
    assert data.title == "refcocog (umd, parquet) test"
    assert data.report.published_expressions == 9_602


def test_all_splits(tmp_path: Path) -> None:
    reading = read_records(
        source(write_refcoco(tmp_path / "refcoco")), None, ErrorCollector(strict=True)
    )
    found = sorted({record.split for record in reading.records})
    assert found == ["testA", "testB", "train", "val"]
    assert set(reading.published_expressions) == set(found)


@pytest.mark.parametrize("asked", ["Train", "testAB", "", "testC"])
def test_a_split_that_is_not_there(tmp_path: Path, asked: str) -> None:
    root = write_refcoco(tmp_path / "refcoco")
    with pytest.raises(ValueError, match=r"which has test, testB, train, validation"):
        open_split(source(root), asked)


def test_a_split_by_that_is_not_there(tmp_path: Path) -> None:
    root = write_refcoco(tmp_path / "refcoco")
    with pytest.raises(ValueError, match="split_by 'google' of 'refcoco'.*has unc"):
        open_split(source(root, split_by="google"), "val")


def test_a_name_that_contradicts_the_folder(tmp_path: Path) -> None:
    root = write_refcoco(tmp_path / "refcoco")
    with pytest.raises(ValueError, match="'refcocog' contradicts the folder"):
        open_split(source(root, name="refcocog"), "val")


def test_a_file_of_another_name_goes_by_its_column(tmp_path: Path) -> None:
    rows = refcoco_rows()
    root = write_refcoco(tmp_path / "refcoco")
    mixed = layout.write(tmp_path / "own.parquet", rows["train"] + rows["test"], layout.REFCOCO)
    folder = root / "images" / "train2014"
    data = open_split(source(mixed, name="refcoco", image_folder=folder), "testA")
    assert data.expressions() == ["man", "he"]
    assert data[1].image.shape == (3, *SIZE)
    with pytest.raises(ValueError, match=r"'val' has no .* train \(3 ref.*testA \(1 ref"):
        open_split(source(mixed, image_folder=folder), "val")


def test_a_row_in_the_file_of_another_split(tmp_path: Path) -> None:
    rows = refcoco_rows()
    rows["validation"].append(rows["train"][0])
    root = write_refcoco(tmp_path / "refcoco", rows)
    said = r"row 1 is of split 'train', but its file is that of 'validation', which holds val"
    with pytest.raises(ValueError, match=said):
        open_split(source(root), "val")
    data = open_split(source(root), "val", errors=ErrorCollector(strict=False))
    assert (len(data), data.report.unusable_records) == (1, 1)


@pytest.mark.parametrize("folder", ["train2014", "coco/train2014", "."])
def test_image_folder(tmp_path: Path, folder: str) -> None:
    root = write_refcoco(tmp_path / "refcoco", images=f"../photographs/{folder}")
    with pytest.raises(FileNotFoundError, match=r"no folder of images.*coco/train2014"):
        open_split(source(root), "val")
    data = open_split(source(root, image_folder=tmp_path / "photographs"), "val")
    check_images_and_masks(data, [covered((5, 5, 11))])
    with pytest.raises(FileNotFoundError, match=r"nowhere \(image_folder\)"):
        open_split(source(root, image_folder=tmp_path / "nowhere"), "val")


def test_a_missing_image_is_an_error_when_it_is_read(tmp_path: Path) -> None:
    root = write_refcoco(tmp_path / "refcoco")
    (root / "images" / "train2014" / layout.coco_name(13)).unlink()
    data = open_split(source(root), "val")
    with pytest.raises(FileNotFoundError, match=layout.coco_name(13)):
        data[0]


def test_references_to_one_annotation_share_its_mask(tmp_path: Path) -> None:
    rows = refcoco_rows()
    rows["train"].append({**rows["train"][0], "ref_id": 99})
    rows["train"].append({**rows["train"][0], "raw_anns": rows["train"][0]["raw_anns"] + " "})
    records = open_split(source(write_refcoco(tmp_path, rows)), "train").records
    assert records[0].objects[0] is records[3].objects[0]
    assert records[0].objects[0] is not records[4].objects[0]


def changed_json(key: str, **changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(row: dict[str, Any]) -> None:
        row[key] = json.dumps({**json.loads(row[key]), **changes})

    return change


def changed(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda row: row.update(changes)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (changed(ref_id=None), "has a value of type NoneType as its 'ref_id'"),
        (changed(ann_id=None), "has a value of type NoneType as its 'ann_id'"),
        (changed(image_id=None), "has a value of type NoneType as its 'image_id'"),
        (changed(split=None), "has a value of type NoneType as its 'split'"),
        (changed(expressions=None), "has a value of type NoneType as its 'expressions'"),
        (changed(expressions=[None]), "expression 0 is a value of type NoneType"),
        (changed(expressions=expressions("a") + [{"sent_id": 9}]), "expression 1 has .* 'sent'"),
        (changed(raw_anns=None), "has a value of type NoneType as its 'raw_anns'"),
        (changed(raw_anns='{"id": 1001, "seg'), "has a 'raw_anns' that is no JSON"),
        (changed(raw_anns="[" * 10**5), "has a 'raw_anns' that is no JSON"),
        (changed(raw_anns="[]"), "raw_anns is a value of type list where a dictionary"),
        (changed(raw_anns="{}"), "raw_anns has no 'segmentation'"),
        (changed_json("raw_anns", id=5), "contradicts itself: ann_id is 5 and 1002"),
        (changed_json("raw_anns", image_id=5), "contradicts itself: image_id is 5 and 11"),
        (changed_json("raw_anns", segmentation="x"), "raw_anns: a segmentation must be"),
        (changed_json("raw_anns", segmentation=[["x"] * 6]), "flat list of numbers"),
        (changed(raw_image_info="no"), "has a 'raw_image_info' that is no JSON"),
        (changed_json("raw_image_info", id=5), "contradicts itself: image_id is 5 and 11"),
        (changed_json("raw_image_info", height=0), "size 0 x 29, which holds no pixel"),
        (changed_json("raw_image_info", width="wide"), "as its 'width', not an integer"),
        (changed_json("raw_image_info", file_name=1), "as its 'file_name', not text"),
        (changed(image_path="coco/train2014/x.jpg"), "contradicts itself: image is x.jpg"),
        (changed(image_path=f"../{layout.coco_name(11)}"), "not the name of a file inside"),
    ],
)
def test_damaged_rows(
    tmp_path: Path, damage: Callable[[dict[str, Any]], None], message: str
) -> None:
    rows = refcoco_rows()
    damage(rows["train"][1])
    root = write_refcoco(tmp_path / "refcoco", {**refcoco_rows(), "test": []})
    file = layout.write(root / "data" / shard("train"), rows["train"], layout.REFCOCO)
    with pytest.raises(ValueError, match=message) as error:
        open_split(source(root), "train")
    assert str(error.value).startswith(f"{file}: row 1")
    errors = ErrorCollector(strict=False)
    data = open_split(source(root), "train", errors=errors)
    assert data.report.unusable_records == errors.count == 1
    assert data.expressions() == ["left cup", "café à gauche", "right cup"]


def test_a_column_without_image_paths(tmp_path: Path) -> None:
    rows = refcoco_rows()["train"]
    rows[1]["image_path"] = None
    root = write_refcoco(tmp_path / "refcoco")
    layout.write(root / "data" / shard("train"), rows, layout.REFCOCO)
    assert open_split(source(root), "train")[2].image.shape == (3, 41, 29)
    table = pa.Table.from_pylist(rows, layout.REFCOCO).drop_columns(["image_path"])
    pq.write_table(table, root / "data" / shard("train"))
    assert open_split(source(root), "train")[2].image.shape == (3, 41, 29)


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    root = write_refcoco(tmp_path / "refcoco")
    file = root / "data" / shard("train")
    pq.write_table(pq.read_table(file), file, compression="none", use_dictionary=False)
    content = file.read_bytes()
    assert content.count(b"left cup") >= 1
    file.write_bytes(content.replace(b"left cup", b"left c\xffp"))
    with pytest.raises(ValueError, match="row 0: its text is not UTF-8"):
        open_split(source(root), "train")
    data = open_split(source(root), "train", errors=ErrorCollector(strict=False))
    assert data.expressions() == ["杯子", "right cup"]


def test_all_rows_damaged(tmp_path: Path) -> None:
    root = write_refcoco(tmp_path / "refcoco")
    rows = refcoco_rows()["validation"]
    rows[0]["raw_anns"] = ""
    layout.write(root / "data" / shard("validation"), rows, layout.REFCOCO)
    with pytest.raises(ValueError, match="1 records could not be used"):
        open_split(source(root), "val", errors=ErrorCollector(strict=False))


@pytest.mark.parametrize("split", ["train", "val", "testA"])
def test_real_records_are_the_same_as_from_refer(real: Path, tmp_path: Path, split: str) -> None:
    folder = real / "refer" / "refcoco"
    content = json.loads((folder / "instances.json").read_text())
    annotations = {one["id"]: one for one in content["annotations"]}
    images = {one["id"]: one for one in content["images"]}
    rows = []
    for reference in load_plain_pickle(folder / "refs(unc).p"):
        if reference["split"] == split:
            row = {key: reference[key] for key in layout.REFCOCO.names if key in reference}
            row["raw_anns"] = json.dumps(annotations[reference["ann_id"]])
            row["raw_image_info"] = json.dumps(images[reference["image_id"]])
            rows.append(row)
    name = {"train": "train", "val": "validation", "testA": "test"}[split]
    layout.write(tmp_path / "refcoco" / "data" / shard(name), rows, layout.REFCOCO)
    photos = real / "refer" / "images" / "mscoco" / "images" / "train2014"
    data = open_split(source(tmp_path / "refcoco", image_folder=photos), split)
    expected = ReferDataset(real / "refer", split=split)
    assert data.report == expected.report
    for i in range(len(expected)):
        one, other = data[i], expected[i]
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.mask, other.mask)
        assert (one.expression, one.image_id) == (other.expression, other.image_id)
        assert (one.ref_id, one.sent_id) == (other.ref_id, other.sent_id)


# The form with pixels and all polygons: jxu124/refcoco-benchmark


def write_benchmark(root: Path) -> Path:
    said = expressions("left cup", "café à gauche")
    two = [square(3, 2, 10), square(8, 7, 10)]
    files = {
        shard("refcoco_unc_val", 0, 2): [
            benchmark_row(
                7,
                SIZE,
                [
                    benchmark_entry(1, 7, two, said, "val"),
                    benchmark_entry(2, 7, [square(20, 3, 7)], expressions("cup", first=2), "val"),
                ],
            ),
            benchmark_row(
                11,
                (41, 29),
                [benchmark_entry(3, 11, [square(1, 20, 9)], expressions("杯子", first=3), "val")],
            ),
            benchmark_row(
                13,
                SIZE,
                [benchmark_entry(4, 13, [square(5, 5, 9)], expressions("dog", first=4), "val")],
            ),
        ],
        shard("refcoco_unc_val", 1, 2, ""): [
            benchmark_row(
                17,
                SIZE,
                [benchmark_entry(5, 17, [square(6, 5, 9)], expressions("man", first=5), "val")],
            )
        ],
        shard("refcocog_umd_val"): [
            benchmark_row(
                7,
                SIZE,
                [benchmark_entry(6, 7, [square(1, 1, 9)], expressions("a cup", first=6), "val")],
            )
        ],
        shard("refcoco_google_val"): [
            benchmark_row(
                7,
                SIZE,
                [benchmark_entry(7, 7, [square(1, 1, 5)], expressions("a mug", first=7), "val")],
            )
        ],
    }
    for name, rows in files.items():
        layout.write(root / "data" / name, rows, layout.BENCHMARK)
    return root


def test_benchmark_samples(tmp_path: Path) -> None:
    data = open_split(source(write_benchmark(tmp_path)), "refcoco_unc_val")
    assert data.expressions() == ["left cup", "café à gauche", "cup", "杯子", "dog", "man"]
    both = covered((3, 2, 10), (8, 7, 10))
    masks = [both, both, covered((20, 3, 7)), covered((1, 20, 9), size=(41, 29))]
    check_images_and_masks(data, [*masks, covered((5, 5, 9)), covered((6, 5, 9))])
    assert data.report.published_expressions == 10_834
    assert {record.split for record in data.records} == {"refcoco_unc_val"}
    assert [record.image.row_group for record in data.records] == [0, 0, 0, 1, 0]


def test_benchmark_images_in_any_order(tmp_path: Path) -> None:
    data = open_split(source(write_benchmark(tmp_path)), "refcoco_unc_val")
    here = [data[i].image for i in range(6)]
    for i in np.random.default_rng(3).permutation(60) % 6:
        again = open_split(data_source := source(tmp_path), "refcoco_unc_val")
        assert torch.equal(again[i].image, here[i])
        assert torch.equal(data.records[0].image.read(apply_orientation=False), here[0])
    assert data_source.root == tmp_path


@pytest.mark.parametrize(
    ("options", "split", "said"),
    [
        ({"name": "refcoco"}, "val", "left cup"),
        ({"name": "refcoco", "split_by": "google"}, "val", "a mug"),
        ({"name": "refcocog"}, "val", "a cup"),
        ({"split_by": "umd"}, "val", "a cup"),
    ],
)
def test_benchmark_splits_by_short_names(
    tmp_path: Path, options: dict[str, str], split: str, said: str
) -> None:
    data = open_split(source(write_benchmark(tmp_path), **options), split)
    assert data.expressions()[0] == said
    published = {"left cup": 10_834, "a cup": 4_896}
    assert data.report.published_expressions == published.get(said)


def test_benchmark_split_that_is_not_there(tmp_path: Path) -> None:
    root = write_benchmark(tmp_path)
    with pytest.raises(ValueError, match="'val' may be any of refcoco_google_val, refcoco_unc_val"):
        open_split(source(root), "val")
    with pytest.raises(ValueError, match=r"'testA' of refcoco is not in .* has refcoco_google_val"):
        open_split(source(root, name="refcoco"), "testA")
    with pytest.raises(ValueError, match=r"'refcoco_unc_testA' is not in"):
        open_split(source(root), "refcoco_unc_testA")


def test_benchmark_all_splits(tmp_path: Path) -> None:
    root = write_benchmark(tmp_path)
    everything = read_records(source(root), None, ErrorCollector(strict=True))
    assert len(everything.records) == 7
    named = read_records(source(root, name="refcocog"), None, ErrorCollector(strict=True))
    assert [record.split for record in named.records] == ["refcocog_umd_val"]
    assert named.published_expressions == {"refcocog_umd_val": 4_896}


def test_a_part_of_a_split_is_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_benchmark(tmp_path)
    (root / "data" / shard("refcoco_unc_val", 0, 2)).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"lacks 1 of the 2.*refcoco_unc_val-00000-of-00002"
    ):
        open_split(source(root), "refcoco_unc_val")
    assert len(open_split(source(root), "refcocog_umd_val")) == 1
    alone = root / "data" / shard("refcoco_unc_val", 1, 2, "")
    assert open_split(source(alone), "val").expressions() == ["man"]
    assert f"{alone} is one of 2 parts of its split" in caplog.text


def test_two_copies_in_one_folder(tmp_path: Path) -> None:
    root = write_refcoco(tmp_path / "refcoco")
    layout.write(root / "data" / shard("train", end="-4fe3"), [], layout.REFCOCO)
    with pytest.raises(ValueError, match="more than one copy.*4fe3"):
        open_split(source(root), "train")
    assert len(open_split(source(root), "val")) == 1


def test_a_row_group_is_read_once_for_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_split(source(write_benchmark(tmp_path)), "refcoco_unc_val")
    opened: list[str] = []
    original = pq.ParquetFile

    def counted(path: Path, **options: Any) -> Any:
        opened.append(path.name)
        return original(path, **options)

    monkeypatch.setattr(pq, "ParquetFile", counted)
    for i in range(len(data)):
        data[i]
    names = [shard("refcoco_unc_val", 0, 2)] * 2 + [shard("refcoco_unc_val", 1, 2, "")]
    assert opened == names


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_the_same(tmp_path: Path, start: str) -> None:
    data = open_split(source(write_benchmark(tmp_path)), "refcoco_unc_val")
    here = [data[i] for i in range(len(data))]
    data[3]  # its row group is kept here while the workers start
    fresh = open_split(source(tmp_path), "refcoco_unc_val")
    loader = DataLoader(
        fresh, batch_size=1, num_workers=2, collate_fn=first, multiprocessing_context=start
    )
    for sample, expected in zip(loader, here, strict=True):
        assert torch.equal(sample.image, expected.image)
        assert torch.equal(sample.mask, expected.mask)


def test_encoded_images(tmp_path: Path) -> None:
    file = write_benchmark(tmp_path) / "data" / shard("refcoco_unc_val", 0, 2)
    image = EncodedImage(file, 1, 0, "x.jpg")
    same = pickle.loads(pickle.dumps(image))
    assert same == image
    assert hash(same) == hash(image)
    assert image != EncodedImage(file, 0, 0, "x.jpg")
    assert image.read_bytes() == layout.encoded(13, *SIZE)["bytes"]
    for group, row in ((1, 1), (2, 0)):
        with pytest.raises(ValueError, match=f"no row {row} in its row group {group}"):
            EncodedImage(file, group, row, "x.jpg").read_bytes()
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="is no parquet file"):
        EncodedImage(file, 0, 1, "x.jpg").read_bytes()
    file.unlink()
    with pytest.raises(FileNotFoundError, match=str(file)):
        image.read_bytes()


def test_many_images_in_one_row_group(tmp_path: Path) -> None:
    rows = [
        benchmark_row(
            i, (5, 3), [benchmark_entry(i, i, [square(0, 0, 2)], expressions("it"), "val")]
        )
        for i in range(30)
    ]
    file = tmp_path / shard("refcoco_unc_val")
    layout.write(file, rows, layout.BENCHMARK, row_group_size=100)
    data = open_split(source(file), "val")
    check_images_and_masks(data, [covered((0, 0, 2), size=(5, 3))] * 30)
    for i in (29, 3, 4, 17, 16, 0):
        pixels = data.records[i].image.read(apply_orientation=False)
        np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), noise(i, 5, 3))


def test_pyarrow_is_loaded_on_use(tmp_path: Path) -> None:
    write_benchmark(tmp_path)
    program = (
        "import logging, pathlib, sys\n"
        "import cmsa_fast.data.formats.parquet\n"
        "from cmsa_fast.data.source import Source, open_split\n"
        "print('pyarrow' in sys.modules)\n"
        "logging.disable()\n"
        f"source = Source(form='parquet', root=pathlib.Path({str(tmp_path)!r}))\n"
        "print(tuple(open_split(source, 'refcoco_unc_val')[0].image.shape))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n(3, 23, 37)\n", "")


def benchmark_damage(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(row: dict[str, Any]) -> None:
        place: Any = row
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("damage", "lost", "message"),
    [
        (benchmark_damage("image_info", value=None), 2, "as? a? ?value of type NoneType"),
        (benchmark_damage("image_info", "id", value=None), 2, "image_info has .* as its 'id'"),
        (benchmark_damage("image_info", "height", value=-1), 2, "holds no pixel"),
        (benchmark_damage("image_info", "file_name", value=None), 2, "as its 'file_name'"),
        (benchmark_damage("ref_list", value=None), 1, "row 0 has .* as its 'ref_list'"),
        (benchmark_damage("ref_list", 0, value=None), 1, "reference 0 is a value of type None"),
        (benchmark_damage("ref_list", 0, "ann_info", value=None), 1, "ann_info is a value"),
        (benchmark_damage("ref_list", 0, "ref_info", value=None), 1, "ref_info is a value"),
        (benchmark_damage("ref_list", 0, "ann_info", "id", value=5), 1, "ann_id is 5 and 1001"),
        (benchmark_damage("ref_list", 0, "ann_info", "image_id", value=5), 1, "image_id is 5"),
        (benchmark_damage("ref_list", 0, "ref_info", "image_id", value=5), 1, "image_id is 5"),
        (benchmark_damage("ref_list", 0, "ref_info", "split", value="train"), 1, "split is train"),
        (
            benchmark_damage("ref_list", 0, "ann_info", "segmentation", value=None),
            1,
            "ann_info: a segmentation must be",
        ),
        (benchmark_damage("ref_list", 0, "ref_info", "sentences", value=None), 1, "'sentences'"),
    ],
)
def test_damaged_benchmark_rows(
    tmp_path: Path, damage: Callable[[dict[str, Any]], None], lost: int, message: str
) -> None:
    root = write_benchmark(tmp_path)
    file = root / "data" / shard("refcoco_unc_val", 0, 2)
    rows = pq.read_table(file).to_pylist()
    damage(rows[0])
    layout.write(file, rows, layout.BENCHMARK)
    with pytest.raises(ValueError, match=message) as error:
        open_split(source(root), "refcoco_unc_val")
    assert str(error.value).startswith(f"{file}: row 0")
    data = open_split(source(root), "refcoco_unc_val", errors=ErrorCollector(strict=False))
    assert data.report.unusable_records == lost
    assert data.expressions()[-3:] == ["杯子", "dog", "man"]


@pytest.mark.parametrize("value", [None, {"bytes": None, "path": "x.jpg"}])
def test_a_row_without_a_image(tmp_path: Path, value: Any) -> None:
    root = write_benchmark(tmp_path)
    file = root / "data" / shard("refcocog_umd_val")
    rows = pq.read_table(file).to_pylist()
    rows[0]["image"] = value
    layout.write(file, rows, layout.BENCHMARK)
    data = open_split(source(root), "refcocog_umd_val")
    with pytest.raises(ValueError, match=r"row 0\): the column 'image' holds no image"):
        data[0]
    rows[0]["image"] = {"bytes": layout.encoded(7, *SIZE)["bytes"][:-200], "path": None}
    layout.write(file, rows, layout.BENCHMARK)
    with pytest.raises(ValueError, match=rf"{layout.coco_name(7)} in .*truncated"):
        open_split(source(root), "refcocog_umd_val")[0]


def test_a_image_of_another_size_than_recorded(tmp_path: Path) -> None:
    root = write_benchmark(tmp_path)
    file = root / "data" / shard("refcocog_umd_val")
    rows = pq.read_table(file).to_pylist()
    rows[0]["image_info"]["height"] = 24
    layout.write(file, rows, layout.BENCHMARK)
    with pytest.raises(ValueError, match="23 x 37.*ref_id 6.*24 x 37"):
        open_split(source(root), "refcocog_umd_val")[0]


# Copies whose figures do not compare


def reannotated_rows() -> layout.Rows:
    pixels = np.zeros(SIZE, np.uint8)
    pixels[4:9, 6:20] = 1
    rle = coco_mask.encode(np.asfortranarray(pixels))
    sample = {
        "id": 31,
        "image_id": 7,
        "category": "cup",
        "supercategory": "kitchen",
        "label": "cup",
        "sentences": ["left cup", "café"],
        "bbox": [6.0, 4.0, 14.0, 5.0],
        "mask": {"counts": rle["counts"].decode("ascii"), "size": list(SIZE)},
    }
    return [
        {
            "image": layout.encoded(7, *SIZE),
            "image_id": 7,
            "file_name": layout.coco_name(7),
            "samples": [sample, {**sample, "id": 32, "sentences": ["cup"]}],
        }
    ]


@pytest.mark.parametrize("split", ["val", "validation"])
def test_reannotated_samples(tmp_path: Path, split: str) -> None:
    file = tmp_path / "data" / shard("validation", end="")
    layout.write(file, reannotated_rows(), layout.REANNOTATED)
    data = open_split(source(tmp_path), split)
    assert data.expressions() == ["left cup", "café", "cup"]
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[4:9, 6:20] = True
    check_images_and_masks(data, [mask] * 3)
    assert [(data[i].ref_id, data[i].sent_id) for i in range(3)] == [(31, 0), (31, 1), (32, 2)]
    assert data.report.published_expressions == 5_598
    assert "re-annotation" in data.title
    assert "do not compare" in data.title


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": None}, "sample 0: a segmentation must be polygons or run lengths"),
        ({"mask": {"counts": "0" * 9, "size": list(SIZE)}}, "sample 0: the run lengths add up"),
        ({"mask": {"counts": "é", "size": list(SIZE)}}, "sample 0: the counts .* not ASCII"),
        ({"image_id": 8}, "image_id is 8 and 7"),
        ({"sentences": [None]}, "expressions 0 has a value of type NoneType"),
        ({"id": None}, "as its 'id'"),
    ],
)
def test_damaged_reannotated_rows(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    rows = reannotated_rows()
    rows[0]["samples"][0].update(changes)
    layout.write(tmp_path / shard("validation"), rows, layout.REANNOTATED)
    with pytest.raises(ValueError, match=message):
        open_split(source(tmp_path), "val")
    data = open_split(source(tmp_path), "val", errors=ErrorCollector(strict=False))
    assert data.expressions() == ["cup"]
    assert data.report.unusable_records == 1


def mixed_rows() -> layout.Rows:
    row = {
        "question_id": "469306",
        "image": layout.encoded(7, *SIZE),
        "question": "Please describe.",
        "answer": ["left cup", "café"],
        "segmentation": square(3, 2, 10),
        "bbox": [3.0, 2.0, 10.0, 10.0],
        "iscrowd": 0,
        "file_name": "COCO_train2014_000000000007_4.jpg",
    }
    image = layout.encoded(11, *SIZE)
    return [row, {**row, "answer": ["cup"], "image": image, "file_name": "own.png"}]


def test_mixed_splits_are_refused(tmp_path: Path) -> None:
    file = layout.write(tmp_path / "data" / shard("val"), mixed_rows(), layout.MIXED)
    said = "google split .* one polygon alone.*allow_mixed_splits"
    with pytest.raises(ValueError, match=said) as error:
        open_split(source(tmp_path), "val")
    assert str(error.value).startswith(str(file))
    data = open_split(source(tmp_path, allow_mixed_splits=True), "val")
    assert data.expressions() == ["left cup", "café", "cup"]
    assert data.image_ids() == [7, 7, -1]
    for i, number in enumerate((7, 7, 11)):
        sample = data[i]
        np.testing.assert_array_equal(sample.image.permute(1, 2, 0).numpy(), noise(number, *SIZE))
        assert torch.equal(sample.mask, covered((3, 2, 10)))
    assert data.report.published_expressions is None
    assert "mixed splits, one polygon" in data.title
    with pytest.raises(ValueError, match=r"'testA' is not in .* which has val"):
        open_split(source(tmp_path, allow_mixed_splits=True), "testA")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": None}, "row 0 has .* as its 'answer'"),
        ({"answer": ["a", None]}, "answer 1 has a value of type NoneType"),
        ({"segmentation": None}, "row 0: a segmentation must be"),
        ({"file_name": None}, "row 0 has .* as its 'file_name'"),
    ],
)
def test_damaged_mixed_rows(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    rows = mixed_rows()
    rows[0].update(changes)
    layout.write(tmp_path / shard("val"), rows, layout.MIXED)
    where = source(tmp_path, allow_mixed_splits=True)
    with pytest.raises(ValueError, match=message):
        open_split(where, "val")
    assert open_split(where, "val", errors=ErrorCollector(strict=False)).expressions() == ["cup"]


# Files and folders


def test_unknown_columns_are_listed(tmp_path: Path) -> None:
    file = tmp_path / shard("train")
    pq.write_table(pa.table({"texts": ["a"], "anns": ["b"]}), file)
    with pytest.raises(ValueError, match=r"columns texts, anns.*jxu124/refcoco.*lmms-lab"):
        open_split(source(tmp_path), "train")


def test_a_file_of_another_form_in_the_folder(tmp_path: Path) -> None:
    root = write_refcoco(tmp_path / "refcoco")
    layout.write(root / "data" / shard("testB"), [], layout.BENCHMARK)
    with pytest.raises(
        ValueError, match=r"testB.* has no column 'ref_id'.*it has image, image_info"
    ):
        open_split(source(root), "testB")


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder or file .*nowhere.*00000-of"):
        open_split(source(tmp_path / "nowhere"), "val")
    with pytest.raises(FileNotFoundError, match="no parquet file in"):
        open_split(source(tmp_path), "val")
    write_refcoco(tmp_path / "refcoco")
    with pytest.raises(FileNotFoundError, match="lie in its refcoco: name one of them"):
        open_split(source(tmp_path), "val")
    with pytest.raises(ValueError, match="'other' is no folder of"):
        open_split(source(tmp_path, name="other"), "val")
    with pytest.raises(ValueError, match="name must be"):
        open_split(source(tmp_path / "refcoco", name="../refcoco"), "val")


def test_damaged_files(tmp_path: Path) -> None:
    root = write_benchmark(tmp_path)
    file = root / "data" / shard("refcoco_unc_val", 0, 2)
    content = file.read_bytes()
    for damaged in (content[:-1], content[:100], b"", b"PAR1", content[:9] + content[4000:]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="is no parquet file, is damaged, or cut short"):
            open_split(source(root), "refcoco_unc_val")


def test_any_changed_byte_gives_records_or_one_clear_error(tmp_path: Path) -> None:
    rows = copy.deepcopy(refcoco_rows()["train"])
    root = write_refcoco(tmp_path / "refcoco")
    file = layout.write(root / "data" / shard("train"), rows, layout.REFCOCO)
    content = file.read_bytes()
    generator = np.random.default_rng(0)
    outcomes = set()
    for place in generator.integers(0, len(content), 150):
        changed_content = bytearray(content)
        changed_content[place] ^= int(generator.integers(1, 256))
        file.write_bytes(changed_content)
        try:
            data = open_split(source(root), "train", errors=ErrorCollector(strict=False))
            outcomes.add("whole" if len(data) == 4 else "lost")
            assert (len(data) == 4) or data.report.unusable_records
        except ValueError:
            outcomes.add("refused")
    assert outcomes >= {"whole", "refused"}


def test_without_pyarrow_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_refcoco(tmp_path / "refcoco")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"pip install 'cmsa_fast\[parquet\]'"):
        open_split(source(root), "val")
