"""Files of predicted masks: JSON, JSON Lines and PNG; what is no mask or names no expression."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from support.small_evaluation import random_results

from cmsa_fast.evaluation.mask_files import encode_mask, read_predictions, write_predictions

MASK = torch.zeros(5, 7, dtype=torch.bool)
MASK[1:4, 2:6] = MASK[0, 0] = True
RUNS = encode_mask(MASK)


def save(path: Path, pixels: object, **options: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.asarray(pixels), **options).save(path)
    return path.parent


def test_run_lengths_are_those_of_coco() -> None:
    # Column by column, outside and inside in turn.
    counts = [0, 1, 10, 3, 2, 3, 2, 3, 2, 3, 6]
    expected = coco_mask.frPyObjects({"size": [5, 7], "counts": counts}, 5, 7)
    assert {"size": [5, 7], "counts": expected["counts"].decode()} == RUNS


@pytest.mark.parametrize("lines", [True, False])
def test_json_forms(tmp_path: Path, lines: bool) -> None:
    entries = [
        {"sent_id": 4, "segmentation": RUNS},
        {"ref_id": 3, "expression": "left cup", "segmentation": {"size": [5, 7], "counts": [5, 5, 25]}},
        {"sent_id": "17", "ref_id": 9, "image_id": 2, "expression": "other", "score": 0.5, "segmentation": RUNS},
    ]
    path = tmp_path / "masks.txt"  # the content decides
    text = "\n\n".join(map(json.dumps, entries)) if lines else json.dumps(entries, indent=1)
    path.write_text(text, encoding="utf-8-sig")  # with a byte order mark
    first, second, third = read_predictions(path)
    assert (first.sent_id, first.ref_id, first.name) == (4, None, "sent_id 4")
    assert (second.sent_id, second.ref_id, second.expression) == (None, 3, "left cup")
    assert (third.sent_id, third.ref_id, third.image_id) == (17, 9, 2)
    assert first.size() == (5, 7)
    assert torch.equal(first.decode(), MASK)
    assert second.decode().nonzero().tolist() == [[row, 1] for row in range(5)]
    assert first.where == f"{path}: {'line 1' if lines else 'entry 0'}"


def test_written_file_is_read(tmp_path: Path) -> None:
    results = random_results(1, images=2)
    results[0] = replace(results[0], expression="odd \ud83d – ☕")
    masks = {one.index: encode_mask(torch.rand(9, one.index + 1) > 0.5) for one in results}
    write_predictions(tmp_path / "masks.jsonl", results, masks)
    predictions = read_predictions(tmp_path / "masks.jsonl")
    assert [one.sent_id for one in predictions] == [one.sent_id for one in results]
    assert [one.image_id for one in predictions] == [one.image_id for one in results]
    for one, result in zip(predictions, results, strict=True):
        assert encode_mask(one.decode()) == masks[result.index]


GOOD = json.dumps({"sent_id": 4, "segmentation": RUNS})
BAD_ENTRIES = {
    "no number": ({"sent_id": None, "segmentation": RUNS}, "line 2 names no expression: it has neither 'sent_id'"),
    "no dictionary": ([1, 2], "line 2 names no expression: it has a value of type list"),
    "text as number": (
        {"sent_id": "four", "segmentation": RUNS},
        "line 2 has .* as its 'sent_id', not an integer",
    ),
    "NaN as number": ({"sent_id": float("nan"), "segmentation": RUNS}, "line 2 has a value of type float"),
    "no text": (
        {"ref_id": 1, "expression": 5, "segmentation": RUNS},
        "line 2 has .* as its 'expression', not text",
    ),
    "no mask": ({"sent_id": 5}, r"line 2 \(sent_id 5\) must have COCO run lengths.*NoneType"),
    "probabilities": (
        {"sent_id": 5, "segmentation": [[0.1, 0.9]]},
        r"\(sent_id 5\) must have COCO run .* type list",
    ),
    "polygons": (
        {"sent_id": 5, "segmentation": [[1, 2, 3, 4, 5, 6]]},
        r"\(sent_id 5\) must have COCO run lengths",
    ),
    "NaN as run": (
        {"sent_id": 5, "segmentation": {"size": [2, 2], "counts": [float("nan"), 4]}},
        r"line 2 \(sent_id 5\): the counts of run lengths must be a flat list of integers",
    ),
    "too short": (
        {"sent_id": 5, "segmentation": {"size": [2, 2], "counts": [1, 2]}},
        r"line 2 \(sent_id 5\): the run lengths add up to 3 pixels",
    ),
    "cut text": (
        {"ref_id": 5, "expression": "cup", "segmentation": {**RUNS, "counts": RUNS["counts"][:-2]}},
        r"line 2 \(ref_id 5 'cup'\): the run lengths add up to",
    ),
    "no size": ({"sent_id": 5, "segmentation": {"counts": "abc"}}, r"\(sent_id 5\).*have no 'size'"),
}


@pytest.mark.parametrize("case", BAD_ENTRIES)
def test_damaged_entry_is_named(tmp_path: Path, case: str) -> None:
    entry, message = BAD_ENTRIES[case]
    path = tmp_path / "masks.jsonl"
    path.write_text(f"{GOOD}\n{json.dumps(entry)}\n{GOOD}")
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: {message}" if "line" in message else message):
        read_predictions(path)


def test_truncated_files_are_errors(tmp_path: Path) -> None:
    path = tmp_path / "masks"
    path.write_text(f"{GOOD}\n{GOOD[:-9]}")
    with pytest.raises(ValueError, match="masks: line 2 is not JSON: .*one entry a line"):
        read_predictions(path)
    path.write_text(f"[{GOOD},\n{GOOD[:-9]}")
    with pytest.raises(ValueError, match=r"masks is not a JSON file: .*line 2"):
        read_predictions(path)
    for content in (b"", b"[]", b"\n \n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="masks has no prediction: it holds no entry"):
            read_predictions(path)
    path.write_bytes(b"\x80\x04\x95 a pickle \xff")
    with pytest.raises(ValueError, match="masks: line 1 is not JSON"):
        read_predictions(path)
    with pytest.raises(FileNotFoundError, match="no predictions at .*absent"):
        read_predictions(tmp_path / "absent")


@pytest.mark.parametrize(
    "pixels",
    [
        MASK,
        MASK.numpy() * 1,
        MASK.numpy() * 255,
        np.stack([MASK.numpy() * 255] * 3, 2),
        np.stack([MASK.numpy() * 255] * 3 + [np.full((5, 7), 255)], 2),
    ],
    ids=["1 bit", "0 and 1", "0 and 255", "RGB", "RGBA"],
)
def test_png_forms(tmp_path: Path, pixels: Any) -> None:
    pixels = np.asarray(pixels)
    folder = save(tmp_path / "masks/12.png", pixels if pixels.dtype == bool else pixels.astype(np.uint8))
    (folder / "notes.txt").write_text("not read")
    (folder / "._12.png").write_text("of another system")
    (one,) = read_predictions(folder)
    assert one.sent_id == 12
    assert one.size() == (5, 7)
    assert torch.equal(one.decode(), MASK)


def test_png_names(tmp_path: Path) -> None:
    for name in ("0007", "5_12", "5_man, left of 3_cups"):
        folder = save(tmp_path / f"masks/{name}.png", MASK)
    named = [(one.sent_id, one.ref_id, one.expression) for one in read_predictions(folder)]
    assert named == [(7, None, ""), (12, 5, ""), (None, 5, "man, left of 3_cups")]
    save(folder / "left cup.png", MASK)
    with pytest.raises(ValueError, match=r"left cup\.png must be named SENT_ID\.png"):
        read_predictions(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no prediction: it holds no PNG file"):
        read_predictions(tmp_path / "empty")


def test_png_that_is_no_mask(tmp_path: Path) -> None:
    grey = np.arange(35, dtype=np.uint8).reshape(5, 7)
    colour = np.zeros((5, 7, 3), np.uint8)
    colour[1, 1, 0] = 255
    for pixels, message in ((grey, "has the values 0, 1, 2, 3, 4, .*threshold"), (colour, "has colours")):
        (one,) = read_predictions(save(tmp_path / "masks/3.png", pixels))
        with pytest.raises(ValueError, match=rf"3\.png is no mask: it {message}"):
            one.decode()
    # A palette whose first colour is white.
    swapped = Image.fromarray(1 - MASK.numpy().astype(np.uint8)).convert("P")
    swapped.putpalette([255, 255, 255, 0, 0, 0])
    swapped.save(tmp_path / "masks/3.png")
    assert torch.equal(one.decode(), MASK)
    content = (tmp_path / "masks/3.png").read_bytes()
    (tmp_path / "masks/3.png").write_bytes(content[: content.index(b"IDAT") + 8])
    with pytest.raises(ValueError, match=r"3\.png cannot be read: it is truncated"):
        one.decode()
