"""`cmsa-fast score`: the masks of an evaluation, of other models, and predictions that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.refer_layout import open_refer, small_refcoco, square
from support.small_evaluation import content_of, evaluate_run

from cmsa_fast.cli import main
from cmsa_fast.cli.scenes import evaluation_scenes
from cmsa_fast.evaluation.conventions import CONVENTIONS
from cmsa_fast.evaluation.mask_files import encode_mask, read_predictions
from cmsa_fast.evaluation.results import read_results

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return small_refcoco(tmp_path / "data").write()


@pytest.fixture
def masks(tmp_path: Path, data: Path) -> Path:
    """Predictions for the five expressions of the train split: the true masks, two pixels further right."""
    split = open_refer(data)
    path = tmp_path / "masks.jsonl"
    lines = [
        json.dumps({"sent_id": split[index].sent_id, "segmentation": encode_mask(split[index].mask.roll(2, 1))})
        for index in range(len(split))
    ]
    path.write_text("\n".join(lines))
    return path


def score(predictions: Path, root: Path, *options: str, split: str = "train") -> int:
    return main(["score", str(predictions), "--data=refer", f"--root={root}", f"--split={split}", *options])


def confident(run: Path) -> None:
    """Makes the untrained model predict masks that are neither empty nor full."""
    path = run / "model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    weights = load_file(path)
    weights["mask.weight"] *= 20
    save_file(weights, path, metadata)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_masks_of_an_evaluation_have_its_figures(
    run: Path, data: Path, tmp_path: Path, convention: str, capsys: Capture
) -> None:
    confident(run)
    evaluated, scored = tmp_path / "evaluated", tmp_path / "scored"
    options = ("--split=train", f"--convention={convention}")
    assert evaluate_run(run, *options, f"--out={evaluated}", "--save-masks") == 0
    assert score(evaluated / "masks.jsonl", data, f"--convention={convention}", f"--out={scored}") == 0
    results = read_results(evaluated / "sentences.csv")
    written = read_predictions(evaluated / "masks.jsonl")
    assert [(one.sent_id, one.ref_id) for one in written] == [(one.sent_id, one.ref_id) for one in results]
    assert len({one.predicted for one in results}) > 1
    assert (evaluated / "sentences.csv").read_bytes() == (scored / "sentences.csv").read_bytes()
    content, expected = content_of(scored)["conventions"], content_of(evaluated)
    assert list(content) == [convention]
    for name, value in content[convention].items():
        assert value == expected[name], name
    capsys.readouterr()
    assert main(["compare", str(evaluated), str(scored), "--resamples=10"]) == 0
    assert "better in 0 expressions, worse in 0, equal in 5" in capsys.readouterr().out


def test_every_convention_side_by_side(masks: Path, data: Path, capsys: Capture) -> None:
    assert score(masks, data) == 0
    shown = capsys.readouterr().out
    folder = masks.parent / "masks-score-refer-train"
    content = content_of(folder)
    names = list(CONVENTIONS)
    lines = shown.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[2:8] if line}
    for name in names:
        file = folder / ("sentences.csv" if name == "native" else f"sentences-{name}.csv")
        results = read_results(file)
        assert {one.convention for one in results} == {name}
        overall = content["conventions"][name]["overall"]["overall_iou"]
        assert overall == sum(one.intersection for one in results) / sum(one.union for one in results)
        assert rows[name][:2] == ["5", f"{100 * overall:.2f}"]
    assert any(line.startswith("1-2 words") for line in lines)
    assert content["predictions"] == {
        "path": str(masks),
        "predictions": 5,
        "missing": 0,
        "surplus": 0,
        "resized": 0,
        "emptied": 0,
    }
    assert content["title"] == "refcoco (unc) train"
    # A second time overwrites nothing.
    assert score(masks, data) == 0
    assert content_of(masks.parent / "masks-score-refer-train-2")["conventions"] == content["conventions"]


def test_png_folder(masks: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "png"
    folder.mkdir()
    split = open_refer(data)
    for index in range(len(split)):
        sample = split[index]
        pixels = sample.mask.roll(2, 1).numpy() * np.uint8(255)
        name = (str(sample.sent_id), f"{sample.ref_id}_{sample.sent_id}", f"{sample.ref_id}_{sample.expression}")
        Image.fromarray(pixels).save(folder / f"{name[index % 3]}.png")
    for predictions, out in ((masks, "a"), (folder, "b")):
        assert score(predictions, data, f"--out={tmp_path / out}") == 0
    for name in ("sentences.csv", "sentences-lavt.csv", "sentences-cris.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_refused_predictions_write_nothing(masks: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    lines = masks.read_text().splitlines()
    small = json.dumps({"sent_id": 0, "segmentation": encode_mask(torch.ones(8, 8).bool())})
    for content, message in (
        (lines[1:], "1 of 5 expressions have no prediction"),
        ([*lines, lines[3]], "1 expressions have several predictions: sent_id 3"),
        ([small, *lines[1:]], "1 predictions have another size"),
        ([lines[0][:40], *lines[1:]], "masks.jsonl: line 1 is not JSON"),
    ):
        masks.write_text("\n".join(content))
        assert score(masks, data, f"--out={tmp_path / 'out'}") == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cmsa-fast:")]
        assert message in line
        assert not (tmp_path / "out").exists()


def test_what_was_allowed_is_in_the_result(masks: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    lines = masks.read_text().splitlines()
    small = json.dumps({"sent_id": 0, "segmentation": encode_mask(torch.ones(2, 3).bool())})
    masks.write_text("\n".join([small, *lines[2:]]))
    options = ("--missing=empty", "--resize", "--min-pixels=7", f"--out={tmp_path / 'out'}")
    assert score(masks, data, *options) == 0
    shown = capsys.readouterr().out
    assert "1 expressions have no prediction and count as empty masks (--missing empty)." in shown
    assert "1 predictions of another size were resized to their image (--resize)." in shown
    assert "1 predictions have too few pixels and count as empty masks (--min-pixels)." in shown
    content = content_of(tmp_path / "out")
    counts = {name: content["predictions"][name] for name in ("missing", "resized", "emptied")}
    assert counts == {"missing": 1, "resized": 1, "emptied": 1}
    assert content["options"]["missing"] == "empty"
    assert content["options"]["resize"] is True
    results = read_results(tmp_path / "out" / "sentences.csv")
    assert [one.predicted for one in results] == [0, 0, 81, 49, 49]


def test_expressions_left_out_are_reported(masks: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    layout = small_refcoco(tmp_path / "data")
    layout.references[0]["sentences"][0]["sent"] = "."
    layout.write()
    assert score(masks, data) == 1
    assert "--allow-missing leaves out what cannot be used" in capsys.readouterr().err
    assert score(masks, data, "--allow-missing") == 3
    shown = capsys.readouterr().out
    assert "1 predictions are for expressions that were left out (--allow-missing)." in shown
    assert "1 expressions are in no figure (1 expressions without a word)." in shown


def test_expressions_that_name_nothing(tmp_path: Path, capsys: Capture) -> None:
    layout = small_refcoco(tmp_path / "data")
    layout.name = "grefcoco"
    for reference in layout.references:
        reference.update(no_target=False, ann_id=[reference["ann_id"]])
    layout.references[1].update(no_target=True, ann_id=[-1])
    root = layout.write()
    sizes = [(23, 37), (23, 37), (41, 29), (23, 37), (23, 37)]
    entries: list[dict[str, Any]] = []
    for sent_id, size in enumerate(sizes):
        mask = torch.zeros(size, dtype=torch.bool)
        mask[2:12, 3:13] = sent_id != 2
        mask[0, 0] = True
        entries.append({"sent_id": sent_id, "segmentation": encode_mask(mask)})
    path = tmp_path / "masks.json"
    path.write_text(json.dumps(entries))
    for options, accuracy in (((), "0.00"), (("--min-pixels=50",), "100.00")):
        command = ["score", str(path), "--data=grefcoco", f"--root={root}", "--split=train", *options]
        assert main(command) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        header = next(line for line in lines if line[:2] == ["count", "gIoU"])
        rows = lines[lines.index(header) + 1 :][: len(CONVENTIONS)]
        assert [row[0] for row in rows] == list(CONVENTIONS)
        assert {row[1 + header.index("N-acc")] for row in rows} == {accuracy}
        assert {row[1 + header.index("T-acc")] for row in rows} == {"100.00"}


def test_manifest_with_ignored_regions(tmp_path: Path, capsys: Capture) -> None:
    """As ReasonSeg has them; the images are not needed."""
    lines = [
        {
            "image": "a.jpg",
            "expression": "what can be eaten",
            "mask": [square(0, 0, 6)],
            "ignore": [square(4, 0, 4)],
        },
        {"image": "a.jpg", "expression": "what flies", "mask": None, "kind": "nothing"},
    ]
    manifest = tmp_path / "reason.jsonl"
    manifest.write_text(
        "\n".join(json.dumps({"split": "val", "height": 10, "width": 12, **line}) for line in lines)
    )
    predicted = torch.zeros(10, 12, dtype=torch.bool)
    predicted[:6, 2:10] = True
    runs = encode_mask(predicted)
    path = tmp_path / "masks.jsonl"
    named = [{"ref_id": 1, "expression": "What can be eaten"}, {"ref_id": 2, "expression": "what flies"}]
    path.write_text("\n".join(json.dumps({**name, "segmentation": runs}) for name in named))
    out = tmp_path / "out"
    assert main(["score", str(path), "--data=manifest", f"--root={manifest}", "--split=val", f"--out={out}"]) == 0
    first, second = read_results(out / "sentences.csv")
    # The object has 6 x 6 pixels, the prediction 8 x 6; both lose columns 4 to 7 of rows 0 to 3.
    assert (first.true, first.predicted, first.intersection) == (36 - 8, 48 - 16, 2 * 4 + 4 * 2)
    assert (second.true, second.predicted, second.kind) == (0, 48, "nothing")
    assert content_of(out)["conventions"]["native"]["generalized"]["N_acc"] == 0
    assert any(line.startswith("nothing ") for line in capsys.readouterr().out.splitlines())


def test_scenes(tmp_path: Path, capsys: Capture) -> None:
    scenes = evaluation_scenes(2, 64)
    path = tmp_path / "masks.jsonl"
    entries = [{"sent_id": index, "segmentation": encode_mask(scenes[index].mask)} for index in range(4)]
    path.write_text("\n".join(map(json.dumps, entries)))
    command = ["score", str(path), "--data=scenes", "--scenes=2", "--scene-size=64", f"--out={tmp_path / 'out'}"]
    assert main(command) == 0
    content = content_of(tmp_path / "out")["conventions"]
    assert content["native"]["overall"]["overall_iou"] == content["cmsa"]["overall"]["mean_iou"] == 1
    assert "2 unseen scenes" in capsys.readouterr().out


def test_options_that_do_not_fit(masks: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["score", str(masks), "--data=refer"]) == 1
    assert "--data refer needs --root" in capsys.readouterr().err
    assert score(tmp_path / "absent", tmp_path) == 1
    assert "There are no predictions at" in capsys.readouterr().err
    assert score(masks, tmp_path / "data", "--min-pixels=-1") == 1
    assert "--min-pixels must be at least 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["score", "--help"])
    assert "480x480, both stretched" in capsys.readouterr().out


def test_masks_of_a_stopped_evaluation_are_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cmsa_fast.evaluation.evaluate as evaluation

    measured = evaluation.measure

    def stopped(index: int, *arguments: Any) -> object:
        if index == 3:
            raise KeyboardInterrupt
        return measured(index, *arguments)

    monkeypatch.setattr(evaluation, "measure", stopped)
    assert evaluate_run(run, "--split=train", "--images-per-batch=1", "--save-masks") == 130
    folder = run / "evaluation-refer-train-native"
    kept = [json.loads(line) for line in (folder / "masks-so-far.jsonl").read_text().splitlines()]
    assert [entry["sent_id"] for entry in kept] == [0, 1]
    assert not (folder / "masks.jsonl").exists()
