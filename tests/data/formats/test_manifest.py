"""Manifests: masks of every kind, numbers, paths, damage, and use with the other parts of the package."""

from __future__ import annotations

import json
import logging
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.refer_layout import coco_name, noise, square
from torch.utils.data import DataLoader

from cmsa_fast.data import ErrorCollector, RecordDataset, Source, open_split, read_records
from cmsa_fast.data.check.inspection import inspect_root
from cmsa_fast.data.check.leakage import exclusions
from cmsa_fast.data.types import RecordColumns

HEIGHT, WIDTH = 23, 37


class Manifest:
    """Collects lines, and writes images as they are named for the first time."""

    def __init__(self, root: Path, name: str = "own.jsonl") -> None:
        self.root, self.path = root, root / name
        self.lines: list[dict[str, Any] | str] = []

    def add(self, image: str = "a.png", expression: object = "left cup", **fields: Any) -> None:
        file = self.root / image
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise(len(self.lines), HEIGHT, WIDTH)).save(file, "PNG")
        key = "expressions" if isinstance(expression, list) else "expression"
        self.lines.append({"image": image, key: expression, "mask": None, "split": "train"} | fields)

    def write(self) -> Path:
        lines = (line if isinstance(line, str) else json.dumps(line) for line in self.lines)
        self.path.write_text("".join(f"{line}\n" for line in lines))
        return self.path

    def open(self, split: str = "train", errors: ErrorCollector | None = None, **options: Any) -> RecordDataset:
        return open_split(Source(form="manifest", root=self.write(), **options), split, errors=errors)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return Manifest(tmp_path)


def drawn(left: int, top: int, side: int) -> torch.Tensor:
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


def run_lengths(mask: torch.Tensor) -> dict[str, Any]:
    columns = mask.T.flatten().int()
    changes = np.flatnonzero(np.diff(columns.numpy(), prepend=0))
    return {"size": list(mask.shape), "counts": np.diff([0, *changes, columns.numel()]).tolist()}


def save_mask(path: Path, mask: torch.Tensor) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(mask.numpy()).save(path)


def test_masks_of_every_kind(manifest: Manifest) -> None:
    two = drawn(2, 2, 5) | drawn(20, 3, 9)
    save_mask(manifest.root / "masks" / "1.png", two)
    manifest.add(expression="polygons", mask=[square(3, 2, 10), square(20, 5, 7)])
    manifest.add(expression="one flat polygon", mask=square(3, 2, 10))
    manifest.add(expression="run lengths", mask=run_lengths(two))
    manifest.add(expression="a file", mask="masks/1.png")
    manifest.add(expression="nothing", mask=None)
    manifest.add(expression="its mask was lost", mask=[])
    data = manifest.open()
    expected = [drawn(3, 2, 10) | drawn(20, 5, 7), drawn(3, 2, 10), two, two, drawn(0, 0, 0), drawn(0, 0, 0)]
    for sample, mask in zip(data, expected, strict=True):
        assert torch.equal(sample.mask, mask)
        assert sample.ignore is None
        assert sample.kind == ""
    assert [sample.names_nothing for sample in data] == [False, False, False, False, True, False]
    assert (data.report.expressions_naming_nothing, data.report.objects_without_mask) == (1, 1)
    source = Source(form="manifest", root=manifest.path)
    assert len(open_split(source, "train", for_training=True)) == 5  # without the lost mask


def test_ignored_regions_and_kinds(manifest: Manifest) -> None:
    save_mask(manifest.root / "unclear.png", drawn(1, 1, 4))
    manifest.add(mask=square(3, 2, 10), ignore=[square(20, 5, 7)], kind="part")
    manifest.add(ignore=run_lengths(drawn(8, 8, 8)))
    manifest.add(mask=square(3, 2, 10), ignore="unclear.png", kind="object")
    manifest.add(mask=square(3, 2, 10), ignore=None)
    first, second, third, fourth = manifest.open()
    assert torch.equal(first.ignore, drawn(20, 5, 7))
    assert torch.equal(second.ignore, drawn(8, 8, 8))
    assert torch.equal(third.ignore, drawn(1, 1, 4))
    assert fourth.ignore is None
    assert [one.kind for one in (first, second, third, fourth)] == ["part", "", "object", ""]


def test_numbers_as_given(manifest: Manifest) -> None:
    manifest.add(image_id=7, ref_id=70, sent_id=700)
    manifest.add(expression=["right cup", "the other one"], image_id=7, ref_id=71, sent_ids=[701, 3])
    samples = list(manifest.open())
    assert [(one.image_id, one.ref_id, one.sent_id) for one in samples] == [(7, 70, 700), (7, 71, 701), (7, 71, 3)]
    assert [one.expression for one in samples] == ["left cup", "right cup", "the other one"]


