"""The Parquet form without pixels (jxu124/refcoco and relatives), and forms that are refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import support.parquet_layout as layout
import torch
from support.left_out import check_left_out
from support.parquet_layout import (
    SIZE,
    check_images_and_masks,
    covered,
    refcoco_rows,
    shard,
    source,
    write_refcoco,
)
from support.refer_layout import coco_name, open_refer, sentences, square

from cmsa_fast.data import ErrorCollector, open_split, read_records
from cmsa_fast.data.formats.safe_pickle import load_plain_pickle


@pytest.mark.parametrize("images", ["images/train2014", "images/mscoco/images/train2014", "coco/train2014"])
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


REVISION = "datasets--jxu124--refcocoplus/snapshots/2f2f8928"


@pytest.mark.parametrize(
    ("folder", "root", "name", "published"),
    [
        ("refcoco", "refcoco", "", 10_834),
        ("refcoco", "refcoco/data", "", 10_834),
        ("refcoco", f"refcoco/data/{shard('validation')}", "", 10_834),
        ("refcoco", ".", "refcoco", 10_834),
        ("refcocoplus", ".", "refcoco+", 10_758),
        ("refcocoplus", ".", "refcocoplus", 10_758),
        ("refcocoplus", ".", "refcoco_plus", 10_758),
        ("copy", "copy", "refcocoplus", 10_758),
        ("copy", "copy", "", None),
        (REVISION, REVISION, "", 10_758),
    ],
)
def test_data_set_is_known_by_its_name_or_folder(
    tmp_path: Path, folder: str, root: str, name: str, published: int | None
) -> None:
    write_refcoco(tmp_path / folder)
    data = open_split(source(tmp_path / root, name=name), "val")
    check_images_and_masks(data, [covered((5, 5, 11))] * len(data))
    assert data.report.published_expressions == published
    title = {10_834: "refcoco (unc, parquet)", 10_758: "refcoco+ (unc, parquet)"}
    assert data.title.startswith(title.get(published or 0, str(tmp_path / folder)))


def test_raw_expressions(tmp_path: Path) -> None:
    data = open_split(source(write_refcoco(tmp_path), text="raw"), "train")
    assert data.expressions()[:2] == ["LEFT CUP", "CAFÉ À GAUCHE"]


@pytest.mark.parametrize(
    ("asked", "published", "expressions_published"),
    [("val", "val", 10_834), ("validation", "val", 10_834), ("testA", "testA", 5_657),
     ("test", "testA", 5_657), ("testB", "testB", 5_095)],
)  # fmt: skip
def test_refcoco_splits_by_both_names(
    tmp_path: Path, asked: str, published: str, expressions_published: int, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_refcoco(tmp_path / "refcoco")
    with caplog.at_level(logging.INFO):
        data = open_split(source(root), asked)
    assert {record.split for record in data.records} == {published}
    assert data.report.published_expressions == expressions_published
    said = f"split '{asked}' is the published {published}"
    assert (said in caplog.text) == (asked != published)
    assert (f"its '{asked}' is the published {published}" in data.title) == (asked != published)


def test_test_split_of_refcocog_is_a_published_one(tmp_path: Path) -> None:
    rows = refcoco_rows()
    rows["test"][0]["split"] = "test"
    del rows["testB"]
    data = open_split(source(write_refcoco(tmp_path / "refcocog", rows)), "test")
    assert data.title == "refcocog (umd, parquet) test"
    assert data.report.published_expressions == 9_602


def test_all_splits(tmp_path: Path) -> None:
    reading = read_records(source(write_refcoco(tmp_path / "refcoco")), None, ErrorCollector(strict=True))
    found = sorted({record.split for record in reading.records})
    assert found == ["testA", "testB", "train", "val"]
    assert set(reading.published_expressions) == set(found)


@pytest.mark.parametrize(
    ("split", "options", "message"),
    [
        *((split, {}, r"which has test, testB, train, validation") for split in ("Train", "testAB", "", "testC")),
        ("val", {"split_by": "google"}, "split_by 'google' of 'refcoco'.*has unc"),
        ("val", {"name": "refcocog"}, "'refcocog' contradicts the folder"),
    ],
)
def test_what_the_copy_has_not(tmp_path: Path, split: str, options: dict[str, Any], message: str) -> None:
    root = write_refcoco(tmp_path / "refcoco")
    with pytest.raises(ValueError, match=message):
        open_split(source(root, **options), split)


def test_file_of_another_name_goes_by_its_column(tmp_path: Path) -> None:
    rows = refcoco_rows()
    root = write_refcoco(tmp_path / "refcoco")
    mixed = layout.write(tmp_path / "own.parquet", rows["train"] + rows["test"], layout.REFCOCO)
    folder = root / "images" / "train2014"
    data = open_split(source(mixed, name="refcoco", image_folder=folder), "testA")
    assert data.expressions() == ["man", "he"]
    assert data[1].image.shape == (3, *SIZE)
    with pytest.raises(ValueError, match=r"'val' has no .* train \(3 ref.*testA \(1 ref"):
        open_split(source(mixed, image_folder=folder), "val")


def test_row_in_the_file_of_another_split(tmp_path: Path) -> None:
    rows = refcoco_rows()
    rows["validation"].append(rows["train"][0])
    root = write_refcoco(tmp_path / "refcoco", rows)
    said = r"row 1 is of split 'train', but its file is that of 'validation', which holds val"
    check_left_out(lambda errors: open_split(source(root), "val", errors=errors), said, ["dog"])


@pytest.mark.parametrize("folder", ["train2014", "coco/train2014", "."])
def test_image_folder(tmp_path: Path, folder: str) -> None:
    root = write_refcoco(tmp_path / "refcoco", images=f"../photographs/{folder}")
    with pytest.raises(FileNotFoundError, match=r"no folder of images.*coco/train2014"):
        open_split(source(root), "val")
    data = open_split(source(root, image_folder=tmp_path / "photographs"), "val")
    check_images_and_masks(data, [covered((5, 5, 11))])
    with pytest.raises(FileNotFoundError, match=r"nowhere \(image_folder\)"):
        open_split(source(root, image_folder=tmp_path / "nowhere"), "val")


def test_references_to_one_annotation_share_its_mask(tmp_path: Path) -> None:
    rows = refcoco_rows()
    rows["train"].append({**rows["train"][0], "ref_id": 99})
    rows["train"].append({**rows["train"][0], "ref_id": 98})
    other = {**json.loads(rows["train"][0]["raw_anns"]), "segmentation": [square(1, 1, 5)]}
    rows["train"][-1]["raw_anns"] = json.dumps(other)
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
        (changed(sentences=None), "has a value of type NoneType as its 'sentences'"),
        (changed(sentences=[None]), "sentence 0 is a value of type NoneType"),
        (changed(sentences=sentences("a") + [{"sent_id": 9}]), "sentence 1 has .* 'sent'"),
        (changed(raw_anns=None), "has a value of type NoneType as its 'raw_anns'"),
        (changed(raw_anns='{"id": 1001, "seg'), "has a 'raw_anns' that is no JSON"),
        (changed(raw_anns="[" * 10**5), "has a 'raw_anns' that is no JSON"),
        (changed(raw_anns="[]"), "has a value of type list as its 'raw_anns', not a dictionary"),
        (changed(raw_anns="{}"), "raw_anns has no 'id'"),
        (changed(raw_anns='{"id": 1002}'), "raw_anns has no 'segmentation'"),
        (changed_json("raw_anns", id=5), "contradicts itself: ann_id is 5 and 1002"),
        (changed_json("raw_anns", image_id=5), "contradicts itself: image_id is 5 and 11"),
        (changed_json("raw_anns", segmentation="x"), "raw_anns: a segmentation must be"),
        (changed(raw_image_info="no"), "has a 'raw_image_info' that is no JSON"),
        (changed_json("raw_image_info", id=5), "contradicts itself: image_id is 5 and 11"),
        (changed_json("raw_image_info", height=0), "size 0 x 29, which holds no pixel"),
        (changed_json("raw_image_info", width="wide"), "as its 'width', not an integer"),
        (changed_json("raw_image_info", file_name=1), "as its 'file_name', not text"),
        (changed_json("raw_image_info", file_name=f"../{coco_name(11)}"), "not the name of a file inside"),
    ],
)
def test_damaged_rows(tmp_path: Path, damage: Callable[[dict[str, Any]], None], message: str) -> None:
    rows = refcoco_rows()
    damage(rows["train"][1])
    root = write_refcoco(tmp_path / "refcoco", {**refcoco_rows(), "test": []})
    file = layout.write(root / "data" / shard("train"), rows["train"], layout.REFCOCO)
    expressions = ["left cup", "café à gauche", "right cup"]
    (line,) = check_left_out(lambda errors: open_split(source(root), "train", errors=errors), message, expressions)
    assert line.startswith(f"{file}: row 1")


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    root = write_refcoco(tmp_path / "refcoco")
    file = root / "data" / shard("train")
    pq.write_table(pq.read_table(file), file, compression="none", use_dictionary=False)
    content = file.read_bytes()
    assert content.count(b"left cup") >= 1
    file.write_bytes(content.replace(b"left cup", b"left c\xffp"))
    message = "row 0: its text is not UTF-8"
    check_left_out(lambda errors: open_split(source(root), "train", errors=errors), message, ["杯子", "right cup"])


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
    expected = open_refer(real / "refer", split=split)
    assert data.report == expected.report
    for i in range(len(expected)):
        one, other = data[i], expected[i]
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.mask, other.mask)
        assert (one.expression, one.image_id) == (other.expression, other.image_id)
        assert (one.ref_id, one.sent_id) == (other.ref_id, other.sent_id)


def test_unknown_columns_are_listed(tmp_path: Path) -> None:
    file = tmp_path / shard("train")
    pq.write_table(pa.table({"texts": ["a"], "anns": ["b"]}), file)
    with pytest.raises(ValueError, match=r"columns texts, anns.*jxu124/refcoco.*moondream/refcoco-m: image"):
        open_split(source(tmp_path), "train")


def test_copy_by_lmms_lab_is_refused(tmp_path: Path) -> None:
    file = layout.write(tmp_path / "data" / shard("val"), [], layout.MIXED)
    with pytest.raises(ValueError, match="google .* only one polygon.*refcoco-benchmark") as error:
        open_split(source(tmp_path), "val")
    assert str(error.value).startswith(str(file))


def test_repeated_row(tmp_path: Path) -> None:
    rows = refcoco_rows()
    rows["train"].append(rows["train"][1])
    root = write_refcoco(tmp_path / "refcoco", rows)
    with pytest.raises(ValueError, match="row 3 repeats ref_id 2 of row 1"):
        open_split(source(root), "train")
    errors = ErrorCollector(strict=False)
    assert len(open_split(source(root), "train", errors=errors)) == 4
    assert errors.count == 1
