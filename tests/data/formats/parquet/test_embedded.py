"""The Parquet forms with pixels: jxu124/refcoco-benchmark and moondream/refcoco-m."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import support.parquet_layout as layout
import torch
from pycocotools import mask as coco_mask
from support.damage import damage
from support.left_out import check_left_out
from support.parquet_layout import SIZE, check_images_and_masks, covered, shard, source, write_benchmark
from support.refer_layout import coco_name

from cmsa_fast.data import open_split


def test_benchmark_samples(tmp_path: Path) -> None:
    data = open_split(source(write_benchmark(tmp_path)), "refcoco_unc_val")
    assert data.expressions() == ["left cup", "café à gauche", "cup", "杯子", "dog", "man"]
    both = covered((3, 2, 10), (8, 7, 10))
    masks = [both, both, covered((20, 3, 7)), covered((1, 20, 9), size=(41, 29))]
    check_images_and_masks(data, [*masks, covered((5, 5, 9)), covered((6, 5, 9))])
    assert data.report.published_expressions == 10_834
    assert {record.split for record in data.records} == {"refcoco_unc_val"}
    assert [record.image.row_group for record in data.records] == [0, 0, 0, 1, 0]


ENTRY = ("ref_list", 0)
ANNOTATION, REFERENCE = (*ENTRY, "ann_info"), (*ENTRY, "ref_info")


@pytest.mark.parametrize(
    ("path", "value", "lost", "message"),
    [
        (("image_info",), None, 2, "NoneType as its 'image_info', not a dictionary"),
        (("image_info", "id"), None, 2, "image_info has .* as its 'id'"),
        (("image_info", "height"), -1, 2, "holds no pixel"),
        (("image_info", "file_name"), None, 2, "as its 'file_name'"),
        (("ref_list",), None, 1, "row 0 has .* as its 'ref_list'"),
        (ENTRY, None, 1, "reference 0 is a value of type None"),
        (ANNOTATION, None, 1, "NoneType as its 'ann_info', not a dictionary"),
        (REFERENCE, None, 1, "NoneType as its 'ref_info', not a dictionary"),
        ((*ANNOTATION, "id"), 5, 1, "ann_id is 5 and 1001"),
        ((*ANNOTATION, "image_id"), 5, 1, "image_id is 5"),
        ((*REFERENCE, "image_id"), 5, 1, "image_id is 7 and 5"),
        ((*REFERENCE, "split"), "train", 1, "split is train"),
        ((*REFERENCE, "ref_id"), None, 1, "as its 'ref_id'"),
        ((*ANNOTATION, "segmentation"), None, 1, "ann_info: a segmentation must be"),
        ((*REFERENCE, "sentences"), None, 1, "'sentences'"),
    ],
)
def test_damaged_benchmark_rows(
    tmp_path: Path, path: tuple[Any, ...], value: Any, lost: int, message: str
) -> None:
    root = write_benchmark(tmp_path)
    file = root / "data" / shard("refcoco_unc_val", 0, 2)
    rows = pq.read_table(file).to_pylist()
    damage(rows[0], path, value)
    layout.write(file, rows, layout.BENCHMARK)
    expressions = [*(["cup"] if path[:2] == ENTRY else []), "杯子", "dog", "man"]
    lines = check_left_out(
        lambda errors: open_split(source(root), "refcoco_unc_val", errors=errors), message, expressions, lost
    )
    assert all(line.startswith(f"{file}: row 0") for line in lines)


@pytest.mark.parametrize("value", [None, {"bytes": None, "path": "x.jpg"}])
def test_row_without_a_image(tmp_path: Path, value: Any) -> None:
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
    with pytest.raises(ValueError, match=rf"{coco_name(7)} in .*truncated"):
        open_split(source(root), "refcocog_umd_val")[0]


def reannotated_rows() -> layout.Rows:
    pixels = np.zeros(SIZE, np.uint8)
    pixels[4:9, 6:20] = 1
    rle = coco_mask.encode(np.asfortranarray(pixels))
    sample = {
        "id": 31,
        "image_id": 7,
        "sentences": ["left cup", "café"],
        "mask": {"counts": rle["counts"].decode("ascii"), "size": list(SIZE)},
    }
    return [
        {
            "image": layout.encoded(7, *SIZE),
            "image_id": 7,
            "file_name": coco_name(7),
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
        ({"sentences": [None]}, "sentence 0 has a value of type NoneType"),
        ({"id": None}, "as its 'id'"),
    ],
)
def test_damaged_reannotated_rows(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    rows = reannotated_rows()
    rows[0]["samples"][0].update(changes)
    layout.write(tmp_path / shard("validation"), rows, layout.REANNOTATED)
    check_left_out(lambda errors: open_split(source(tmp_path), "val", errors=errors), message, ["cup"])
