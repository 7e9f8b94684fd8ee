"""Writing manifests: every form gives the same expressions, masks and numbers back; images, names and errors."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from data.formats.test_convert import Checkerboard, InterruptedMask, hand_made, record
from data.formats.test_grefcoco import GrefLayout
from data.formats.test_manifest import Manifest, drawn
from support.anns_layout import small_anns
from support.converted import all_records, assert_same, converted, every_mask_form, refer
from support.parquet_layout import write_benchmark, write_refcoco
from support.refer_layout import square

from cmsa_fast.data import ErrorCollector, RecordDataset, ScenesDataset, Source, open_split
from cmsa_fast.data.formats.convert import convert, convert_records
from cmsa_fast.data.masks import parse_segmentation
from cmsa_fast.data.scenes.dataset import SPLITS
from cmsa_fast.data.scenes.records import scene_records
from cmsa_fast.data.source import Reading


def manifest(root: Path, **options: Any) -> Source:
    return Source(form="manifest", root=root, **options)


def assert_converted(source: Source, tmp_path: Path, splits: list[str]) -> None:
    """Compares every split, with images where they are and with copied ones."""
    originals = {split: open_split(source, split) for split in splits}
    for name in ("referenced", "copied"):
        file = tmp_path / f"{name}.jsonl"
        convert(source, file, splits=splits, copy_images=name == "copied")
        for split, original in originals.items():
            assert_same(like(original), like(open_split(manifest(file), split)))


def like(data: RecordDataset) -> RecordDataset:
    """The data set without what a manifest does not state: published numbers and polygons that were dropped."""
    data.title = ""
    data.report = replace(data.report, published_expressions=None, degenerate_parts=0)
    return data


def test_every_mask_form(tmp_path: Path) -> None:
    source = refer(every_mask_form(tmp_path / "refer").write())
    assert_converted(source, tmp_path, ["train", "val", "testA", "testB"])
    convert(source, tmp_path / "all.jsonl")
    for split in ("train", "testB"):  # both have an object without a mask
        data = [open_split(one, split, for_training=True) for one in (source, manifest(tmp_path / "all.jsonl"))]
        assert_same(*map(like, data))
        assert data[0].report.objects_without_mask == 1


def test_real_expressions(real: Path, tmp_path: Path) -> None:
    assert_converted(refer(real / "refer"), tmp_path, ["train", "val", "testA"])


def test_grefcoco(tmp_path: Path) -> None:
    layout = GrefLayout(tmp_path / "original")
    layout.refer([1101, 1102], "both cups", "the cups — café")
    layout.refer([-1], "the horse", "a dog")
    layout.refer([1103], "plate", split="testA", image_id=9)
    assert_converted(Source(form="grefcoco", root=layout.write()), tmp_path, ["train", "testA"])


def test_anns_and_masks(tmp_path: Path) -> None:
    root = small_anns(tmp_path / "original").write()
    assert_converted(Source(form="anns-masks", root=root), tmp_path, ["train", "val"])


def test_referit(tmp_path: Path) -> None:
    pytest.importorskip("scipy", reason="scipy reads the masks of ReferIt")
    from data.formats.test_referit import ReferitLayout

    root = ReferitLayout(tmp_path / "original").write()
    assert_converted(Source(form="referit", root=root), tmp_path, ["train", "val", "trainval", "test"])


@pytest.mark.parametrize(
    ("write", "splits"),
    [
        (write_refcoco, ["testA", "testB", "train", "val"]),
        (write_benchmark, ["refcoco_google_val", "refcoco_unc_val", "refcocog_umd_val"]),
    ],
)
def test_parquet(tmp_path: Path, write: Callable[[Path], Path], splits: list[str]) -> None:
    assert_converted(Source(form="parquet", root=write(tmp_path / "refcoco")), tmp_path, splits)


def test_scenes(tmp_path: Path) -> None:
    convert_records(scene_records(3, 64), tmp_path / "scenes.jsonl", origin={})
    for split in SPLITS:
        scenes = ScenesDataset(3, split=split, size=64, expressions_per_scene=2)
        data = open_split(manifest(tmp_path / "scenes.jsonl"), split)
        for one, other in zip(scenes, data, strict=True):
            assert torch.equal(one.image, other.image)
            assert torch.equal(one.mask, other.mask)
            same = {"image": None, "mask": None} | ({} if split == "val" else {"image_id": None})
            assert replace(one, **same).__dict__ == replace(other, **same).__dict__  # type: ignore[arg-type]
    images = [set(open_split(manifest(tmp_path / "scenes.jsonl"), split).image_ids()) for split in SPLITS]
    assert len(set.union(*images)) == 9


def test_there_and_back_through_parquet(tmp_path: Path) -> None:
    own = Manifest(tmp_path)
    own.add(mask=square(3, 2, 10), ignore=[square(20, 5, 7)], kind="part", image_id=7)
    own.add(expression=["both", "two"], mask=[square(1, 1, 3), square(9, 9, 5)], ref_id=5, sent_ids=[8, 9])
    own.add("b.png", "nothing", ignore=square(2, 2, 2), height=23, width=37)
    own.add("b.png", "lost", mask=[], kind="object")
    original = own.open()
    convert(manifest(own.path), tmp_path / "table.parquet")
    convert(converted(tmp_path / "table.parquet"), tmp_path / "again.jsonl")
    for source in (converted(tmp_path / "table.parquet"), manifest(tmp_path / "again.jsonl")):
        data = open_split(source, "train")
        for one, other in zip(original, data, strict=True):
            assert torch.equal(one.mask, other.mask)
            assert (one.ignore is None) == (other.ignore is None)
            assert one.ignore is None or other.ignore is None or torch.equal(one.ignore, other.ignore)
            same = {"image": None, "mask": None, "ignore": None}
            assert replace(one, **same).__dict__ == replace(other, **same).__dict__  # type: ignore[arg-type]
        assert like(data).report == like(original).report


def test_several_objects_none_and_strange_names(tmp_path: Path) -> None:
    """What cannot be a line of a manifest is left out; images of one name and other content stay apart."""
    first = hand_made().records
    records = [replace(one, expressions=((100 * i, f"{one.ref_id}"),)) for i, one in enumerate(first)]
    records += [record(30, (Checkerboard(),), expressions=((9999, "\ud800 \0"),))]
    errors = ErrorCollector(strict=False)
    reading = Reading([*records, record(40, (), expressions=()), record(50, ())], "by hand")
    conversion = convert_records(reading, tmp_path / "set.jsonl", origin={}, errors=errors)
    assert conversion.embedded == 2
    assert [message.partition(": ")[0] for message in errors.messages] == ["record 40", "record 50"]
    assert "has 0 expressions" in errors.messages[0]
    assert "repeats the sent_id 500 of line 6" in errors.messages[1]
    original = RecordDataset([one for one in records if one.split == "train"], title="", for_training=False)
    assert_same(like(original), like(open_split(manifest(tmp_path / "set.jsonl"), "train")))


def test_images_of_one_name(tmp_path: Path) -> None:
    def reading(names: dict[int, str]) -> Reading:
        made = [record(i, (), expressions=((i, "cup"),), image_id=i) for i in names]
        return Reading([replace(one, image=replace(one.image, file_name=names[one.ref_id])) for one in made], "x")

    names = {0: "a/1.png", 1: "b\\1.png", 2: "1.png", 3: ".."}
    convert_records(reading(names), tmp_path / "set.jsonl", origin={})
    lines = [json.loads(line)["image"] for line in (tmp_path / "set.jsonl").read_text().splitlines()]
    assert lines == [f"set-images/{name}" for name in ("1.png", "1-2.png", "1.png", "image")]


def test_paths_below_the_manifest_are_relative(tmp_path: Path) -> None:
    root = every_mask_form(tmp_path / "refer").write()
    convert(refer(root), root / "lists.jsonl")
    convert(refer(root), tmp_path / "other" / "lists.jsonl")
    first = [
        json.loads((folder / "lists.jsonl").read_text().splitlines()[0]) for folder in (root, tmp_path / "other")
    ]
    assert first[0]["image"].startswith("images/mscoco/")
    assert first[1]["image"] == str(root / first[0]["image"])
    root.rename(tmp_path / "moved")
    assert len(open_split(manifest(tmp_path / "moved" / "lists.jsonl"), "train"))


def test_missing_images_are_left_out_and_reported(tmp_path: Path) -> None:
    layout = every_mask_form(tmp_path / "refer")
    root = layout.write()
    (layout.image_folder / "COCO_train2014_000000000011.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="there is no image COCO_train2014_000000000011.jpg"):
        convert(refer(root), tmp_path / "strict.jsonl")
    errors = ErrorCollector(strict=False)
    conversion = convert(refer(root), tmp_path / "set.jsonl", errors=errors)
    assert errors.count == 1
    assert conversion.description.errors == tuple(errors.messages)
    assert len(all_records(manifest(tmp_path / "set.jsonl")).records) == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["refer", "set.jsonl"]


def test_nothing_is_overwritten_or_left_behind(tmp_path: Path) -> None:
    root = every_mask_form(tmp_path / "refer").write()
    (tmp_path / "set-images").mkdir()
    with pytest.raises(FileExistsError, match="set-images, the folder for the images of the manifest, exists"):
        convert(refer(root), tmp_path / "set.jsonl", copy_images=True)
    (tmp_path / "thesis.jsonl").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"thesis.jsonl exists and is never overwritten"):
        convert(refer(root), tmp_path / "thesis.jsonl")
    reading = Reading(
        [*hand_made().records[:3], record(20, (InterruptedMask(),), expressions=((9, "a"),))], "title"
    )
    with pytest.raises(KeyboardInterrupt):
        convert_records(reading, tmp_path / "new.jsonl", origin={}, errors=ErrorCollector(strict=False))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["refer", "set-images", "thesis.jsonl"]


def test_full_disk_is_no_damaged_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    errors = ErrorCollector(strict=False)
    reading = Reading([record(1, (parse_segmentation(square(2, 2, 5)),), expressions=((1, "a"),))], "title")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        convert_records(reading, tmp_path / "set.jsonl", origin={}, errors=errors)
    assert errors.count == 0
    assert not list(tmp_path.iterdir())


def test_union_is_written(tmp_path: Path) -> None:
    own = Manifest(tmp_path)
    own.add(mask=[square(1, 1, 3), square(2, 2, 5)])
    own.write()
    convert(manifest(own.path), tmp_path / "again.jsonl")
    assert torch.equal(
        open_split(manifest(tmp_path / "again.jsonl"), "train")[0].mask, drawn(1, 1, 3) | drawn(2, 2, 5)
    )
