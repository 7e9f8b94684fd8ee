"""Small Parquet data sets with the columns and types of the published ones."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from support.refer_layout import coco_name, noise, sentences, square

from cmsa_fast.data import RecordDataset, Source

SIZE = (23, 37)
Rows = list[dict[str, Any]]

_INT, _TEXT, _FLOATS = pa.int64(), pa.string(), pa.list_(pa.float64())


def _struct(**fields: pa.DataType) -> pa.DataType:
    return pa.struct(list(fields.items()))


_IMAGE = _struct(bytes=pa.binary(), path=_TEXT)
_SENTENCES = pa.list_(_struct(raw=_TEXT, sent=_TEXT, sent_id=_INT, tokens=pa.list_(_TEXT)))
_ANNOTATION = _struct(id=_INT, image_id=_INT, segmentation=pa.list_(_FLOATS))
_REFERENCE = _struct(ann_id=_INT, image_id=_INT, ref_id=_INT, sentences=_SENTENCES, split=_TEXT)
_RUN_LENGTHS = _struct(counts=_TEXT, size=pa.list_(pa.int32()))
_SAMPLE = _struct(id=_INT, image_id=_INT, sentences=pa.list_(_TEXT), mask=_RUN_LENGTHS)

REFCOCO = pa.schema(
    {
        "file_name": _TEXT,
        "ann_id": _INT,
        "ref_id": _INT,
        "image_id": _INT,
        "split": _TEXT,
        "sentences": _SENTENCES,
        "raw_anns": _TEXT,
        "raw_image_info": _TEXT,
        "image_path": _TEXT,
    }
)
BENCHMARK = pa.schema(
    {
        "image": _IMAGE,
        "image_info": _struct(file_name=_TEXT, id=_INT, height=_INT, width=_INT),
        "ref_list": pa.list_(_struct(ann_info=_ANNOTATION, ref_info=_REFERENCE)),
    }
)
REANNOTATED = pa.schema({"image": _IMAGE, "image_id": _INT, "file_name": _TEXT, "samples": pa.list_(_SAMPLE)})
MIXED = pa.schema(
    {
        "question_id": _TEXT,
        "image": _IMAGE,
        "answer": pa.list_(_TEXT),
        "segmentation": pa.list_(pa.float32()),
        "file_name": _TEXT,
    }
)


def write(path: Path, rows: Rows, schema: pa.Schema, row_group_size: int = 2) -> Path:
    """Writes rows as a Parquet file of small row groups."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=row_group_size)
    return path


