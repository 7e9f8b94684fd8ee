"""`--data manifest` in every command, and the figures of a manifest beside those of its original."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli.test_score import confident
from data.formats.test_grefcoco import GrefLayout
from support.commands import failed, training
from support.refer_layout import small_refcoco, square
from support.small_evaluation import content_of, evaluate_run

from cmsa_fast.cli import main
from cmsa_fast.evaluation.results import read_results

Capture = pytest.CaptureFixture[str]


def make_manifest(root: Path, to: Path, *options: str) -> Path:
    assert main(["data", "convert", f"--root={root}", f"--to={to}", *options]) == 0
    return to


def test_evaluation_and_score_of_a_manifest_and_its_original(run: Path, tmp_path: Path) -> None:
    confident(run)
    root = tmp_path / "data"
    file = make_manifest(root, tmp_path / "own.jsonl", "--copy-images")
    masks = []
    for data, folder in (("refer", root), ("manifest", file)):
        options = (f"--data={data}", f"--root={folder}", "--split=train", "--save-masks")
        assert evaluate_run(run, *options, f"--out={tmp_path / data}") == 0
        masks.append((tmp_path / data / "masks.jsonl").read_bytes())
    assert masks[0] == masks[1]
    original, own = content_of(tmp_path / "refer"), content_of(tmp_path / "manifest")
    for key in ("overall", "by_length", "by_size", "expressions"):
        assert original[key] == own[key]
    assert original["coverage"]["checksum"] == own["coverage"]["checksum"]
    first, second = (read_results(tmp_path / data / "sentences.csv") for data in ("refer", "manifest"))
    assert first == second
    predictions = tmp_path / "refer" / "masks.jsonl"
    command = ["score", str(predictions), "--data=manifest", f"--root={file}", "--split=train"]
    assert main([*command, "--convention=native", f"--out={tmp_path / 'scored'}"]) == 0
    assert content_of(tmp_path / "scored")["conventions"]["native"]["overall"] == own["overall"]
    assert len({result.predicted for result in first}) > 1
    command = ["compare", str(tmp_path / "refer"), str(tmp_path / "manifest"), "--resamples=10"]
    assert main(command) == 0


def test_training_on_a_manifest_and_its_original(tmp_path: Path) -> None:
    layout = GrefLayout(tmp_path / "data")
    layout.refer([1101, 1102], "both cups")
    layout.refer([-1], "the horse", "a dog")
    layout.refer([1103], "plate", image_id=9)
    layout.refer([1103], "plate", split="val", image_id=9)
    layout.refer([-1], "fork", split="val")
    root = layout.write()
    file = make_manifest(root, tmp_path / "own.jsonl", "--data=grefcoco")
    runs: list[dict[str, Any]] = []
    for data, folder in (("grefcoco", root), ("manifest", file)):
        assert main(training(run_dir=tmp_path / data, data=data, root=folder)) == 0
        runs.append(content_of(tmp_path / data))
    for key in ("overall", "generalized", "expressions"):
        assert runs[0][key] == runs[1][key]
    weights = [(tmp_path / data / "metrics.jsonl").read_text().splitlines() for data in ("grefcoco", "manifest")]
    losses = [[json.loads(line).get("loss") for line in lines] for lines in weights]
    assert losses[0] == losses[1]


def test_negative_expressions_have_the_metrics_of_r_refcoco(run: Path, tmp_path: Path, capsys: Capture) -> None:
    confident(run)
    image = str(next((tmp_path / "data" / "images").rglob("*7.jpg")))
    lines = [
        {"image": image, "expression": "left cup", "mask": [square(3, 2, 10)], "split": "val", "ref_id": 1},
        {"image": image, "expression": "other dog", "mask": None, "split": "val", "ref_id": 1},
        {"image": image, "expression": "right one", "mask": [square(20, 3, 7)], "split": "val", "ref_id": 2},
    ]
    file = tmp_path / "negative.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    assert evaluate_run(run, "--data=manifest", f"--root={file}", f"--out={tmp_path / 'out'}") == 0
    results = read_results(tmp_path / "out" / "sentences.csv")
    assert [result.names_nothing for result in results] == [False, True, False]
    positive, negative, _ = results
    robust = content_of(tmp_path / "out")["robust"]
    assert robust["references"] == 1
    assert robust["mRR"] == float(negative.predicted == 0)
    assert robust["rIoU"] == positive.intersection / (positive.union + negative.predicted)
    assert "As for R-RefCOCO, over 1 objects with negative expressions: mRR" in capsys.readouterr().out


def test_words_for_the_name_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    root = small_refcoco(tmp_path / "data").write()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for word in ("manifest", "parquet"):
        make_manifest(root, Path(word))
    assert main(["data", "convert", "--data=scenes", "--to=manifest", "--scenes=1", "--size=64"]) == 0
    assert "3 images are in a folder beside it." in capsys.readouterr().out
    there = sorted(path.name for path in Path.cwd().iterdir())
    assert there == ["refcoco.jsonl", "refcoco.parquet", "scenes-images", "scenes.jsonl"]
    assert main(["data", "check", "scenes.jsonl", "--num-workers=0"]) == 0
    assert "3 images checked" in capsys.readouterr().out
    line = failed(capsys, "data", "convert", "--root", root, "--to", "manifest")
    assert "refcoco.jsonl exists and is never overwritten" in line
    line = failed(capsys, "data", "convert", "--root", root, "--to", "json")
    assert "to must be a file name that ends in .parquet or .jsonl, not json" in line


def test_errors_name_the_line(run: Path, tmp_path: Path, capsys: Capture) -> None:
    file = make_manifest(tmp_path / "data", tmp_path / "own.jsonl")
    lines = file.read_text().splitlines()
    lines[1] = lines[1].replace('"mask"', '"segmentation"')
    file.write_text("\n".join(lines))
    command = ("evaluate", run, "--data=manifest", f"--root={file}", "--split=train")
    assert f"{file}: line 2 has the unknown key 'segmentation'" in failed(capsys, *command)
    assert "--data manifest needs --root" in failed(capsys, "evaluate", run, "--data=manifest")
