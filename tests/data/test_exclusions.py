"""Tests of excluding evaluation images from training."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from support.commands import failed, training
from support.refer_layout import ReferLayout, small_refcoco, square

from cmsa_fast.cli import main
from cmsa_fast.data import Source, open_split
from cmsa_fast.data.exclusions import read_exclusions


def written(path: Path, **numbers: Any) -> Path:
    path.write_text(json.dumps({"images": numbers}))
    return path


def two_data_sets(root: Path) -> Path:
    """refcoco with training images 7 and 11, and a data set with evaluation images 11 and 17."""
    small_refcoco(root).write()
    other = ReferLayout(root, "other")
    other.add_image(11, 41, 29)
    other.add_image(17, 31, 31)
    other.add_reference(17, square(5, 5, 11), ["a goat"], split="val")
    other.add_reference(11, square(5, 5, 11), ["a horse"], split="val")
    return other.write()


def test_training_excludes_the_images_written_by_check(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    root, file, run = two_data_sets(tmp_path / "data"), tmp_path / "out.json", tmp_path / "run"
    check = ["data", "check", str(root), "--num-workers=0", "--write-exclusions", str(file)]
    assert main(check) == 0
    assert json.loads(file.read_text()) == {"images": {"COCO": [11]}}
    caplog.set_level(logging.INFO)
    assert main(training(data="refer", root=root, exclude=file, run_dir=run)) == 0
    assert "refcoco (unc) train: left out 1 expressions about 1 excluded images" in caplog.text
    assert "refcoco (unc) train: 4 expressions, 1 images" in caplog.text
    assert "refcoco (unc) val: 2 expressions, 1 images" in caplog.text
    assert json.loads((run / "options.json").read_text())["options"]["exclude"] == str(file)
    # A resumed run excludes the same images, with or without the option.
    caplog.clear()
    resume = training("--resume", run_dir=run)
    assert main(resume) == 0
    assert "left out 1 expressions about 1 excluded images" in caplog.text
    assert main([*resume, "--exclude", str(file)]) == 0
    assert "--exclude was" in failed(capsys, *resume, "--exclude", tmp_path / "other.json")
    written(file, COCO=[])
    assert "number of expressions" in failed(capsys, *resume)
    file.unlink()
    assert f"there is no JSON file at {file}" in failed(capsys, *resume)


def test_excluded_images_and_expressions_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = Source(form="refer", root=small_refcoco(tmp_path).write())
    whole = open_split(source, "train", for_training=True)
    assert (whole.report.excluded_expressions, whole.report.excluded_images) == (0, 0)
    exclude = read_exclusions(written(tmp_path / "out.json", COCO=[7, 99]))
    caplog.clear()
    rest = open_split(source, "train", for_training=True, exclude=exclude)
    assert rest.image_ids() == [11]
    assert rest.expressions() == ["man"]
    assert rest[0].image_id == 11
    report = rest.report
    assert (report.excluded_expressions, report.excluded_images) == (4, 1)
    assert (report.expressions, report.images, report.recorded_expressions) == (1, 1, 5)
    # Excluded expressions still count as part of the copy.
    assert "the files have 5 expressions" in caplog.text
    exclude = read_exclusions(written(tmp_path / "out.json", COCO=[7, 11]))
    with pytest.raises(ValueError, match=r"no usable expression.*excluded_images=2"):
        open_split(source, "train", exclude=exclude)


def test_numbers_of_another_collection_are_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layout = ReferLayout(tmp_path, "own")
    layout.add_image(7, 23, 37, "one.jpg")
    layout.add_image(8, 23, 37, "two.jpg")
    layout.add_reference(7, square(1, 1, 5), ["a cup"])
    layout.add_reference(8, square(1, 1, 5), ["a saucer"])
    source = Source(form="refer", root=layout.write(), name="own")
    data = open_split(source, "train", exclude={"COCO": [7], "refcocog (umd)": [8]})
    assert data.image_ids() == [7, 8]
    assert "no image is excluded: its images have numbers of own (unc)" in caplog.text
    assert "those to exclude are of COCO and refcocog (umd)" in caplog.text
    assert open_split(source, "train", exclude={"own (unc)": [7]}).image_ids() == [8]


def test_numbers_of_saiapr_are_not_numbers_of_coco(tmp_path: Path) -> None:
    layout = ReferLayout(tmp_path, "refclef", "unc", "images/saiapr_tc-12")
    for number in (7, 8):
        layout.add_image(number, 9, 7, f"{number}.jpg")
        layout.add_reference(number, [square(1, 1, 3)], ["it"], ann_id=f"{number}_1")
    source = Source(form="refer", root=layout.write(), name="refclef")
    assert open_split(source, "train", exclude={"SAIAPR TC-12": [7]}).image_ids() == [8]
    assert open_split(source, "train", exclude={"COCO": [7]}).image_ids() == [7, 8]


@pytest.mark.parametrize("key", ["images", "pictures"])
def test_read_exclusions(tmp_path: Path, key: str) -> None:
    """Files of earlier versions have the key "pictures"."""
    file = tmp_path / "out.json"
    file.write_text(json.dumps({key: {"COCO": [7, 11], "own (unc)": []}}))
    assert read_exclusions(file) == {"COCO": {7, 11}, "own (unc)": set()}


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[7, 11]",
        "{}",
        '{"images": [7]}',
        '{"images": {"COCO": 7}}',
        '{"images": {"COCO": ["7"]}}',
        '{"images": {"COCO": [true]}}',
        '{"images": {"COCO": [7.0]}}',
    ],
)
def test_invalid_file_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "out.json"
    file.write_text(content)
    with pytest.raises(ValueError, match="--write-exclusions` writes them") as caught:
        read_exclusions(file)
    assert str(file) in str(caught.value)


def test_refused_exclusions_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, run = written(tmp_path / "out.json", COCO=7), tmp_path / "run"
    line = failed(capsys, *training(exclude=file, run_dir=run))
    assert line == "--exclude cannot be used with --data scenes."
    root = small_refcoco(tmp_path / "data").write()
    assert str(file) in failed(capsys, *training(data="refer", root=root, exclude=file, run_dir=run))
    assert not run.exists()