def test_numbers_not_given_depend_on_line_and_path(manifest: Manifest) -> None:
    manifest.add("b.png", split="val")
    manifest.add("a.png", expression=["one", "two"])
    manifest.add(f"photos/{coco_name(9)}", expression="three")
    manifest.add("sub/a.png", expression="four")
    before = [(one.image_id, one.ref_id, one.sent_id) for one in manifest.open()]
    assert [numbers[1:] for numbers in before] == [(2, 20_000), (2, 20_001), (3, 30_000), (4, 40_000)]
    images = [numbers[0] for numbers in before]
    assert images[0] == images[1] < 0
    assert images[2] == 9  # COCO's number
    assert images[3] < 0
    assert images[3] != images[0]
    manifest.lines[0] = "{damaged"
    after = manifest.open(errors=ErrorCollector(strict=False))
    assert [(one.image_id, one.ref_id, one.sent_id) for one in after] == before


def test_splits_match_by_their_exact_names(manifest: Manifest) -> None:
    for split in ("test", "testA", "Übung 1", ""):
        manifest.add(split=split)
    for split in ("test", "testA", "Übung 1", ""):
        assert len(manifest.open(split)) == 1
    with pytest.raises(ValueError, match=r"split 'val' has no reference in .*own.jsonl, which has test \(1 ref"):
        manifest.open("val")


def test_paths_are_relative_to_the_manifest_or_absolute(manifest: Manifest, tmp_path: Path) -> None:
    own = Manifest(tmp_path / "lists")
    save_mask(tmp_path / "m.png", drawn(1, 1, 4))
    for image in ("here.png", "../beside/there.png", str(tmp_path / "elsewhere" / "x.png")):
        own.add(image, mask="../m.png")
    own.add("photos/deep.png", mask=str(tmp_path / "m.png"))
    own.lines[-1]["image"] = "photos\\deep.png"  # type: ignore[index]  # as Windows writes it
    for sample, seed in zip(own.open(), range(4), strict=True):
        np.testing.assert_array_equal(sample.image.permute(1, 2, 0).numpy(), noise(seed, HEIGHT, WIDTH))
        assert torch.equal(sample.mask, drawn(1, 1, 4))


def test_image_in_another_folder_is_not_mistaken(manifest: Manifest) -> None:
    manifest.add("1.png")
    manifest.add("photos/1.png")
    (manifest.root / "photos" / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"own.jsonl: line 2: there is no image 1.png in .*photos"):
        manifest.open()[1]


def test_image_folder(manifest: Manifest, tmp_path: Path) -> None:
    manifest.add("old/place/1.png")
    (tmp_path / "new").mkdir()
    (tmp_path / "old" / "place" / "1.png").rename(tmp_path / "new" / "1.png")
    assert manifest.open(image_folder=tmp_path / "new")[0].image.shape == (3, HEIGHT, WIDTH)
    with pytest.raises(FileNotFoundError, match="there is no folder .*none"):
        manifest.open(image_folder=tmp_path / "none")


