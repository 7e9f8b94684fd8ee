"""`cmsa-fast train` end to end: scenes, REFER data, validation, resuming, report."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from conftest import REPOSITORY
from PIL import Image
from support.refer_layout import ReferLayout, small_refcoco, square
from support.small_training import TINY, arguments

import cmsa_fast.cli.train as train_job
from cmsa_fast.cli import main
from cmsa_fast.cli.report import format_result
from cmsa_fast.cli.scenes import NO_WORD_ORDER, WORD_ORDER, scene_labels
from cmsa_fast.cli.train import Result, run_training
from cmsa_fast.cli.train_options import TrainOptions
from cmsa_fast.data.scenes.dataset import ScenesDataset
from cmsa_fast.evaluation.evaluate import Evaluation
from cmsa_fast.models.checkpoint import load_model
from cmsa_fast.models.released_cmsa import ReleasedCMSAModel
from cmsa_fast.training.loop import Progress
from cmsa_fast.training.state import STATE

QUICK: dict[str, Any] = {"size": 40, "steps": 1, "examples": 0}
FILES = [
    *("checkpoint.pt", "config.json", "evaluation.json", "examples", "metrics.jsonl", "model.safetensors"),
    *("options.json", "vocabulary.txt"),
]


def trained(folder: Path, **options: Any) -> Result:
    """`cmsa-fast train` with `TINY` and other options."""
    return run_training(TrainOptions(run_dir=folder, **(TINY | options)))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder)[0].state_dict()


def same_weights(first: Path, second: Path) -> bool:
    one, other = weights(first), weights(second)
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_scenes_from_the_command_line(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "train.py", *arguments(num_workers=1), f"--run-dir={folder}"]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert sorted(path.name for path in folder.iterdir()) == FILES
    for text in ("all expressions", "expressions shuffled", "overall IoU", f"everything is in {folder}"):
        assert text in done.stdout
    assert f"Look at {folder}/examples/overview.png" in done.stdout
    assert all(text in done.stderr for text in ("3/3", "loss=", "IoU=", "M parameters, on cpu"))
    assert "Traceback" not in done.stderr
    names = sorted(path.name for path in (folder / "examples").iterdir())
    assert names == ["000.png", "001.png", "002.png", "overview.png"]
    content = json.loads((folder / "evaluation.json").read_text())
    assert content["expressions"] == sum(count for kind, count in content["counts"].items() if "," not in kind)
    assert (content["expressions"], content["steps"]) == (10, 3)
    assert content["overall"].keys() == content["shuffled"].keys()
    assert load_model(folder)[1].size == 64


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "run"
    trained(folder)
    return folder


def test_seed_decides_the_weights(scenes: Path, tmp_path: Path) -> None:
    trained(tmp_path / "same")
    assert same_weights(scenes, tmp_path / "same")
    trained(tmp_path / "other", seed=1)
    assert not same_weights(scenes, tmp_path / "other")


def test_interrupted_run_is_resumed(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    usual, calls = train_job.Collate.__call__, count(1)

    def interrupted(self: Any, samples: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return usual(self, samples)

    with monkeypatch.context() as patch:
        patch.setattr(train_job.Collate, "__call__", interrupted)
        assert main(["train", *arguments(), f"--run-dir={tmp_path}"]) == 130
    assert f"Stopped at step 2 of 3; --run-dir {tmp_path} --resume continues." in caplog.text
    assert main(["train", f"--run-dir={tmp_path}", "--resume", "--num-workers=0"]) == 0
    assert same_weights(scenes, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES


def test_cmsa_released_from_the_command_line(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main(["train", *arguments(model="cmsa-released"), f"--run-dir={folder}"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert json.loads((folder / "options.json").read_text())["options"]["model"] == "cmsa-released"
    model, config = load_model(folder)
    assert isinstance(model, ReleasedCMSAModel)
    assert config.name == "cmsa-released"
    before = weights(folder)
    assert main(["train", f"--run-dir={folder}", "--resume", "--num-workers=0"]) == 0
    assert all(torch.equal(part, before[name]) for name, part in weights(folder).items())


@pytest.mark.parametrize("data", ["scenes", "refer"])
def test_validation_average_frozen_backbone_and_model_options(tmp_path: Path, data: str) -> None:
    folder = tmp_path / "run"
    command = ["train", *arguments(validate_every=2, validate_expressions=3, ema_decay=0.5)]
    if data == "refer":
        root = small_refcoco(tmp_path / "data").write()
        command += ["--data=refer", f"--root={root}", "--evaluate-split=train"]
    widths = ["--model-options", "narrow_widths=[8,8,8,8,8]"]
    assert main([*command, "--freeze-backbone", *widths, f"--run-dir={folder}"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, "last.safetensors"])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation" in line] == [2, 3]
    assert json.loads((folder / "evaluation.json").read_text())["best_step"] in (2, 3)
    model, config = load_model(folder)
    assert config.options["narrow_widths"] == [8] * 5
    assert config.options["freeze_backbone"] is True
    torch.manual_seed(0)
    initial = config.build().state_dict()
    changed = {name for name, part in model.state_dict().items() if not part.equal(initial[name])}
    assert {name.partition(".")[0] for name in changed} == {"attention", "fusion", "mask", "words"}
    assert main(["train", f"--run-dir={folder}", "--resume", "--num-workers=0"]) == 0


def test_default_folder_is_under_runs_and_long_warmup_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_training(TrainOptions(**(TINY | QUICK | {"size": 64, "warmup_steps": 5})))
    assert result.folder.resolve().parent == tmp_path / "runs"
    assert result.overview is None
    assert sorted([path.name for path in result.folder.iterdir()] + ["examples"]) == FILES
    assert "The learning rate only rises: --warmup-steps 5 is not less than --steps 1." in (caplog.messages)


def test_relations_are_labelled_by_word_order() -> None:
    data = ScenesDataset(40, split="val", size=64, expressions_per_scene=2)
    labels = scene_labels(data)
    assert labels is not None
    assert [kinds[0] for kinds in labels] == data.kinds()
    for index, kinds in enumerate(labels):
        if kinds[0] != "relation":
            assert len(kinds) == 1
        else:
            assert kinds[1:] == [WORD_ORDER if data.order_sensitive(index) else NO_WORD_ORDER]
    assert {WORD_ORDER, NO_WORD_ORDER} <= {kind for kinds in labels for kind in kinds}


METRICS = {"overall_iou": 0.5, "mean_iou": 0.4, **{f"precision@0.{tenth}": 0.25 for tenth in range(5, 10)}}
RESULT = Result(Path("runs/x"), Progress(7, 83.4), Evaluation(9, METRICS, {}, {}), None, None)


def test_the_report_says_what_word_order_costs() -> None:
    by_kind = {
        kind: {**METRICS, "overall_iou": iou}
        for kind, iou in {"relation": 0.3, NO_WORD_ORDER: 0.411, WORD_ORDER: 0.222}.items()
    }
    counts = {"relation": 9, NO_WORD_ORDER: 5, WORD_ORDER: 4}
    evaluation = replace(RESULT.evaluation, by_kind=by_kind, counts=counts)
    text = format_result(replace(RESULT, evaluation=evaluation, overview=Path("a.png")))
    rows = {line[:30].strip(): line[30:].split() for line in text.splitlines()}
    assert rows[WORD_ORDER][:2] == ["4", "22.20"]
    assert rows[NO_WORD_ORDER][:2] == ["5", "41.10"]
    flowing = " ".join(text.split())
    assert (
        "overall IoU 22.20 where the same words in another order name another object, 41.10 for other"
    ) in flowing
    assert text.splitlines()[-2:] == ["7 steps in 1 min 23 s; everything is in runs/x", "Look at a.png"]
    best = format_result(replace(RESULT, progress=Progress(7, 83.4, best_step=5)))
    assert "7 steps (evaluated: step 5, the best validation) in 1 min 23 s" in best


def test_the_report_without_kinds() -> None:
    text = format_result(RESULT)
    assert "word order" not in text
    assert "shuffled" not in text
    assert text.splitlines()[1].split() == [*("all", "expressions", "9", "50.00", "40.00"), *["25.00"] * 5]
    shuffled = Evaluation(9, {**METRICS, "mean_iou": 0.123}, {}, {})
    row = format_result(replace(RESULT, shuffled=shuffled)).splitlines()[2]
    assert row.split()[:5] == ["expressions", "shuffled", "9", "50.00", "12.30"]


def refer(root: Path) -> ReferLayout:
    layout = small_refcoco(root)
    layout.add_reference(11, [square(4, 4, 9)], [".", "man " + "very " * 24 + "tall"])
    layout.add_reference(13, [square(2, 2, 9)], ["grey dog " + "or wolf " * 12], split="val")
    return layout


def test_refer_data_end_to_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root, folder = refer(tmp_path / "data").write(), tmp_path / "run"
    with caplog.at_level(logging.INFO):
        result = trained(folder, data="refer", root=root, size=40, steps=4, num_workers=1)
    assert "refcoco (unc) train: left out 1 expressions without a word" in caplog.text
    assert "1 of 6 training expressions are longer than 20 words and are cut" in caplog.messages
    assert "1 of 3 evaluation expressions are longer than 20 words and are cut" in caplog.messages
    # dog, brown, dog, grey, dog, and "or wolf" nine times: the first 20 words of each expression.
    assert "23 words of evaluation expressions are not in the vocabulary" in caplog.messages
    assert not any("words of training" in message for message in caplog.messages)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert result.evaluation.expressions == 3
    assert result.evaluation.by_kind == {}
    assert result.shuffled is None  # one image only
    assert json.loads((folder / "evaluation.json").read_text())["shuffled"] is None
    tokens = load_model(folder)[1].tokens
    assert "café" in tokens
    assert "dog" not in tokens
    assert result.overview is not None
    with Image.open(result.overview) as image:
        assert image.width == 1600


def test_exit_status_is_3_if_evaluated_expressions_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = refer(tmp_path / "data")
    layout.references[4]["sentences"][0]["sent"] = None  # of training: in no metric anyway
    options = ["--data=refer", f"--root={layout.write()}", "--size=40", "--steps=1", "--examples=0"]
    assert main(["train", *arguments(), *options, f"--run-dir={tmp_path / 'complete'}"]) == 0
    assert "NOT EVALUATED" not in capsys.readouterr().out
    layout.references[-1]["sentences"][0]["sent"] = None
    layout.write()
    folder = tmp_path / "incomplete"
    assert main(["train", *arguments(), *options, f"--run-dir={folder}"]) == 3
    assert "1 expressions or more are in no figure (1 damaged records)." in capsys.readouterr().out
    assert json.loads((folder / "evaluation.json").read_text())["coverage"]["missing"] == 1
    assert main(["train", *arguments(), *options, f"--run-dir={tmp_path / 'strict'}", "--strict"]) == 1


def test_evaluation_is_kept_when_a_later_stage_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(train_job, "save_examples", Mock(side_effect=full))
    result = trained(tmp_path / "run")
    assert result.overview is None
    assert result.shuffled is not None
    assert "Not all example images could be drawn" in caplog.text
    content = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert content["shuffled"] == result.shuffled.overall
    monkeypatch.setattr(train_job, "ShuffledExpressions", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "other")
    again = json.loads((tmp_path / "other" / "evaluation.json").read_text())
    assert again["overall"] == content["overall"]
    assert again["shuffled"] is None


def test_vocabulary_file_and_control_with_shuffled_expressions(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("<pad>\n<go>\n<eos>\n<unk>\nleft\nright\ndog\n", encoding="utf-8")
    given = {"data": "refer", "root": small_refcoco(tmp_path / "data").write(), **QUICK}
    result = trained(tmp_path / "run", vocabulary=words, evaluate_split="train", **given)
    assert load_model(tmp_path / "run")[1].tokens[4:] == ("left", "right", "dog")
    # cup, café on the, man, cup, the other one
    assert "9 words of training expressions are not in the vocabulary" in caplog.messages
    assert "9 words of evaluation expressions are not in the vocabulary" in caplog.messages
    assert result.shuffled is not None
    assert result.shuffled.expressions == result.evaluation.expressions == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("checkpoint", "checkpoint.pt is not a readable checkpoint"),
        ("data", "another model, vocabulary or number of expressions"),
    ],
)
def test_failed_resume_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, message: str
) -> None:
    layout, folder = small_refcoco(tmp_path / "data"), tmp_path / "run"
    trained(folder, data="refer", root=layout.write(), **QUICK)
    if change == "checkpoint":
        state = (folder / STATE).read_bytes()
        (folder / STATE).write_bytes(state[: len(state) // 2])
    else:
        layout.references[1]["sentences"][0]["sent"] = "person"
        layout.write()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(["train", f"--run-dir={folder}", "--resume"]) == 1
    assert message in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_two_steps_on_real_photographs(real: Path, tmp_path: Path) -> None:
    result = trained(tmp_path / "run", data="refer", root=real / "refer", steps=2, examples=2)
    assert result.progress.step == 2
    assert result.evaluation.expressions == 19
    assert result.shuffled is not None
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == FILES
