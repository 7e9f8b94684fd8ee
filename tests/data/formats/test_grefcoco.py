"""gRefCOCO: one object, several or none, contradictions, and damage."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.left_out import check_left_out
from support.refer_layout import ReferLayout, square

from cmsa_fast.data import Source, open_split, read_records
from cmsa_fast.data.dataset import RecordDataset
from cmsa_fast.data.errors import ErrorCollector

HEIGHT, WIDTH = 23, 37
FIRST, SECOND = square(3, 2, 10), square(8, 7, 10)  # overlap by 5 x 5


class GrefLayout(ReferLayout):
    """References to annotations 1101, 1102 (both in image 7) and 1103 (in image 9)."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, "grefcoco", image_folder="images/train2014")
        self.pixels = self.add_image(7, HEIGHT, WIDTH)
        self.add_image(9, 11, 13)
        self.annotations += [
            {"id": 1101, "image_id": 7, "segmentation": [FIRST], "iscrowd": 0},
            {"id": 1102, "image_id": 7, "segmentation": [SECOND], "iscrowd": 0},
            {"id": 1103, "image_id": 9, "segmentation": [square(2, 2, 4)], "iscrowd": 0},
        ]

    def refer(self, ann_id: Any, *expressions: str, split: str = "train", image_id: int = 7) -> None:
        super().refer(ann_id, *expressions, split=split, image_id=image_id)
        self.references[-1]["no_target"] = ann_id == [-1]


@pytest.fixture
def layout(tmp_path: Path) -> GrefLayout:
    layout = GrefLayout(tmp_path)
    layout.refer([1101, 1102], "both cups", "the cups — café")
    layout.refer([1101], "left cup")
    layout.refer([-1], "the horse", "a dog")
    layout.refer([1103], "plate", split="val", image_id=9)
    return layout


def opened(layout: GrefLayout, split: str = "train", **options: Any) -> RecordDataset:
    return open_split(Source(form="grefcoco", root=layout.write()), split, **options)


def drawn(*polygons: list[float]) -> torch.Tensor:
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    for left, top, right, _, _, bottom, *_ in polygons:
        mask[int(top) : int(bottom), int(left) : int(right)] = True
    return mask


def test_several_objects_one_and_none(layout: GrefLayout) -> None:
    data = opened(layout)
    said = ["both cups", "the cups — café", "left cup", "the horse", "a dog"]
    assert data.expressions() == said
    for expression, polygons, i in zip(
        said, [(FIRST, SECOND), (FIRST, SECOND), (FIRST,), (), ()], range(5), strict=True
    ):
        sample = data[i]
        assert sample.expression == expression
        np.testing.assert_array_equal(sample.image.permute(1, 2, 0).numpy(), layout.pixels)
        assert torch.equal(sample.mask, drawn(*polygons))
    assert data[0].mask.sum() == 175
    assert [data[i].sent_id for i in range(5)] == [0, 1, 2, 3, 4]
    assert [record.names_nothing for record in data.records] == [False, False, True]
    assert data.report.expressions_naming_nothing == 2
    assert data.report.published_expressions is None
    assert data.title == "grefcoco (unc) train"


def test_expressions_that_name_nothing_are_kept_for_training(layout: GrefLayout) -> None:
    data = opened(layout, for_training=True)
    assert len(data) == 5
    assert not data[3].mask.any()


def test_all_splits_at_once_and_missing_ones(layout: GrefLayout) -> None:
    source = Source(form="grefcoco", root=layout.write())
    reading = read_records(source, None, ErrorCollector(strict=True))
    assert [record.split for record in reading.records] == ["train"] * 3 + ["val"]
    assert len(open_split(source, "val")) == 1
    with pytest.raises(ValueError, match=r"'test'.*train \(3 references\), val \(1 references\)"):
        open_split(source, "test")


@pytest.mark.parametrize(("ann_id", "area"), [(1101, 100), ("1101", 100), (-1, 0)])
def test_scalar_identifiers(layout: GrefLayout, ann_id: Any, area: int) -> None:
    layout.references[1].update(ann_id=ann_id, no_target=ann_id == -1)
    assert int(opened(layout)[2].mask.sum()) == area


def test_records_without_no_target(layout: GrefLayout) -> None:
    for reference in layout.references:
        del reference["no_target"]
    data = opened(layout)
    assert [record.names_nothing for record in data.records] == [False, False, True]


def test_empty_list_of_annotations_with_no_target(layout: GrefLayout) -> None:
    layout.references[2]["ann_id"] = []
    assert opened(layout).records[2].names_nothing


def test_pickle_of_older_releases(layout: GrefLayout, caplog: Any) -> None:
    root = layout.write()
    file = root / "grefcoco" / "grefs(unc).json"
    older = file.with_suffix(".p")
    older.write_bytes(pickle.dumps(layout.references[:2], protocol=2))
    source = Source(form="grefcoco", root=root)
    with caplog.at_level(logging.WARNING):
        assert len(open_split(source, "train")) == 5
    assert "grefs(unc).json and grefs(unc).p" in caplog.text
    file.unlink()
    assert len(open_split(source, "train")) == 3


