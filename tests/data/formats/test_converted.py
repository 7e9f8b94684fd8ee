"""Converted data sets: every form gives the same samples, and damaged files are reported."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from data.formats.test_grefcoco import GrefLayout
from PIL import Image
from support.anns_layout import small_anns
from support.converted import all_records, assert_converted, assert_same, converted, every_mask_form, refer
from support.parquet_layout import write_benchmark, write_refcoco
from support.refer_layout import COCO_FOLDER, ReferLayout, small_refcoco, square

from cmsa_fast.data import ErrorCollector, Source, open_split
from cmsa_fast.data.formats.convert import convert
from cmsa_fast.data.formats.converted import METADATA_KEY, SCHEMA


def test_every_mask_form(tmp_path: Path) -> None:
    root = every_mask_form(tmp_path / "refer").write()
    conversion = convert(refer(root), tmp_path / "new" / "set.parquet")
    for training in (False, True):
        for split in ("train", "val", "testA", "testB", "test"):  # "test" is testA and testB in REFER
            original = open_split(refer(root), split, for_training=training)
            data = open_split(converted(conversion.path), split, for_training=training)
            assert_same(original, data)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["set.parquet"]
    assert_converted(refer(root), tmp_path, ["train", "val", "testA", "testB", "test"])


def test_all_splits_in_the_order_of_the_original(tmp_path: Path) -> None:
    root = every_mask_form(tmp_path / "refer").write()
    convert(refer(root), tmp_path / "set.parquet")
    one, other = all_records(refer(root)), all_records(converted(tmp_path / "set.parquet"))
    assert one.published_expressions == other.published_expressions
    for records in (other.records, other.records[:], [other.records[i] for i in range(-13, 0)]):
        assert [(record.ref_id, record.split, record.size, record.expressions) for record in records] == [
            (record.ref_id, record.split, record.size, record.expressions) for record in one.records
        ]
    with pytest.raises(IndexError):
        other.records[13]


def test_real_expressions(real: Path, tmp_path: Path) -> None:
    source = refer(real / "refer")
    convert(source, tmp_path / "set.parquet", copy_images=True)
    for split in ("train", "val", "testA"):
        assert_same(open_split(source, split), open_split(converted(tmp_path / "set.parquet"), split))


def test_grefcoco(tmp_path: Path) -> None:
    layout = GrefLayout(tmp_path / "original")
    layout.refer([1101, 1102], "both cups", "the cups — café")
    layout.refer([1101], "left cup")
    layout.refer([-1], "the horse", "a dog")
    layout.refer([1103], "plate", split="testA", image_id=9)
    layout.refer([1102], "right cup", split="testB")
    source = Source(form="grefcoco", root=layout.write())
    convert(source, tmp_path / "set.parquet")
    for one in (source, converted(tmp_path / "set.parquet")):  # splits match by their exact names
        with pytest.raises(ValueError, match="split 'test' has no reference"):
            open_split(one, "test")
    assert_converted(source, tmp_path, ["train", "testA", "testB"])


def test_anns_and_masks(tmp_path: Path) -> None:
    layout = small_anns(tmp_path / "original")
    source = Source(form="anns-masks", root=layout.write())
    (layout.masks / "50.png").rename(tmp_path / "50.png")
    errors = ErrorCollector(strict=False)
    conversion = convert(source, tmp_path / "without.parquet", errors=errors)
    assert errors.count == 1
    assert "50.png" in conversion.description.errors[0]
    (tmp_path / "50.png").rename(layout.masks / "50.png")
    assert_converted(source, tmp_path, ["train", "val"])


@pytest.mark.parametrize("has_sizes", [True, False])
def test_referit(tmp_path: Path, has_sizes: bool) -> None:
    pytest.importorskip("scipy", reason="scipy reads the masks of ReferIt")
    from data.formats.test_referit import ReferitLayout

    layout = ReferitLayout(tmp_path / "original")
    if not has_sizes:
        layout.sizes = None
    source = Source(form="referit", root=layout.write())
    assert all((record.size is not None) == has_sizes for record in all_records(source).records)
    assert_converted(source, tmp_path, ["train", "val", "trainval", "test"])


@pytest.mark.parametrize(
    ("write", "embedded", "splits"),
    [
        (write_refcoco, 0, ["testA", "testB", "train", "val"]),
        (write_benchmark, 6, ["refcoco_google_val", "refcoco_unc_val", "refcocog_umd_val"]),
    ],
)
def test_parquet_with_and_without_images(
    tmp_path: Path, write: Callable[[Path], Path], embedded: int, splits: list[str]
) -> None:
    source = Source(form="parquet", root=write(tmp_path / "refcoco"))
    assert sorted({record.split for record in all_records(source).records}) == splits
    assert convert(source, tmp_path / "set.parquet").embedded == embedded
    assert_converted(source, tmp_path, splits)


def test_converted_file_in_the_form_parquet(tmp_path: Path) -> None:
    root = small_refcoco(tmp_path / "refer").write()
    convert(refer(root), tmp_path / "set" / "refcoco.parquet")
    for where in (tmp_path / "set", tmp_path / "set" / "refcoco.parquet"):
        data = open_split(Source(form="parquet", root=where), "val")
        assert_same(open_split(refer(root), "val"), data)


def test_images_of_one_name_stay_apart(tmp_path: Path) -> None:
    layout = ReferLayout(tmp_path / "refer", "own", "me")
    for folder, image_id, name in (("00", 1, "a.png"), ("01", 2, "a.png"), ("02", 3, "A.png")):
        (layout.image_folder / folder).mkdir(parents=True)
        layout.add_image(image_id, 9, 11, f"{folder}/{name}")
        layout.add_reference(image_id, square(1, 1, 5), [f"in {folder}"])
    source = refer(layout.write(), name="own", split_by="me")
    assert convert(source, tmp_path / "set.parquet", copy_images=True).embedded == 3
    assert_converted(source, tmp_path, ["train"])


def test_embedded_images_are_stored_once_and_byte_for_byte(tmp_path: Path) -> None:
    root = small_refcoco(tmp_path / "refer").write()
    convert(refer(root), tmp_path / "set.parquet", copy_images=True)
    stored = [one for one in pq.read_table(tmp_path / "set.parquet")["image"].to_pylist() if one]
    assert sorted(stored) == sorted(file.read_bytes() for file in (root / COCO_FOLDER).iterdir())


def test_image_that_fits_only_upright(tmp_path: Path) -> None:
    layout = ReferLayout(tmp_path / "refer")
    layout.add_image(7, 31, 13)
    stored = Image.fromarray(np.random.default_rng(0).integers(0, 256, (13, 31, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(layout.image_folder / layout.images[0]["file_name"], "PNG", exif=exif)
    layout.add_reference(7, square(1, 15, 9), ["low"])
    assert_converted(refer(layout.write()), tmp_path, ["train"])


def test_file_moved_together_with_its_images(tmp_path: Path) -> None:
    root = small_refcoco(tmp_path / "tree" / "refer").write()
    convert(refer(root), tmp_path / "tree" / "converted" / "set.parquet")
    before = open_split(converted(tmp_path / "tree" / "converted"), "train")[0].image
    (tmp_path / "tree").rename(tmp_path / "moved")
    after = open_split(converted(tmp_path / "moved" / "converted"), "train")[0].image
    assert torch.equal(before, after)


def test_missing_images(tmp_path: Path) -> None:
    root = small_refcoco(tmp_path / "refer").write()
    file = convert(refer(root), tmp_path / "set.parquet").path
    photos = (root / COCO_FOLDER).rename(tmp_path / "photos")
    with pytest.raises(FileNotFoundError, match=f"{COCO_FOLDER}: name their folder as image_folder"):
        open_split(converted(file), "train")
    data = open_split(converted(file, image_folder=photos), "train")
    assert data[0].image.shape == (3, 23, 37)
    with pytest.raises(FileNotFoundError, match="there is no folder nowhere"):
        open_split(converted(file, image_folder=Path("nowhere")), "train")
    (photos / "COCO_train2014_000000000007.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="COCO_train2014_000000000007"):
        pickle.loads(pickle.dumps(data))[0]  # the copy has an empty cache


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A converted data set with every form of mask."""
    root = every_mask_form(tmp_path / "refer").write()
    return convert(refer(root), tmp_path / "set.parquet").path


