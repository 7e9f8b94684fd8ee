"""Tests of `data check` on intact and damaged data sets."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from support.anns_layout import AnnsLayout
from support.refer_layout import COCO_FOLDER, ReferLayout, sentences, small_refcoco, square, unpublished

from cmsa_fast.cli.data_check import DataCheckOptions, format_check, run_data_check
from cmsa_fast.data.check.findings import PUBLISHED_IMAGES, PUBLISHED_REFERENCES, CheckResult, SplitCount
from cmsa_fast.data.check.inspection import inspect_root
from cmsa_fast.data.check.leakage import SplitName, find_leaks
from cmsa_fast.data.errors import ErrorCollector
from cmsa_fast.data.formats.convert import convert
from cmsa_fast.data.formats.published import PUBLISHED_EXPRESSIONS
from cmsa_fast.data.images import read_image, read_image_size
from cmsa_fast.data.source import Source

ORIENTATION = 0x0112


def counts(result: CheckResult) -> dict[str, int]:
    return {finding.kind: len(finding.details) for finding in result.findings}


def details(result: CheckResult, kind: str) -> tuple[str, ...]:
    (finding,) = (finding for finding in result.findings if finding.kind == kind)
    return finding.details


def test_intact_root(tmp_path: Path) -> None:
    result = inspect_root(unpublished(tmp_path).write())
    assert result.ok
    assert result.findings == ()
    assert result.leaks == ()
    (data_set,) = result.data_sets
    assert (data_set.label, data_set.form) == ("own (unc)", "refer")
    assert data_set.splits == (SplitCount("train", 1, 2, 1), SplitCount("val", 1, 1, 1))
    assert result.images == 2
    text = format_check(result)
    assert "Nothing is missing or damaged; no warning" in text
    assert len(text.splitlines()) < 8


def test_counts_are_compared_with_published_ones(tmp_path: Path) -> None:
    result = inspect_root(small_refcoco(tmp_path).write())
    assert result.ok
    train, val, test_a, test_b = result.data_sets[0].splits
    assert train == SplitCount("train", 3, 5, 2, 42_404, 120_624, None)
    assert val == SplitCount("val", 1, 2, 1, 3_811, 10_834, 1_500)
    assert (test_a.references, test_b.published_references) == (0, 1_810)
    assert len(details(result, "count")) == 4
    assert "2 expressions (published: 10834)" in details(result, "count")[1]
    assert "testB is missing" in details(result, "count")[3]
    assert "1 kind of warning" in format_check(result)


def test_tables_of_published_counts_are_consistent() -> None:
    for (name, split_by), splits in (*PUBLISHED_REFERENCES.items(), *PUBLISHED_IMAGES.items()):
        expressions = PUBLISHED_EXPRESSIONS[name][split_by]
        assert all(count < expressions[split] for split, count in splits.items())
    numbers = [
        number
        for authors in PUBLISHED_EXPRESSIONS.values()
        for splits in authors.values()
        for number in splits.values()
    ]
    assert len(numbers) == len(set(numbers))  # a split is recognised by its number of expressions


def test_missing_and_damaged_images(tmp_path: Path) -> None:
    layout = unpublished(tmp_path)
    layout.add_image(13, 31, 31)
    layout.add_reference(13, [square(5, 5, 11)], ["dog"])
    layout.add_image(17, 90, 91)
    layout.add_reference(17, [square(5, 5, 11)], ["cat"])
    root = layout.write()
    names = [layout.image_folder / image["file_name"] for image in layout.images]
    names[0].unlink()
    names[1].write_bytes(b"")
    names[3].write_bytes(names[3].read_bytes()[:-2000])
    result = inspect_root(root)
    assert not result.ok
    assert counts(result) == {"image-missing": 1, "image-unreadable": 1}
    assert names[0].name in details(result, "image-missing")[0]
    assert str(names[1]) in details(result, "image-unreadable")[0]
    assert "Incomplete or damaged: 2 kinds of error" in format_check(result)
    decoded = inspect_root(root, read_images=True)
    assert counts(decoded) == {"image-missing": 1, "image-unreadable": 2}
    assert str(names[3]) in details(decoded, "image-unreadable")[1]


def test_image_of_another_size(tmp_path: Path) -> None:
    layout = unpublished(tmp_path)
    layout.images[1]["height"] += 1
    layout.add_reference(11, [square(300, 300, 5)], ["far away"])
    result = inspect_root(layout.write())
    assert counts(result) == {"image-size": 1}  # once, and without findings about its masks
    assert "41 x 29" in details(result, "image-size")[0]
    assert "42 x 29" in details(result, "image-size")[0]


def test_image_that_fits_only_with_its_orientation(tmp_path: Path) -> None:
    layout = unpublished(tmp_path)
    root = layout.write()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    file = layout.image_folder / layout.images[0]["file_name"]
    Image.fromarray(np.zeros((37, 23, 3), np.uint8)).save(file, "JPEG", exif=exif)
    result = inspect_root(root)
    assert result.ok
    assert counts(result) == {"image-turned": 1}


def test_missing_image_folder(tmp_path: Path) -> None:
    layout = unpublished(tmp_path)
    layout.annotations[0]["segmentation"] = [square(30, 30, 5)]
    root = layout.write()
    layout.image_folder.rename(tmp_path / "elsewhere")
    result = inspect_root(root)
    assert not result.ok
    # The records are checked nevertheless, and the images are not reported one by one.
    assert counts(result) == {"incomplete": 1, "mask-empty": 1}
    assert "images/mscoco/images/train2014" in details(result, "incomplete")[0]
    assert result.images == 0
    assert len(result.data_sets[0].splits) == 2
    assert counts(inspect_root(root, image_folder=tmp_path / "elsewhere")) == {"mask-empty": 1}


@pytest.mark.parametrize("name", ["refs(unc).p", "instances.json"])
def test_missing_annotation_file(tmp_path: Path, name: str) -> None:
    root = small_refcoco(tmp_path).write()
    (root / "refcoco" / name).unlink()
    result = inspect_root(root)
    assert not result.ok
    assert counts(result) == {"incomplete": 1}
    assert str(root / "refcoco" / name) in details(result, "incomplete")[0]
    assert "could not be read" in format_check(result)


def test_truncated_file_affects_only_its_data_set(tmp_path: Path) -> None:
    unpublished(tmp_path, "sound").write()
    root = unpublished(tmp_path, "short").write()
    file = root / "short" / "refs(unc).p"
    file.write_bytes(file.read_bytes()[:-7])
    result = inspect_root(root)
    assert counts(result) == {"not-readable": 1}
    assert [len(one.splits) for one in result.data_sets] == [0, 2]


def test_unusable_records_are_reported_and_others_checked(tmp_path: Path) -> None:
    layout = unpublished(tmp_path)
    layout.add_reference(7, [square(1, 1, 4)], ["spoon"])
    layout.references.append(layout.references[2])
    del layout.references[0]["sentences"]
    result = inspect_root(layout.write())
    assert not result.ok
    assert counts(result) == {"record-unusable": 2}
    without, repeated = details(result, "record-unusable")
    assert "reference 0" in without
    assert "reference 3 repeats ref_id 102 of reference 2" in repeated
    assert result.data_sets[0].splits == (SplitCount("val", 1, 1, 1), SplitCount("train", 1, 1, 1))


def test_masks(tmp_path: Path) -> None:
    layout = unpublished(tmp_path)  # image 7: 23 x 37 (height x width)
    layout.add_reference(7, [square(40, 30, 5)], ["beside the image"])
    layout.add_reference(7, [], ["no part"])
    layout.add_reference(7, [], ["the same object"])
    layout.references[-1]["ann_id"] = layout.references[-2]["ann_id"]
    layout.add_reference(7, [square(3, 3, 5), [1.0, 2.0, 3.0, 4.0]], ["one part of two"])
    layout.add_reference(7, [square(30, 3, 9.5)], ["extends beyond the image"])
    layout.add_reference(7, [square(30, 3, 8)], ["extends beyond the image a little"])
    layout.add_reference(7, [square(300, 3, 8)], ["far away"])
    pixels = np.asfortranarray(np.ones((11, 13), np.uint8))
    runs = coco_mask.encode(pixels)["counts"].decode()
    layout.add_reference(11, {"size": [11, 13], "counts": runs}, ["another size"])
    result = inspect_root(layout.write())
    assert counts(result) == {
        "mask-empty": 2,
        "mask-part-degenerate": 1,
        "mask-outside": 1,
        "mask-unfit": 1,
        "image-size": 1,
    }
    assert "(ref_id 106) extends beyond 23 x 37 by 2.5" in details(result, "mask-outside")[0]
    assert "(ref_id 108)" in details(result, "mask-unfit")[0]
    assert "11 x 13" in details(result, "image-size")[0]


def test_recorded_size_beyond_memory(tmp_path: Path) -> None:
    layout = unpublished(tmp_path)
    layout.images[0].update(height=10**9, width=10**9)
    root = layout.write()
    (layout.image_folder / layout.images[0]["file_name"]).unlink()
    result = inspect_root(root)
    assert counts(result) == {"image-missing": 1, "mask-unfit": 1}
    assert "more than the" in details(result, "mask-unfit")[0]


def test_expressions(tmp_path: Path) -> None:
    layout = unpublished(tmp_path)
    texts = ["le café", " . ", "cup", "cup", "Cup", "\udc80"]
    layout.add_reference(7, [square(1, 1, 4)], texts)
    root = layout.write()
    result = inspect_root(root)
    assert result.ok
    assert counts(result) == {"expression-without-word": 1, "expression-non-ascii": 2, "expression-repeated": 1}
    assert "sent_id 4" in details(result, "expression-without-word")[0]
    assert result.data_sets[0].splits[0].expressions == 8
    format_check(result).encode("utf-8")


def test_images_in_training_and_evaluation_splits(tmp_path: Path) -> None:
    layout = unpublished(tmp_path)
    layout.add_reference(7, [square(1, 1, 4)], ["spoon"], split="val")
    layout.write()
    other = unpublished(tmp_path, "other")
    other.add_image(13, 31, 31)
    other.add_reference(13, [square(1, 1, 4)], ["spoon"], split="test")
    other.add_reference(11, [square(1, 1, 4)], ["fork"])
    other.references[1]["split"] = "other"
    root = other.write()
    options = DataCheckOptions(
        root=root, num_workers=0, json=tmp_path / "all.json", write_exclusions=tmp_path / "ex.json"
    )
    result = run_data_check(options)
    assert result.ok  # leaks are reported, but are no error
    shared = {(str(leak.training), str(leak.evaluation)): leak.images for leak in result.leaks}
    assert shared == {
        ("own (unc) train", "own (unc) val"): (7,),
        ("other (unc) train", "other (unc) other"): (11,),
        ("other (unc) train", "own (unc) val"): (7, 11),
    }
    assert {leak.numbering for leak in result.leaks} == {"COCO"}
    assert json.loads((tmp_path / "ex.json").read_text()) == {"images": {"COCO": [7, 11]}}
    written = json.loads((tmp_path / "all.json").read_text())
    assert sorted(leak["images"] for leak in written["leaks"]) == [[7], [7, 11], [11]]
    assert "share 2 images (COCO: 7, 11)" in format_check(result)
    assert "--write-exclusions" in format_check(result)


def test_val_is_part_of_its_own_trainval_by_design() -> None:
    names = [("a", "trainval"), ("b", "val"), ("a", "val"), ("a", "test")]
    leaks = find_leaks({SplitName(*name): {("COCO", 1)} for name in names})
    assert [str(leak.evaluation) for leak in leaks] == ["a test", "b val"]
    assert [leak.is_within for leak in leaks] == [True, False]


def test_numbers_of_different_collections_are_not_compared(tmp_path: Path) -> None:
    unpublished(tmp_path).write()  # its image 7 is COCO's
    clef = ReferLayout(tmp_path, "refclef", "unc", "images/saiapr_tc-12")
    clef.add_image(7, 9, 7, "7.jpg")
    clef.add_reference(7, [square(1, 1, 3)], ["it"], "testAB", ann_id="7_1")
    result = inspect_root(clef.write())
    assert result.ok
    assert result.leaks == ()


def test_several_forms_under_one_root(tmp_path: Path) -> None:
    root = unpublished(tmp_path, "refcoco").write()
    several = ReferLayout(tmp_path, "grefcoco")
    several.add_image(7, 23, 37)
    several.add_reference(7, [square(3, 2, 10)], ["a cup"])
    several.add_reference(7, [square(3, 2, 10)], ["an elephant"])
    several.references[0].update(ann_id=[1100], category_id=[1], no_target=False)
    several.references[1].update(ann_id=[-1], category_id=[-1], no_target=True)
    several.write()
    convert(
        Source(form="refer", root=root, name="refcoco"), root / "fast.parquet", errors=ErrorCollector(strict=True)
    )
    anns = AnnsLayout(root, "mine", COCO_FOLDER)
    for _ in range(4):
        anns.add("val", "it")
    Image.new("L", (5, 5)).save(anns.masks / "51.png")
    Image.new("L", (37, 23)).save(anns.masks / "52.png")
    (anns.masks / "53.png").unlink()
    anns.write()
    result = inspect_root(root)
    assert [(one.form, one.label) for one in result.data_sets] == [
        ("refer", "refcoco (unc)"),
        ("grefcoco", "grefcoco (unc)"),
        ("anns-masks", "mine"),
        ("converted", "refcoco (unc), converted"),
    ]
    refer, gref, mine, converted = result.data_sets
    assert refer.splits == converted.splits
    assert [split.references for split in gref.splits] == [2]
    assert [split.references for split in mine.splits] == [4]
    by_data_set = {(one.data_set, one.kind): len(one.details) for one in result.findings}
    assert by_data_set == {
        ("refcoco (unc)", "count"): 4,
        ("refcoco (unc), converted", "count"): 4,
        ("grefcoco (unc)", "names-nothing"): 1,
        ("mine", "mask-unfit"): 2,  # one of another size, one missing
        ("mine", "mask-empty"): 1,
    }
    shared = {(leak.training.data_set, leak.evaluation.data_set): leak.images for leak in result.leaks}
    trained = ("refcoco (unc)", "refcoco (unc), converted", "grefcoco (unc)")
    assert shared == {(one, "mine"): (7,) for one in trained}


def test_images_inside_parquet_files(tmp_path: Path) -> None:
    from support import parquet_layout as layout

    rows = []
    for i, image_id in enumerate((7, 9, 11)):
        entry = layout.benchmark_entry(i, image_id, [square(3, 2, 10)], sentences("it", first=i), "val")
        rows.append(layout.benchmark_row(image_id, (23, 37), [entry]))
    rows[1]["image"]["bytes"] = rows[1]["image"]["bytes"][:-700]
    rows[2]["image"]["bytes"] = b"no image"
    file = tmp_path / "hub" / "data" / "refcoco_unc_val-00000-of-00001-0123.parquet"
    layout.write(file, rows, layout.BENCHMARK)
    result = inspect_root(tmp_path)
    assert [(one.form, one.root) for one in result.data_sets] == [("parquet", tmp_path / "hub")]
    (val,) = (split for split in result.data_sets[0].splits if split.references)
    assert val == SplitCount("refcoco_unc_val", 3, 3, 3, 3_811, 10_834, 1_500)
    assert counts(result)["image-unreadable"] == 1
    assert "000000000011" in details(result, "image-unreadable")[0]
    assert counts(inspect_root(tmp_path, read_images=True))["image-unreadable"] == 2


def test_json_has_all_findings(tmp_path: Path) -> None:
    layout = unpublished(tmp_path)
    for i in range(9):
        layout.add_reference(7, [], [f"it {i}"])
    root = layout.write()
    result = run_data_check(DataCheckOptions(root=root, num_workers=0, json=tmp_path / "all.json"))
    text = format_check(result)
    assert text.count("has no valid part") == 3
    assert "and 6 more" in text
    written: dict[str, Any] = json.loads((tmp_path / "all.json").read_text())
    (finding,) = written["findings"]
    assert written["ok"] is True
    assert (finding["kind"], finding["severity"], finding["count"]) == ("mask-empty", "warning", 9)
    assert len(finding["details"]) == 9
    assert written["data_sets"][0]["splits"][0]["references"] == 10


def test_empty_root_is_an_error(tmp_path: Path) -> None:
    result = inspect_root(tmp_path)
    assert not result.ok
    assert "holds no known data set" in format_check(result)


def test_workers_find_the_same(tmp_path: Path) -> None:
    layout = ReferLayout(tmp_path, "own")
    for number in range(1, 231):  # fewer start no worker
        layout.add_image(number, 5 + number % 3, 7)
        layout.add_reference(number, [square(1, 1, 1 + number % 9)], ["it"])
    root = layout.write()
    for image in layout.images[::50]:
        (layout.image_folder / image["file_name"]).unlink()
    alone, together = (inspect_root(root, num_workers=workers) for workers in (0, 2))
    assert alone == together
    assert counts(alone)["image-missing"] == 5


def test_real_root(real: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        result = inspect_root(real / "refer", read_images=True)
    assert result.ok
    assert result.images == 58
    assert [split.expressions for split in result.data_sets[0].splits] == [37, 19, 10, 0]
    assert set(counts(result)) <= {"count", "expression-repeated"}
    assert not caplog.records


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_read_image_size_agrees_with_read_image(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(np.zeros((5, 9, 3), np.uint8)).save(tmp_path / "a", kind, exif=exif)
    for upright in (False, True):
        size = read_image_size(tmp_path / "a", apply_orientation=upright)
        assert size == read_image(tmp_path / "a", apply_orientation=upright).shape[1:]


def test_read_image_size_of_invalid_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a cannot be read as an image"):
        read_image_size(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="no image at"):
        read_image_size(tmp_path / "b")
