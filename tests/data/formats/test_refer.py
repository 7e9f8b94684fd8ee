"""The layout of REFER: samples, splits, and pickles that would run code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.refer_layout import ReferLayout, open_refer, small_refcoco, square

from cmsa_fast.data.types import ReferringDataset


def refclef(root: Path, splits: list[str]) -> Path:
    layout = ReferLayout(root, "refclef", "unc", "images/saiapr_tc-12")
    layout.add_image(38, 9, 7, "38.jpg")
    for i, split in enumerate(splits):
        layout.add_reference(38, [square(1, 1, 3)], [split], split, ann_id=f"38_{i}")
    return layout.write()


def test_one_item_per_expression_in_file_order(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    data: ReferringDataset = open_refer(layout.write(), "refcoco", "unc", "train")
    assert len(data) == 5
    said = ["left cup", "café on the left", "man", "right cup", "the other one"]
    assert data.expressions() == said
    assert data.image_ids() == [7, 7, 11, 7, 7]
    samples = [data[i] for i in range(len(data))]
    assert [sample.expression for sample in samples] == said
    assert [sample.image_id for sample in samples] == data.image_ids()
    assert [sample.ref_id for sample in samples] == [100, 100, 101, 102, 102]
    assert [sample.sent_id for sample in samples] == [0, 1, 2, 3, 4]
    assert {sample.kind for sample in samples} == {""}
    assert data[-1].expression == data[np.int64(4)].expression == "the other one"
    with pytest.raises(IndexError):
        data[5]
    assert repr(data) == "RecordDataset(refcoco (unc) train): 5 expressions"


def test_images_and_masks(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    pixels = layout.add_image(17, 27, 43)
    layout.add_reference(17, [square(2, 3, 6)], ["it"], split="own")
    sample = open_refer(layout.write(), split="own")[0]
    assert sample.image.dtype == torch.uint8
    np.testing.assert_array_equal(sample.image.permute(1, 2, 0).numpy(), pixels)
    expected = torch.zeros(27, 43, dtype=torch.bool)
    expected[3:9, 2:8] = True
    assert sample.mask.dtype == torch.bool
    assert torch.equal(sample.mask, expected)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("train", ["train"]),
        ("val", ["val"]),
        ("testA", ["testA", "testAB", "testAC"]),
        ("testB", ["testB", "testAB", "testBC"]),
        ("testC", ["testC", "testBC", "testAC"]),
        ("testAB", ["testAB"]),
        ("testBC", ["testBC"]),
        ("test", ["testA", "testB", "testC", "testAB", "testBC", "testAC"]),
    ],
)
def test_splits_match_as_in_refer(tmp_path: Path, asked: str, found: list[str]) -> None:
    everything = ["train", "val", "testA", "testB", "testC", "testAB", "testBC", "testAC"]
    data = open_refer(refclef(tmp_path, everything), "refclef", "unc", asked)
    assert data.expressions() == found


@pytest.mark.parametrize("split", ["testA", "validation", "Train", "", "testAB"])
def test_missing_split_lists_the_others(tmp_path: Path, split: str) -> None:
    small_refcoco(tmp_path).write()
    with pytest.raises(ValueError, match=r"train \(3 references\), val \(1 references\)"):
        open_refer(tmp_path, split=split)


def test_file_without_references(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    layout.references.clear()
    with pytest.raises(ValueError, match="none at all"):
        open_refer(layout.write())


def test_records_that_run_code_are_refused(tmp_path: Path) -> None:
    root, witness = small_refcoco(tmp_path).write(), tmp_path / "witness"
    hostile = f"cos\nsystem\n(Vtouch {witness}\ntR."
    (root / "refcoco" / "refs(unc).p").write_bytes(hostile.encode())
    with pytest.raises(ValueError, match=r"refs\(unc\)\.p"):
        open_refer(root)
    assert not witness.exists()
