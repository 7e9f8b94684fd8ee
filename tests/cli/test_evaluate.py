"""`cmsa-fast evaluate` as a user runs it: on a run, on other data, with a CRF, in several processes."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from support.refer_layout import small_refcoco
from support.small_training import OPTIONS
from torch import Tensor

from cmsa_fast.cli import main
from cmsa_fast.cli.run_folder import read_options, write_options
from cmsa_fast.cli.train_options import TrainOptions
from cmsa_fast.data.vocabulary import Vocabulary
from cmsa_fast.evaluation.crf import RefinementPool
from cmsa_fast.evaluation.results import read_results
from cmsa_fast.models.checkpoint import ModelConfig, save_model

Capture = pytest.CaptureFixture[str]
WORDS = ["left cup", "man right other one", "dog brown"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder on a small data set in the layout of REFER, with an untrained model."""
    folder = tmp_path / "run"
    folder.mkdir()
    root = small_refcoco(tmp_path / "data").write()
    vocabulary = Vocabulary.from_expressions(WORDS)
    options = {**OPTIONS, "vocabulary_size": len(vocabulary)}
    config = ModelConfig("cmsa", options, vocabulary.tokens, 64, 20)
    save_model(folder / "model.safetensors", config.build(), config)
    write_options(folder, TrainOptions(data="refer", root=root, evaluate_split="val"))
    return folder


def test_a_run_on_its_own_data(run: Path, capsys: Capture) -> None:
    assert main(["evaluate", str(run), "--num-workers", "0"]) == 0
    shown = capsys.readouterr().out
    assert "refcoco (unc) val, convention native" in shown
    assert "all expressions" in shown
    folder = run / "evaluation-refer-val-native"
    content = json.loads((folder / "evaluation.json").read_text())
    results = read_results(folder / "sentences.csv")
    assert [result.expression for result in results] == ["dog", "brown dog"]
    assert content["sentences"] == 2
    assert content["problems"] == []
    union = sum(result.union for result in results)
    overall = sum(result.intersection for result in results) / union
    assert content["overall"]["overall_iou"] == overall
    assert f"{overall:.3f}" in shown
    with Image.open(folder / "examples" / "overview.png") as sheet:
        assert sheet.width > 500
    # Once more: nothing is overwritten.
    assert main(["evaluate", str(run), "--num-workers", "0", "--examples", "0"]) == 0
    assert (run / "evaluation-refer-val-native-2" / "sentences.csv").is_file()
    assert not (run / "evaluation-refer-val-native-2" / "examples").exists()


