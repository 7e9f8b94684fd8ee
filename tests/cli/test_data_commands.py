"""Tests of the data commands, and of training on the data that they produce."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.commands import failed, training
from support.faulty_server import Behaviour, FaultyServer, status, whole
from support.refer_layout import ReferLayout, small_refcoco, square, unpublished

from cmsa_fast.cli import main
from cmsa_fast.data.download import catalogue
from cmsa_fast.models.checkpoint import load_model

Capture = pytest.CaptureFixture[str]


def files_under(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# check


def test_check_of_an_intact_root(tmp_path: Path, capsys: Capture) -> None:
    root = unpublished(tmp_path / "data").write()
    before = files_under(root)
    report, exclusions = tmp_path / "all.json", tmp_path / "exclude.json"
    command = ["data", "check", str(root), "--json", str(report), "--num-workers", "0"]
    for _ in range(2):  # existing files are replaced
        assert main([*command, "--write-exclusions", str(exclusions), "--read-images"]) == 0
        assert "Nothing is missing or damaged; no warning." in capsys.readouterr().out
        assert json.loads(report.read_text())["ok"]
        assert json.loads(exclusions.read_text()) == {"images": {}}
    assert files_under(root) == before


def test_check_of_a_damaged_root_exits_with_1(tmp_path: Path, capsys: Capture) -> None:
    layout = unpublished(tmp_path)
    del layout.references[0]["sentences"]
    (layout.image_folder / layout.images[1]["file_name"]).unlink()
    assert main(["data", "check", str(layout.write()), "--num-workers", "0"]) == 1
    shown = capsys.readouterr()
    assert "Incomplete or damaged: 2 kinds of error" in shown.out
    assert "COCO_train2014_000000000011.jpg" in shown.out
    assert "reference 0 has no 'sentences'" in shown.out
    assert "cmsa-fast:" not in shown.err


def test_check_errors_are_one_line(tmp_path: Path, capsys: Capture) -> None:
    root = unpublished(tmp_path / "data").write()
    missing = tmp_path / "none"
    assert f"there is no folder {missing}" in failed(capsys, "data", "check", missing)
    for option, name in (("--json", "json"), ("--write-exclusions", "write_exclusions")):
        line = failed(capsys, "data", "check", root, option, missing / "file")
        assert f"there is no folder {missing} ({name})" in line
    line = failed(capsys, "data", "check", root, "--num-workers", "-1")
    assert line == "--num-workers must be at least 0; got -1."


# download


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with FaultyServer() as running:
        yield running


def publish(server: FaultyServer, monkeypatch: pytest.MonkeyPatch, behaviour: Behaviour) -> None:
    """Makes the server the published source of RefCOCO's annotations."""
    url = server.add("/refcoco.zip", behaviour)
    file = catalogue.RemoteFile(name="refcoco.zip", url=url)
    collection = replace(catalogue.CATALOGUE["refcoco"], files=(file,))
    known = {**catalogue.CATALOGUE, "refcoco": collection}
    monkeypatch.setattr(catalogue, "CATALOGUE", known)


def archive(root: Path) -> bytes:
    """The annotations under a root, zipped like the published archives."""
    return Path(shutil.make_archive(str(root), "zip", root, "refcoco")).read_bytes()