def test_folder_of_the_former_format(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("{}")
    for source in (converted(tmp_path), converted(tmp_path.parent, name=tmp_path.name)):
        with pytest.raises(ValueError, match="no longer read: convert the original again"):
            open_split(source, "val")


def test_truncated_file(small: Path) -> None:
    content = small.read_bytes()
    for length in (0, 1, 8, 100, len(content) // 2, len(content) - 1):
        small.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"set\.parquet is no Parquet file, is damaged, or trunc"):
            open_split(converted(small), "train")


def test_changed_byte_gives_the_same_records_or_an_error(small: Path) -> None:
    content = small.read_bytes()
    expected = [replace(one, image=None, objects=()) for one in all_records(converted(small)).records]  # type: ignore[arg-type]
    refused = 0
    for place in np.random.default_rng(0).integers(0, len(content), 100).tolist():
        small.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            records = list(all_records(converted(small)).records)
        except (ValueError, FileNotFoundError) as error:
            assert "parquet" in str(error) or "image_folder" in str(error)  # noqa: PT017
            refused += 1
        else:
            if small.read_bytes()[-len(content) // 3 :] == content[-len(content) // 3 :]:
                assert [replace(one, image=None, objects=()) for one in records] == expected  # type: ignore[arg-type]
    assert refused > 50


def edit(file: Path, change: Callable[[list[dict[str, Any]]], object], schema: pa.Schema = SCHEMA) -> None:
    """Rewrites the rows of a converted file."""
    metadata = pq.ParquetFile(file).metadata.metadata[METADATA_KEY]
    rows = pq.read_table(file).to_pylist()
    change(rows)
    with pq.ParquetWriter(file, schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema))
        writer.add_key_value_metadata({METADATA_KEY: metadata})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 0}, "0 and 37 are not a height and a width"),
        ({"width": None}, "23 and None are not a height and a width"),
        ({"file_name": "../secret.jpg"}, "an image is named '../secret.jpg'"),
        ({"folder": 7}, "its image .* is neither in a folder nor embedded"),
        ({"folder": None, "image_row": 10**9}, "its image .* is neither in a folder nor embedded"),
    ],
)
def test_impossible_values(small: Path, changes: dict[str, Any], message: str) -> None:
    edit(small, lambda rows: rows[2].update(changes))
    with pytest.raises(ValueError, match=rf"set\.parquet: row 2: {message}"):
        list(all_records(converted(small)).records)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 24}, "mask of ref_id 100 .* is for 24 x 37"),
        ({"counts": b"0"}, r"set\.parquet: row 0: the run lengths add up"),
        ({"counts": b"\xff\xff"}, r"set\.parquet: row 0: the counts of run lengths are not"),
        ({"height": None, "width": None}, r"set\.parquet: row 0: the size of run lengths must be"),
    ],
)
def test_damaged_mask(small: Path, changes: dict[str, Any], message: str) -> None:
    edit(small, lambda rows: rows[0]["masks"][0].update(changes))
    data = open_split(converted(small), "train")
    with pytest.raises(ValueError, match=message):
        data[0]
    assert data[2].mask.any()


