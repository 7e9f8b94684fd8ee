"""The code in docs/data.md that makes manifests of published data sets, run on small files in their layouts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.refer_layout import ReferLayout, noise, square

from cmsa_fast.data import RecordDataset, load

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "data.md"


def run_recipe(title: str, monkeypatch: pytest.MonkeyPatch, folder: Path, **changes: str) -> None:
    """Runs the block of code that begins with `# title` in a folder, after changing some of its text."""
    (code,) = re.findall(rf"```python\n(# {re.escape(title)}\n.*?)```", DOCUMENT.read_text(), re.DOTALL)
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    monkeypatch.chdir(folder)
    exec(compile(code, str(DOCUMENT), "exec"), {})


def save_image(path: Path, height: int, width: int, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed, height, width)).save(path)


def box(data: RecordDataset, index: int) -> list[int]:
    """Left, top, right and bottom of a mask that is a rectangle."""
    rows, columns = torch.nonzero(data[index].mask, as_tuple=True)
    sides = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    left, top, right, bottom = (int(side) for side in sides)
    assert data[index].mask.sum() == (right - left) * (bottom - top)
    return [left, top, right, bottom]


def test_phrasecut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "VGPhraseCut_v0"
    corners = [[3, 2], [13, 2], [13, 12], [3, 12]]
    for number, split in enumerate(("train", "val", "test")):
        save_image(root / "images" / f"{number}.jpg", 23, 37)
        other = [[x + 10, y] for x, y in corners]
        task = {"task_id": f"{number}__1", "image_id": number, "phrase": f"white cups {split}", "ann_ids": [1, 2]}
        task |= {"Polygons": [[corners], [other]], "phrase_structure": {"name": "cups"}, "instance_boxes": []}
        (root / f"refer_{split}.json").write_text(json.dumps([task]))
    run_recipe("PhraseCut", monkeypatch, tmp_path)
    for number, split in enumerate(("train", "val", "test")):
        data = load("manifest", tmp_path / "phrasecut.jsonl", split)
        assert (data.expressions(), data.image_ids()) == ([f"white cups {split}"], [number])
        assert box(data, 0) == [3, 2, 23, 12]


def test_reasonseg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shape(label: str, left: float, top: float, right: float, bottom: float) -> dict[str, Any]:
        return {"label": label, "points": [[left, top], [right, top], [right, bottom], [left, bottom]]}

    shapes = [
        shape("target", 10.0, 10.0, 12.9, 12.0),  # inside an ignored region
        shape("ignore", 8, 8, 20, 20),
        shape("target", 2, 2, 25, 21),
        shape("flag", 0, 0, 36, 22),
    ]
    folder = tmp_path / "ReasonSeg" / "val"
    save_image(folder / "1.jpg", 23, 37)
    content = {"text": ["the café's cup", "another"], "is_sentence": True, "shapes": shapes}
    (folder / "1.json").write_bytes(json.dumps(content, ensure_ascii=False).encode("cp1252"))
    run_recipe("ReasonSeg", monkeypatch, tmp_path)
    (sample,) = load("manifest", tmp_path / "reasonseg.jsonl", "val")
    assert (sample.expression, sample.kind) == ("the café's cup", "sentence")
    target, ignored = torch.zeros(2, 23, 37, dtype=torch.bool)
    target[2:22, 2:26] = True
    target[8:21, 8:21] = False
    target[10:13, 10:13] = True
    ignored[8:21, 8:21] = True
    ignored[10:13, 10:13] = False
    assert torch.equal(sample.mask, target)
    assert sample.ignore is not None
    assert torch.equal(sample.ignore, ignored)


def layout(root: Path, name: str, split_by: str, images: str) -> ReferLayout:
    made = ReferLayout(root, name, split_by, images)
    made.add_image(7, 23, 37)
    for ann_id, left in ((1101, 3), (1102, 15)):
        made.annotations.append({"id": ann_id, "image_id": 7, "segmentation": [square(left, 2, 10)]})
    return made


def test_r_refcoco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = layout(tmp_path, "rrefcoco", "unc", "images/mscoco/train2014")
    made.refer(1101, "left cup", "right cup", "the dog", split="val", image_id=7)
    for sentence, exist in zip(made.references[0]["sentences"], (True, False, False), strict=True):
        sentence["exist"] = exist
    made.write()
    run_recipe("Ref-ZOM and R-RefCOCO", monkeypatch, tmp_path)
    data = load("manifest", tmp_path / "rrefcoco.jsonl", "val")
    assert data.expressions() == ["left cup", "right cup", "the dog"]
    assert [sample.names_nothing for sample in data] == [False, True, True]
    assert [sample.ref_id for sample in data] == [100, 100, 100]
    assert box(data, 0) == [3, 2, 13, 12]
    assert not data[1].mask.any()


def test_ref_zom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = layout(tmp_path, "ref-zom", "final", "trainval2014")
    for ann_id, source in ((1101, "one"), ([1101, 1102], "many"), ([], "zero")):
        made.refer(ann_id, f"cups {source}", split="test", image_id=7)
        made.references[-1]["source"] = source
    made.write()
    uncommented = {
        'references, images = Path("rrefcoco': '# Path("rrefcoco',
        "# references, images": "references, images",
    }
    run_recipe("Ref-ZOM and R-RefCOCO", monkeypatch, tmp_path, **uncommented)
    data = load("manifest", tmp_path / "ref-zom.jsonl", "test")
    assert data.expressions() == ["cups one", "cups many", "cups zero"]
    assert [sample.names_nothing for sample in data] == [False, False, True]
    assert int(data[1].mask.sum()) == 200
    assert not data[2].mask.any()