def test_download_check_convert_train(
    tmp_path: Path, server: FaultyServer, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    layout = small_refcoco(tmp_path / "theirs")
    publish(server, monkeypatch, whole(archive(layout.write())))
    root, copy = tmp_path / "data", tmp_path / "copy.parquet"
    download = ["data", "download", "refcoco", "--root", str(root)]
    assert main([*download, "--dry-run"]) == 0
    assert "Nothing was downloaded" in capsys.readouterr().out
    assert not root.exists()
    assert main(download) == 0
    assert "The images are missing: cmsa-fast data download" in (capsys.readouterr().out)
    images = root / "train2014" / "photos"
    images.parent.mkdir()
    layout.image_folder.rename(images)
    assert main(["data", "check", str(root), "--num-workers=0", f"--image-dir={images}"]) == 0
    convert = ["data", "convert", "--root", str(root), "--image-dir", str(images)]
    assert main([*convert, "--to", str(copy), "--copy-images"]) == 0
    assert f"refcoco (unc) is now in {copy}" in capsys.readouterr().out

    original = {"data": "refer", "root": root, "image_dir": images}
    assert main(training(run_dir=tmp_path / "first", **original)) == 0
    assert main(training(run_dir=tmp_path / "second", data="converted", root=copy)) == 0
    assert "all expressions       2" in capsys.readouterr().out
    first, second = (load_model(tmp_path / name)[0].state_dict() for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    overall = [
        json.loads((tmp_path / name / "evaluation.json").read_text())["overall"] for name in ("first", "second")
    ]
    assert overall[0] == overall[1]


def test_download_errors_are_one_line(
    tmp_path: Path, server: FaultyServer, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    publish(server, monkeypatch, status(404))
    root = tmp_path / "data"
    command = ("data", "download", "refcoco", "--root", root)
    line = failed(capsys, *command)
    assert "refcoco.zip cannot be downloaded from http://127.0.0.1" in line
    assert "HTTP Error 404" in line
    assert not files_under(root)
    line = failed(capsys, *command, "--mirror", "file:///etc")
    assert "mirror must be an http or https URL" in line
    (tmp_path / "file").touch()
    line = failed(capsys, "data", "download", "refcoco", "--root", tmp_path / "file")
    assert "root must be a folder" in line


# convert


def test_convert_never_overwrites(tmp_path: Path, capsys: Capture) -> None:
    root, copy = unpublished(tmp_path / "data").write(), tmp_path / "copy.parquet"
    command = ["data", "convert", "--root", str(root), "--name", "own", "--to", str(copy)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "train        2 expressions in 1 records" in shown
    assert f"Images stay in {root / 'images'}" in shown
    before = copy.read_bytes()
    assert "exists and is never overwritten" in failed(capsys, *command)
    assert copy.read_bytes() == before
    line = failed(capsys, *command[:-1], tmp_path / "folder")
    assert "to must be a file name that ends in .parquet" in line
    val = str(tmp_path / "val.parquet")
    assert main([*command[:-1], val, "--splits", "val", "--text", "raw"]) == 0
    assert "  train " not in capsys.readouterr().out


def test_convert_errors_are_one_line_and_leave_nothing(tmp_path: Path, capsys: Capture) -> None:
    layout = unpublished(tmp_path / "data")
    del layout.references[0]["ref_id"]
    root, copy = layout.write(), tmp_path / "copy.parquet"
    command = ("data", "convert", "--root", root, "--name", "own", "--to", copy)
    assert "reference 0 has no 'ref_id'" in failed(capsys, *command, "--strict")
    assert "split 'testA' has no reference" in failed(capsys, *command, "--splits", "testA")
    line = failed(capsys, *command, "--splits", "train")
    assert "; 1 records could not be used, the first: " in line
    assert "no folder" in failed(capsys, *command, "--image-dir", tmp_path / "none")
    assert "there is no folder" in failed(capsys, *command, "--root", tmp_path / "none")
    file = root / "own" / "refs(unc).p"
    file.write_bytes(file.read_bytes()[:-9])
    assert str(file) in failed(capsys, *command)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["erase"],
        ["check"],
        ["download", "imagenet"],
        ["convert", "--root", "x"],
    ],
)
def test_usage_errors_exit_with_2(words: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["data", *words])
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_convert_needs_a_root_unless_it_draws_scenes(capsys: Capture) -> None:
    assert "--data refer needs --root" in failed(capsys, "data", "convert", "--to", "x.parquet")
    command = ("data", "convert", "--to", "x.parquet", "--data", "scenes")
    assert "--root cannot be used with --data scenes" in failed(capsys, *command, "--root", "x")
    assert failed(capsys, *command, "--scenes", 0) == "--scenes must be at least 1; got 0."


# training on other forms and on damaged data


def grefcoco(root: Path) -> Path:
    """References to two objects, one object and no object."""
    layout = ReferLayout(root, "grefcoco")
    layout.add_image(7, 23, 37)
    layout.add_image(11, 41, 29)
    for image, split in ((7, "train"), (7, "train"), (11, "train"), (11, "val"), (7, "val")):
        layout.add_reference(image, square(2, 3, 9), ["two cups", "the cup"], split)
    for reference in layout.references:
        reference.update(ann_id=[reference["ann_id"]], no_target=False)
    layout.references[0]["ann_id"].append(layout.references[1]["ann_id"][0])
    for place in (2, 4):
        layout.references[place].update(ann_id=[-1], no_target=True)
    return layout.write()


def test_training_on_grefcoco_and_its_copy(tmp_path: Path, capsys: Capture) -> None:
    root, copy = grefcoco(tmp_path / "data"), tmp_path / "copy.parquet"
    convert = ["data", "convert", "--data=grefcoco", f"--root={root}", f"--to={copy}"]
    assert main(convert) == 0
    for form, folder in (("grefcoco", root), ("converted", copy)):
        assert main(training(run_dir=tmp_path / form, data=form, root=folder)) == 0
        assert "Some expressions name nothing in their image" in capsys.readouterr().out
    evaluations = [
        json.loads((tmp_path / form / "evaluation.json").read_text()) for form in ("grefcoco", "converted")
    ]
    assert evaluations[0]["expressions"] == 4
    for key in ("overall", "generalized", "errors"):
        assert evaluations[0][key] == evaluations[1][key]


@pytest.mark.parametrize("workers", [0, 1])
def test_training_with_a_missing_image(tmp_path: Path, capsys: Capture, workers: int) -> None:
    layout = small_refcoco(tmp_path / "data")
    root = layout.write()
    (layout.image_folder / "COCO_train2014_000000000011.jpg").unlink()
    options = {"data": "refer", "root": root, "steps": 9, "num_workers": workers}
    # An epoch has two steps; the step of the missing image has no usable expression.
    assert main(training(run_dir=tmp_path / "run", **options)) == 0
    shown = capsys.readouterr().out
    assert "1 records or images could not be used and were left out:" in shown
    assert "there is no image COCO_train2014_000000000011.jpg in" in shown
    content = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert content["steps"] == 9
    assert len(content["errors"]) == 1
    line = failed(capsys, *training("--strict", run_dir=tmp_path / "strict", **options))
    assert "instances.json: annotation 1101: there is no image COCO_train2014_000000000011.jpg in" in line
    assert "DataLoader" not in line


@pytest.mark.parametrize("steps", [3, 99])
def test_training_without_any_usable_image(tmp_path: Path, capsys: Capture, steps: int) -> None:
    layout = small_refcoco(tmp_path / "data")
    root = layout.write()
    for number in (7, 11):
        (layout.image_folder / f"COCO_train2014_{number:012d}.jpg").unlink()
    run = tmp_path / "run"
    line = failed(capsys, *training(data="refer", root=root, steps=steps, run_dir=run))
    # Two epochs of two images each.
    assert line.startswith(f"None of the expressions of {min(steps, 4)} consecutive steps could be used")