def test_root_is_a_file_or_a_folder(manifest: Manifest, tmp_path: Path) -> None:
    manifest.add()
    manifest.write()

    def opened(root: Path, **options: Any) -> RecordDataset:
        return open_split(Source(form="manifest", root=root, **options), "train")

    for data in (opened(manifest.path), opened(tmp_path), opened(tmp_path, name="own")):
        assert data.title == "own train"
    (tmp_path / "other.jsonl").write_text("")
    with pytest.raises(FileNotFoundError, match=r"has 2 files \*.jsonl and name says none; .* are other, own"):
        opened(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no own2.jsonl; manifests in it are other, own"):
        opened(tmp_path, name="own2")
    with pytest.raises(FileNotFoundError, match="there is no manifest or folder .*none"):
        opened(tmp_path / "none")
    with pytest.raises(ValueError, match="text is 'raw', but a manifest has one version"):
        opened(tmp_path, name="own", text="raw")
    with pytest.raises(ValueError, match="split_by is 'unc', but a manifest has one version"):
        opened(tmp_path, name="own", split_by="unc")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "a.png", ', "is not JSON: Expecting property name enclosed in double quotes at character 2"),
        ("[" * 5000, "is not JSON in UTF-8: "),
        ('["a.png"]', "is a value of type list where a dictionary is expected"),
        (
            {"expresion": "cup"},
            "has the unknown key 'expresion'; a manifest has image, mask, split, and optionally",
        ),
        ({"image": ...}, "has no 'image'"),
        ({"mask": ...}, "has no 'mask'"),
        ({"split": ...}, "has no 'split'"),
        ({"expression": ...}, "must have one of 'expression' and 'expressions'"),
        ({"expressions": ["cup"]}, "must have one of 'expression' and 'expressions'"),
        ({"image": 7}, "has a value of type int as its 'image', not text"),
        ({"image": "photos/"}, "has 'photos/' as its 'image', which is not the name of a file"),
        ({"expression": ["cup"]}, "has a value of type list as its 'expression', not text"),
        ({"expression": ..., "expressions": "cup"}, "has a value of type str as its 'expressions', not a list"),
        ({"expression": ..., "expressions": []}, "has 0 expressions, not 1 to 10000"),
        ({"expression": ..., "expressions": ["cup", 7]}, "expression 1 has a value of type int as its 'text'"),
        ({"expression": ..., "expressions": ["cup"], "sent_ids": [1, 2]}, "has 2 sent_ids for 1 expressions"),
        ({"sent_ids": [1]}, "has 'sent_ids', which does not belong to 'expression'"),
        ({"sent_id": "x"}, "has a value of type str as its 'sent_id', not an integer"),
        ({"ref_id": 1.5}, "has a value of type float as its 'ref_id', not an integer"),
        ({"split": None}, "has a value of type NoneType as its 'split', not text"),
        ({"kind": 3}, "has a value of type int as its 'kind', not text"),
        ({"mask": 3}, "mask: a segmentation must be polygons or run lengths, not a value of type int"),
        ({"ignore": ["x"]}, "ignore: a part of a segmentation must be a list of coordinates, not str"),
        ({"mask": {"size": [4, 4], "counts": [3, 4]}}, "mask: the run lengths add up to 7 pixels"),
        ({"mask": ""}, "has '' as its 'mask', which is not the name of a file"),
        ({"height": 23}, "has no 'width'"),
        ({"height": 0, "width": 3}, "has the size 0 x 3, which holds no pixel"),
        (
            {"height": 23, "width": 37, "mask": {"size": [4, 4], "counts": [16]}},
            "contradicts itself: its sizes (height x width) are 23 x 37 and 4 x 4",
        ),
        ({"sent_id": 10}, "repeats the sent_id 10 of line 1"),
        ({"expression": ..., "expressions": ["a", "b"], "sent_ids": [5, 5]}, "repeats the sent_id 5 of line 2"),
        ({"image": "b.png", "image_id": 1}, "has the image_id 1 of line 1, which has another image"),
    ],
)
def test_error_names_the_line(manifest: Manifest, line: str | dict[str, Any], message: str) -> None:
    manifest.add(image_id=1, sent_id=10)
    manifest.add(image_id=1)
    manifest.add(image_id=1, expression="the last one")
    if isinstance(line, str):
        manifest.lines[1] = line
    else:
        changed = {**manifest.lines[1], **line}  # type: ignore[dict-item]
        manifest.lines[1] = {key: value for key, value in changed.items() if value is not ...}
    with pytest.raises(ValueError, match=f"^{manifest.path}: line 2.*{re.escape(message)}"):
        manifest.open()
    errors = ErrorCollector(strict=False)
    data = manifest.open(errors=errors)
    assert data.expressions() == ["left cup", "the last one"]
    assert data.report.unusable_records == errors.count == 1


def test_numbers_are_compared_within_a_split(manifest: Manifest) -> None:
    manifest.add("a.png", image_id=1, sent_id=1)
    manifest.add("b.png", image_id=1, sent_id=1, split="val")
    assert len(manifest.open()) == len(manifest.open("val")) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask": "none.png"}, "own.jsonl: line 2: there is no mask .*none.png"),
        ({"mask": "small.png"}, "own.jsonl: line 2: the mask .*small.png is 4 x 5 .* and its image 23 x 37"),
        ({"mask": "text.png"}, "own.jsonl: line 2: .*text.png cannot be read as a mask"),
        ({"ignore": "none.png"}, "own.jsonl: line 2: there is no mask .*none.png"),
        ({"mask": {"size": [4, 5], "counts": [20]}}, "a.png is 23 x 37 .*own.jsonl: line 2 is for 4 x 5"),
        ({"mask": square(200, 2, 10)}, "own.jsonl: line 2: a polygon of the mask spans x = 200 to 210"),
        ({"height": 24, "width": 37}, "a.png is 23 x 37 .*own.jsonl: line 2 is for 24 x 37"),
        ({"image": "none.png"}, "own.jsonl: line 2: there is no image none.png in"),
        ({"image": "text.png"}, "own.jsonl: line 2: .*text.png cannot be read as an image"),
    ],
)
def test_files_that_do_not_fit_are_reported_with_the_line(
    manifest: Manifest, fields: dict[str, Any], message: str
) -> None:
    save_mask(manifest.root / "small.png", torch.ones(4, 5, dtype=torch.bool))
    (manifest.root / "text.png").write_text("no image")
    manifest.add()
    manifest.add(mask=square(3, 2, 10))
    manifest.lines[1] |= fields  # type: ignore[operator]
    data = manifest.open()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        data[1]
    result = inspect_root(manifest.path)
    assert not result.ok
    assert any("own.jsonl: line 2" in line for finding in result.findings for line in finding.details)