def test_other_splits_conventions_and_folders(run: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    command = ["evaluate", str(run / "model.safetensors"), "--split", "train", "--out", str(out)]
    assert main([*command, "--convention", "lavt", "--examples", "1"]) == 0
    assert "refcoco (unc) train, convention lavt" in capsys.readouterr().out
    results = read_results(out / "sentences.csv")
    assert len(results) == 5
    assert {result.convention for result in results} == {"lavt"}
    assert main([*command, "--convention", "lavt"]) == 1
    assert "never overwrites" in capsys.readouterr().err


def test_a_full_disk_does_not_cost_the_figures(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def full(path: Path, content: object) -> None:
        raise OSError(28, "No space left on device")

    command = ["evaluate", str(run), "--num-workers", "0", "--examples", "0"]
    monkeypatch.setattr("cmsa_fast.evaluation.results.write_results", full)
    assert main(command) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "cmsa-fast:" in line]
    folder = run / "evaluation-refer-val-native"
    assert len(lines) == 1
    assert f"No space left on device Not all could be written to {folder}." in lines[0]
    assert not folder.exists()
    monkeypatch.undo()
    assert main(command) == 0
    overall = json.loads((folder / "evaluation.json").read_text())["overall"]
    assert f"overall_iou {overall['overall_iou']:.4f}, mean_iou" in lines[0]


def test_images_that_cannot_be_drawn_do_not_cost_the_table(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: object) -> Path:
        raise RuntimeError("Pillow was built without FreeType")

    monkeypatch.setattr("cmsa_fast.evaluation.examples.save_examples", failing)
    assert main(["evaluate", str(run), "--num-workers", "0"]) == 0
    shown = capsys.readouterr().out
    assert "all expressions" in shown
    assert "Look at" not in shown
    assert "Not all images could be drawn: Pillow was built without FreeType" in caplog.text
    assert (run / "evaluation-refer-val-native" / "evaluation.json").is_file()


def test_the_folder_is_there_before_the_work_begins(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    seen: list[bool] = []

    def stopped(*_: object, **__: object) -> None:
        seen.append((run / "evaluation-refer-val-native").is_dir())
        raise KeyboardInterrupt

    monkeypatch.setattr("cmsa_fast.evaluation.evaluate.evaluate", stopped)
    assert main(["evaluate", str(run)]) == 130
    assert seen == [True]
    assert not (run / "evaluation-refer-val-native").exists()
    # An empty folder of the user's own stays.
    (tmp_path / "own").mkdir()
    assert main(["evaluate", str(run), "--out", str(tmp_path / "own")]) == 130
    assert (tmp_path / "own").is_dir()
    (tmp_path / "file").write_text("")
    assert main(["evaluate", str(run), "--out", str(tmp_path / "file" / "out")]) == 1
    assert seen == [True, False]


def test_the_text_that_is_asked_for_is_read(run: Path, capsys: Capture) -> None:
    common = ["evaluate", str(run), "--num-workers", "0", "--examples", "0"]
    assert main([*common, "--text", "raw"]) == 0
    content = json.loads((run / "evaluation-refer-val-native" / "evaluation.json").read_text())
    assert content["options"]["text"] == "raw"
    # Of a run that was trained on the other writing, too.
    started = read_options(run)
    write_options(run, replace(started, text="raw"))
    for given, read in (([], "raw"), (["--text", "sent"], "sent")):
        out = run / f"out-{read}"
        assert main([*common, *given, "--out", str(out)]) == 0
        expressions = [one.expression for one in read_results(out / "sentences.csv")]
        assert (expressions[0] == "DOG") == (read == "raw")


def test_scenes(run: Path, capsys: Capture) -> None:
    assert main(["evaluate", str(run), "--data", "scenes", "--scenes", "3", "--examples", "0"]) == 0
    assert "3 unseen scenes" in capsys.readouterr().out
    content = json.loads((run / "evaluation-scenes-val-native" / "evaluation.json").read_text())
    assert content["sentences"] == 6
    assert content["by_kind"]


def test_a_vanished_image_is_told_at_the_end(run: Path, tmp_path: Path, capsys: Capture) -> None:
    images = tmp_path / "data/images/mscoco/images/train2014"
    (images / "COCO_train2014_000000000011.jpg").unlink()
    (images / "COCO_train2014_000000000007.jpg").write_bytes(b"")
    command = ["evaluate", str(run), "--split", "train", "--num-workers", "0"]
    assert main([*command, "--strict"]) == 1
    assert "COCO_train2014" in capsys.readouterr().err
    assert not (run / "evaluation-refer-train-native").exists()
    assert main(command) == 1
    assert "None of the 5 expressions can be evaluated" in capsys.readouterr().err
    small_refcoco(tmp_path / "data")  # writes all images anew
    (images / "COCO_train2014_000000000011.jpg").unlink()
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "1 records or images could not be used" in shown
    assert "Expressions of the split that are in no figure: 1." in shown
    assert "000000000011.jpg" in shown
    content = json.loads((run / "evaluation-refer-train-native" / "evaluation.json").read_text())
    assert content["unusable"] == len(content["problems"]) == 1
    assert content["sentences"] == 4


@pytest.mark.skipif(
    importlib.util.find_spec("pydensecrf") is None, reason="pydensecrf is not installed"
)
@pytest.mark.parametrize("convention", ["native", "cmsa"])
def test_with_a_crf(run: Path, convention: str, capsys: Capture) -> None:
    command = ["evaluate", str(run), "--convention", convention, "--examples", "1"]
    assert main([*command, "--crf", "--crf-processes", "1"]) == 0
    assert main(command) == 0
    refined = read_results(run / f"evaluation-refer-val-{convention}-crf" / "sentences.csv")
    plain = read_results(run / f"evaluation-refer-val-{convention}" / "sentences.csv")
    assert [one.true for one in refined] == [one.true for one in plain]
    assert len(refined) == 2


@pytest.mark.skipif(
    importlib.util.find_spec("pydensecrf") is None, reason="pydensecrf is not installed"
)
def test_a_killed_process_of_the_crf_is_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    submit = RefinementPool.submit

    def killed(pool: RefinementPool, image: Tensor, probability: Tensor) -> Future[Tensor]:
        future = submit(pool, image, probability)
        for process in list(pool._executor._processes):
            os.kill(process, signal.SIGKILL)
        return future

    monkeypatch.setattr(RefinementPool, "submit", killed)
    assert main(["evaluate", str(run), "--crf", "--crf-processes", "1", "--num-workers", "0"]) == 1
    shown = capsys.readouterr().err
    assert "cmsa-fast: A process of the refinement pool ended before its work was done" in shown
    assert not (run / "evaluation-refer-val-native-crf").exists()


def test_without_the_crf_package(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    assert main(["evaluate", str(run), "--crf"]) == 1
    assert "pip install" in capsys.readouterr().err
    assert not (run / "evaluation-refer-val-native-crf").exists()


MISTAKES = {
    "no run": (["evaluate", "{}/none"], "none"),
    "no data": (["evaluate", "{}/lone.safetensors"], "does not say what data"),
    "no root": (["evaluate", "{}/run", "--data", "parquet"], "--data parquet needs --root"),
    "workers": (["evaluate", "{}/run", "--num-workers", "-1"], "--num-workers must be at least 0"),
    "batch": (["evaluate", "{}/run", "--images-per-batch", "0"], "must be at least 1; got 0"),
    "crf": (["evaluate", "{}/run", "--crf-processes", "2"], "--crf-processes goes with --crf"),
    "split": (["evaluate", "{}/run", "--split", "testA"], "split 'testA' has no reference"),
    "device": (["evaluate", "{}/run", "--device", "abacus"], "--device abacus"),
    "out": (["evaluate", "{}/run", "--out", "{}/run/options.json"], "--out must be a folder"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_is_one_line(
    mistake: str, run: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "lone.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    arguments, message = MISTAKES[mistake]
    assert main([argument.format(tmp_path) for argument in arguments]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "cmsa-fast:" in line]
    assert len(lines) == 1
    assert message in lines[0]


def test_help_has_the_table_of_conventions(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for text in ("sum of I / sum of U", "lwye/CMSA-Net", "480x480", "p > 0.35"):
        assert text in shown


@pytest.mark.slow
def test_under_torchrun_the_results_are_the_same(run: Path, tmp_path: Path) -> None:
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    common = ["-m", "cmsa_fast", "evaluate", str(run), "--split", "train", "--num-workers", "0"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for name, start in (("one", []), ("two", torchrun)):
        command = [sys.executable, *start, *common, "--out", str(tmp_path / name)]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("all expressions") == 1
    one, two = ((tmp_path / name / "sentences.csv").read_text() for name in ("one", "two"))
    assert one == two


def test_what_was_measured_is_kept_when_it_is_stopped(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import cmsa_fast.evaluation.evaluate as evaluation

    measured = evaluation._result

    def stopped(index: int, *arguments: object) -> object:
        if index == 3:
            raise KeyboardInterrupt
        return measured(index, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluation, "_result", stopped)
    command = ["evaluate", str(run), "--split", "train", "--num-workers", "0"]
    assert main([*command, "--images-per-batch", "1"]) == 130
    folder = run / "evaluation-refer-train-native"
    # Images come whole: the first one has the expressions 0, 1, 3 and 4.
    kept = read_results(folder / "sentences-so-far.csv")
    assert [result.index for result in kept] == [0, 1]
    assert "Stopped after 2 of 5 expressions" in caplog.text
    assert not (folder / "evaluation.json").exists()