def test_embedded_image_in_a_row_without_one(small: Path) -> None:
    edit(small, lambda rows: rows[0].update(folder=None, image_row=0))
    with pytest.raises(ValueError, match="the column 'image' holds no image there"):
        open_split(converted(small), "train")[0]


def test_other_columns(small: Path) -> None:
    edit(small, lambda rows: None, SCHEMA.remove(0))
    with pytest.raises(ValueError, match="no converted data set: it was not written by `cmsa-fast"):
        open_split(converted(small), "train")
    pq.write_table(pa.table({"a": [1]}), small)
    with pytest.raises(ValueError, match="no converted data set: it was not written by `cmsa-fast"):
        open_split(converted(small), "train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "is of version 2 and this cmsa_fast reads version 3: convert"),
        ({"origin": []}, "metadata that cannot be read"),
        ({"published_expressions": {"val": "many"}}, "metadata that cannot be read"),
        ({"image_folders": [{"absolute": 1}]}, "metadata that cannot be read"),
        ({"errors": None}, "metadata that cannot be read"),
        (None, "metadata that cannot be read"),
    ],
)
def test_damaged_metadata(small: Path, changes: dict[str, Any] | None, message: str) -> None:
    table = pq.read_table(small)
    text = pq.ParquetFile(small).metadata.metadata[METADATA_KEY]
    changed = text[:9] if changes is None else json.dumps({**json.loads(text), **changes})
    with pq.ParquetWriter(small, SCHEMA) as writer:
        writer.write_table(table.cast(SCHEMA))
        writer.add_key_value_metadata({METADATA_KEY: changed})
    with pytest.raises(ValueError, match=message):
        open_split(converted(small), "val")