def encoded(image_id: int, height: int, width: int) -> dict[str, Any]:
    """An image as a column of images holds it; PNG, so that its pixels are known."""
    file = io.BytesIO()
    Image.fromarray(noise(image_id, height, width)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": coco_name(image_id)}


def _entry(
    ref_id: int, image_id: int, segmentation: Any, said: Rows, split: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """An annotation and a reference to it."""
    ann_id = 1000 + ref_id
    annotation = {"id": ann_id, "image_id": image_id, "segmentation": segmentation}
    reference = {
        "ann_id": ann_id,
        "file_name": f"COCO_train2014_{image_id:012d}_{ref_id}.jpg",  # no such file
        "image_id": image_id,
        "ref_id": ref_id,
        "sentences": said,
        "split": split,
    }
    return annotation, reference


def _image_info(image_id: int, size: tuple[int, int]) -> dict[str, Any]:
    height, width = size
    return {"file_name": coco_name(image_id), "height": height, "width": width, "id": image_id}


def refcoco_row(
    ref_id: int, image_id: int, size: tuple[int, int], segmentation: Any, said: Rows, split: str
) -> dict[str, Any]:
    """A row of the form without pixels."""
    annotation, reference = _entry(ref_id, image_id, segmentation, said, split)
    return {
        **reference,
        "raw_anns": json.dumps(annotation),
        "raw_image_info": json.dumps(_image_info(image_id, size)),
        "image_path": f"coco/train2014/{coco_name(image_id)}",
    }


def benchmark_entry(ref_id: int, image_id: int, segmentation: Any, said: Rows, split: str) -> dict[str, Any]:
    """A reference of the form with images."""
    annotation, reference = _entry(ref_id, image_id, segmentation, said, split)
    return {"ann_info": annotation, "ref_info": reference}


def benchmark_row(image_id: int, size: tuple[int, int], entries: Rows) -> dict[str, Any]:
    """An image of the form with images."""
    return {
        "image": encoded(image_id, *size),
        "image_info": _image_info(image_id, size),
        "ref_list": entries,
    }


def shard(split: str, number: int = 0, count: int = 1, end: str = "-bfeafdc84ca37aa2") -> str:
    """The name of a file."""
    return f"{split}-{number:05d}-of-{count:05d}{end}.parquet"


def source(root: Path, **options: Any) -> Source:
    """A data set in a Parquet form."""
    return Source(form="parquet", root=root, **options)


def covered(*squares: tuple[int, int, int], size: tuple[int, int] = SIZE) -> torch.Tensor:
    """The mask that is True inside squares, each given as left, top, side."""
    mask = torch.zeros(*size, dtype=torch.bool)
    for left, top, side in squares:
        mask[top : top + side, left : left + side] = True
    return mask


def check_images_and_masks(data: RecordDataset, masks: list[torch.Tensor]) -> None:
    """Compares the items of a data set with their masks and with `noise`."""
    for i, mask in enumerate(masks):
        sample = data[i]
        pixels = noise(sample.image_id, *mask.shape)
        np.testing.assert_array_equal(sample.image.permute(1, 2, 0).numpy(), pixels)
        assert torch.equal(sample.mask, mask)
    assert len(data) == len(masks)


def refcoco_rows() -> dict[str, Rows]:
    """Rows of the form without pixels, by the names of the files."""
    two = [square(3, 2, 10), square(8, 7, 10)]
    return {
        "train": [
            refcoco_row(1, 7, SIZE, two, sentences("left cup", "café à gauche"), "train"),
            refcoco_row(2, 11, (41, 29), [square(1, 20, 9)], sentences("杯子", first=2), "train"),
            refcoco_row(3, 7, SIZE, [square(20, 3, 7)], sentences("right cup", first=3), "train"),
        ],
        "validation": [refcoco_row(4, 13, SIZE, [square(5, 5, 11)], sentences("dog", first=4), "val")],
        "test": [refcoco_row(5, 17, SIZE, [square(2, 2, 3)], sentences("man", "he", first=5), "testA")],
        "testB": [refcoco_row(6, 19, SIZE, [square(9, 9, 3)], sentences("tree", first=7), "testB")],
    }


def write_refcoco(root: Path, rows: dict[str, Rows] | None = None, images: str = "images/train2014") -> Path:
    """Writes the form without pixels and its images."""
    for split, content in (rows or refcoco_rows()).items():
        write(root / "data" / shard(split), content, REFCOCO)
        for row in content:
            size = json.loads(row["raw_image_info"])
            file = root / images / coco_name(row["image_id"])
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = noise(row["image_id"], size["height"], size["width"])
            Image.fromarray(pixels).save(file, "PNG")
    return root


def write_benchmark(root: Path) -> Path:
    """Writes the form with images: images and their objects, by the names of the files."""
    two = [square(3, 2, 10), square(8, 7, 10)]
    cup, mug = [square(1, 1, 9)], [square(1, 1, 5)]
    objects: dict[str, list[tuple[int, tuple[int, int], list[tuple[Any, list[str]]]]]] = {
        shard("refcoco_unc_val", 0, 2): [
            (7, SIZE, [(two, ["left cup", "café à gauche"]), ([square(20, 3, 7)], ["cup"])]),
            (11, (41, 29), [([square(1, 20, 9)], ["杯子"])]),
            (13, SIZE, [([square(5, 5, 9)], ["dog"])]),
        ],
        shard("refcoco_unc_val", 1, 2, ""): [(17, SIZE, [([square(6, 5, 9)], ["man"])])],
        shard("refcocog_umd_val"): [(7, SIZE, [(cup, ["a cup"])])],
        shard("refcoco_google_val"): [(7, SIZE, [(mug, ["a mug"])])],
    }
    ref_id = sent_id = 0
    for name, images in objects.items():
        rows = []
        for image_id, size, references in images:
            entries = []
            for segmentation, said in references:
                ref_id += 1
                texts = sentences(*said, first=sent_id)
                entries.append(benchmark_entry(ref_id, image_id, segmentation, texts, "val"))
                sent_id += len(said)
            rows.append(benchmark_row(image_id, size, entries))
        write(root / "data" / name, rows, BENCHMARK)
    return root