def test_crowds_are_left_out_of_the_mask_and_counted(layout: GrefLayout, caplog: Any) -> None:
    layout.annotations[1]["iscrowd"] = 1
    layout.refer([1102], "a crowd")
    with caplog.at_level(logging.WARNING):
        data = opened(layout)
    assert torch.equal(data[0].mask, drawn(FIRST))
    crowd = data.records[3]
    assert crowd.has_lost_mask
    assert not crowd.names_nothing
    assert data.report.objects_without_mask == data.report.expressions_without_mask == 1
    assert data.report.expressions_naming_nothing == 2
    assert caplog.text.count("1 annotations of crowds") == 1
    assert "a crowd" not in opened(layout, for_training=True).expressions()


OTHERS = ["both cups", "the cups — café", "the horse", "a dog"]  # the expressions without reference 1


@pytest.mark.parametrize(
    ("ann_id", "no_target"),
    [([1101], True), (1101, True), ([-1], False), (-1, False), ([], False), ([1101, 1102], True)],
)
def test_records_that_contradict_themselves(layout: GrefLayout, ann_id: Any, no_target: bool) -> None:
    layout.references[1].update(ann_id=ann_id, no_target=no_target)
    message = r"grefs\(unc\)\.json: reference 1 contradicts itself"
    check_left_out(lambda errors: opened(layout, errors=errors), message, OTHERS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ann_id": [1101, -1]}, "reference 1 has .*-1.* can only stand alone"),
        ({"ann_id": [[1101]]}, "reference 1 has .*type list as its 'ann_id'"),
        ({"ann_id": None}, "reference 1 has .*NoneType as its 'ann_id'"),
        ({"ann_id": [True]}, "reference 1 has .*bool as its 'ann_id'"),
        ({"no_target": 0}, "reference 1 has .*int as its 'no_target', not true or false"),
        ({"no_target": "false"}, "reference 1 has .*str as its 'no_target'"),
        ({"sentences": [{"sent_id": 1}]}, "reference 1 sentence 0 has no 'sent'"),
        ({"ann_id": [1101, 777]}, "no annotation 777, which ref_id 101 needs"),
        ({"ann_id": [1101, 1103]}, "annotation 1103 is of image 9, but ref_id 101"),
        ({"image_id": 8, "ann_id": [-1], "no_target": True}, "no image 8, which ref_id 101"),
    ],
)
def test_damaged_reference(layout: GrefLayout, change: dict[str, Any], message: str) -> None:
    layout.references[1].update(change)
    check_left_out(lambda errors: opened(layout, errors=errors), message, OTHERS)


def test_empty_list_without_no_target(layout: GrefLayout) -> None:
    layout.references[1]["ann_id"] = []
    del layout.references[1]["no_target"]
    with pytest.raises(ValueError, match="reference 1 has an empty 'ann_id' and no 'no_target'"):
        opened(layout)


def test_damaged_mark_of_a_crowd(layout: GrefLayout) -> None:
    layout.annotations[1]["iscrowd"] = "no"
    with pytest.raises(ValueError, match="annotation 1102 has 'no' as its 'iscrowd'"):
        opened(layout)


@pytest.mark.parametrize("file", ["grefs(unc).json", "instances.json"])
def test_missing_files(layout: GrefLayout, file: str) -> None:
    (layout.write() / "grefcoco" / file).unlink()
    with pytest.raises(FileNotFoundError, match=r"A gRefCOCO folder holds grefcoco/grefs\(unc\)"):
        open_split(Source(form="grefcoco", root=layout.root), "train")


def test_missing_folders(layout: GrefLayout, tmp_path: Path) -> None:
    root = layout.write()
    with pytest.raises(FileNotFoundError, match="there is no folder .*absent"):
        open_split(Source(form="grefcoco", root=tmp_path / "absent"), "train")
    with pytest.raises(FileNotFoundError, match="there is no folder .*other"):
        open_split(Source(form="grefcoco", root=root, name="other"), "train")
    with pytest.raises(FileNotFoundError, match=r"grefs\(umd\)\.json .*has grefs\(unc\)\.json"):
        open_split(Source(form="grefcoco", root=root, split_by="umd"), "train")
    with pytest.raises(ValueError, match="name must be the name of a data set"):
        open_split(Source(form="grefcoco", root=root, name="../grefcoco"), "train")
    (root / "images").rename(root / "pictures")
    with pytest.raises(FileNotFoundError, match="no folder of images"):
        open_split(Source(form="grefcoco", root=root), "train")
    folder = root / "pictures" / "train2014"
    data = open_split(Source(form="grefcoco", root=root, image_folder=folder), "train")
    assert data[0].image.shape == (3, HEIGHT, WIDTH)