def test_no_usable_line(manifest: Manifest) -> None:
    manifest.lines = ["damaged", '{"split": "train"}']
    errors = ErrorCollector(strict=False)
    with pytest.raises(
        ValueError, match=r"2 records could not be used, the first: .*own.jsonl: line 1 is not JSON"
    ):
        manifest.open(errors=errors)
    manifest.lines = []
    with pytest.raises(ValueError, match="split 'train' has no reference in .*own.jsonl, which has none at all"):
        manifest.open()


def test_blank_lines_byte_order_mark_and_windows_line_ends(manifest: Manifest) -> None:
    manifest.add(expression="café")
    manifest.add(expression="左のカップ", mask=square(3, 2, 10))
    lines = [json.dumps(line, ensure_ascii=False) for line in manifest.lines]
    manifest.path.write_bytes(("\ufeff" + "\r\n\r\n".join(lines) + "\r\n \r\n").encode())
    data = open_split(Source(form="manifest", root=manifest.path), "train")
    assert data.expressions() == ["café", "左のカップ"]
    assert torch.equal(data[1].mask, drawn(3, 2, 10))
    manifest.path.write_text("\n".join(lines), encoding="utf-16")
    with pytest.raises(ValueError, match="own.jsonl: line 1 is not JSON in UTF-8"):
        open_split(Source(form="manifest", root=manifest.path), "train")


def test_records_are_parsed_when_they_are_accessed(manifest: Manifest) -> None:
    for i in range(5):
        manifest.add(expression=["a", "b"], mask=[square(3, 2, 10), [1, 2]] if i % 2 else None, split="ab"[i == 3])
    reading = read_records(Source(form="manifest", root=manifest.write()), "a", ErrorCollector(strict=True))
    records = reading.records
    assert [record.ref_id for record in records] == [1, 2, 3, 5]
    assert [record.ref_id for record in (records[-1], *records[1:3])] == [5, 2, 3]
    with pytest.raises(IndexError):
        records[4]
    columns, expected = records.columns(), RecordColumns.from_records(list(records))  # type: ignore[attr-defined]
    for name, values in vars(expected).items():
        np.testing.assert_array_equal(getattr(columns, name), values)
    assert columns.degenerate_parts.sum() == 1
    assert len(pickle.dumps(records)) < 2500
    data = manifest.open("a")
    for sample, item in zip(data, DataLoader(data, batch_size=None, num_workers=1), strict=True):
        assert torch.equal(item.mask, sample.mask)


def test_changed_file_is_an_error(manifest: Manifest) -> None:
    manifest.add()
    data = manifest.open()
    manifest.lines[0]["expression"] = "another cup"  # type: ignore[index]
    manifest.write()
    with pytest.raises(ValueError, match="own.jsonl has changed since it was opened"):
        data[0]


def test_photograph_turned_by_its_orientation(manifest: Manifest, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(0, HEIGHT, WIDTH)).save(manifest.root / "phone.png", exif=exif)
    manifest.add("phone.png", mask=square(3, 2, 10), height=WIDTH, width=HEIGHT)
    manifest.add("phone.png", mask=square(3, 2, 10))
    upright, stored = manifest.open()
    assert (upright.image.shape, stored.image.shape) == ((3, WIDTH, HEIGHT), (3, HEIGHT, WIDTH))
    assert "turned upright" in caplog.text


def test_check_finds_shared_images_and_train_excludes_them(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path, "own.jsonl")
    manifest.add(f"images/{coco_name(7)}")
    manifest.add(f"images/{coco_name(9)}")
    manifest.add(f"images/{coco_name(7)}", split="val")
    manifest.write()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')  # not a manifest
    for root in (tmp_path, manifest.path):
        result = inspect_root(root)
        assert [(one.label, one.form, one.root) for one in result.data_sets] == [
            ("own", "manifest", manifest.path)
        ]
        assert [(count.split, count.expressions) for count in result.data_sets[0].splits] == [
            ("train", 2),
            ("val", 1),
        ]
        assert result.ok
        assert exclusions(result.leaks) == {"COCO": [7]}
    source = Source(form="manifest", root=manifest.path)
    data = open_split(source, "train", for_training=True, exclude={"COCO": [7]})
    assert data.image_ids() == [9]


def test_damaged_manifest_is_found_by_check(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text("{damaged\n")
    result = inspect_root(tmp_path)
    assert {finding.kind for finding in result.findings} == {"not-readable", "record-unusable"}
    assert all("own.jsonl: line 1 is not JSON" in finding.details[0] for finding in result.findings)
