"""`cmsa-fast evaluate`: a run, other data, a dense CRF, several processes, mistakes."""

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
import torch
from PIL import Image
from support.small_evaluation import content_of, evaluate_run
from torch import Tensor

import cmsa_fast
from cmsa_fast.cli import main
from cmsa_fast.cli.run_folder import read_options, write_options
from cmsa_fast.evaluation.crf_pool import RefinementPool
from cmsa_fast.evaluation.results import read_results
from cmsa_fast.evaluation.score import checksum

Capture = pytest.CaptureFixture[str]


def test_run_on_its_own_data(run: Path, capsys: Capture) -> None:
    assert evaluate_run(run, "--examples=6") == 0
    shown = capsys.readouterr().out
    assert "refcoco (unc) val, convention native" in shown
    folder = run / "evaluation-refer-val-native"
    content, results = content_of(folder), read_results(folder / "sentences.csv")
    assert [result.expression for result in results] == ["dog", "brown dog"]
    assert content["expressions"] == 2
    assert content["errors"] == []
    union = sum(result.union for result in results)
    overall = sum(result.intersection for result in results) / union
    assert content["overall"]["overall_iou"] == overall
    row = next(line.split() for line in shown.splitlines() if line.startswith("all expressions"))
    assert row[2:4] == ["2", f"{100 * overall:.2f}"]
    with Image.open(folder / "examples" / "overview.png") as sheet:
        assert sheet.width > 500
    # A second evaluation overwrites nothing.
    assert evaluate_run(run) == 0
    assert (run / "evaluation-refer-val-native-2" / "sentences.csv").is_file()
    assert not (run / "evaluation-refer-val-native-2" / "examples").exists()


def test_evaluation_file_says_what_was_evaluated_and_how(run: Path, capsys: Capture) -> None:
    assert evaluate_run(run) == 0
    folder = run / "evaluation-refer-val-native"
    content = content_of(folder)
    # Of a split with the published name, but not all of it.
    assert content["coverage"] == {
        "measured": 2,
        "published": 10834,
        "missing": 0,
        "unusable_records": 0,
        "without_words": 0,
        "unreadable": 0,
        "checksum": checksum(read_results(folder / "sentences.csv")),
    }
    assert "2 of the split's 10834 published expressions were evaluated" in capsys.readouterr().out
    assert content["versions"]["torch"] == torch.__version__
    assert content["versions"]["cmsa_fast"] == cmsa_fast.__version__
    assert content["options"]["split"] == "val"
    assert content["options"]["allow_missing"] is False


def test_other_split_convention_and_folder(run: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    command = ["evaluate", str(run / "model.safetensors"), "--split", "train", "--out", str(out)]
    assert main([*command, "--convention", "lavt", "--examples", "1"]) == 0
    assert "refcoco (unc) train, convention lavt" in capsys.readouterr().out
    results = read_results(out / "sentences.csv")
    assert len(results) == 5
    assert {result.convention for result in results} == {"lavt"}
    assert main([*command, "--convention", "lavt"]) == 1
    assert "never overwrites" in capsys.readouterr().err


def test_full_disk_reports_the_metrics(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def full(path: Path, content: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cmsa_fast.evaluation.results.write_results", full)
    assert evaluate_run(run) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "cmsa-fast:" in line]
    folder = run / "evaluation-refer-val-native"
    assert len(lines) == 1
    assert f"No space left on device Not all could be written to {folder}." in lines[0]
    assert not folder.exists()
    monkeypatch.undo()
    assert evaluate_run(run) == 0
    overall = content_of(folder)["overall"]
    assert f"overall_iou {overall['overall_iou']:.4f}, mean_iou" in lines[0]


def test_failed_drawing_keeps_the_report(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: object) -> Path:
        raise RuntimeError("Pillow was built without FreeType")

    monkeypatch.setattr("cmsa_fast.evaluation.visualization.save_examples", failing)
    assert evaluate_run(run, "--examples=6") == 0
    shown = capsys.readouterr().out
    assert "all expressions" in shown
    assert "Look at" not in shown
    assert "Not all example images could be drawn: Pillow was built without FreeType" in caplog.text
    assert (run / "evaluation-refer-val-native" / "evaluation.json").is_file()


def test_folder_is_created_before_the_evaluation(
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
    # An empty folder of the user is kept.
    (tmp_path / "own").mkdir()
    assert main(["evaluate", str(run), "--out", str(tmp_path / "own")]) == 130
    assert (tmp_path / "own").is_dir()
    (tmp_path / "file").write_text("")
    assert main(["evaluate", str(run), "--out", str(tmp_path / "file" / "out")]) == 1
    assert seen == [True, False]


def test_text_option_overrides_that_of_the_run(run: Path, capsys: Capture) -> None:
    assert evaluate_run(run, "--text=raw") == 0
    assert content_of(run / "evaluation-refer-val-native")["options"]["text"] == "raw"
    # Also for a run that was trained on the other text.
    started = read_options(run)
    write_options(run, replace(started, text="raw"))
    for given, read in (([], "raw"), (["--text=sent"], "sent")):
        out = run / f"out-{read}"
        assert evaluate_run(run, *given, f"--out={out}") == 0
        expressions = [one.expression for one in read_results(out / "sentences.csv")]
        assert (expressions[0] == "DOG") == (read == "raw")


def test_scenes(run: Path, capsys: Capture) -> None:
    assert evaluate_run(run, "--data=scenes", "--scenes=3") == 0
    assert "3 unseen scenes" in capsys.readouterr().out
    content = content_of(run / "evaluation-scenes-val-native")
    assert content["expressions"] == 6
    assert content["by_kind"]


needs_pydensecrf = pytest.mark.skipif(
    importlib.util.find_spec("pydensecrf") is None, reason="pydensecrf is not installed"
)


@needs_pydensecrf
@pytest.mark.parametrize("convention", ["native", "cmsa"])
def test_crf(run: Path, convention: str, capsys: Capture) -> None:
    options = f"--convention={convention}"
    assert evaluate_run(run, options, "--crf", "--crf-processes=1", "--examples=1") == 0
    assert evaluate_run(run, options) == 0
    refined = read_results(run / f"evaluation-refer-val-{convention}-crf" / "sentences.csv")
    plain = read_results(run / f"evaluation-refer-val-{convention}" / "sentences.csv")
    assert [one.true for one in refined] == [one.true for one in plain]
    assert len(refined) == 2


@needs_pydensecrf
def test_killed_process_of_the_crf_is_an_error(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    submit = RefinementPool.submit

    def killed(pool: RefinementPool, image: Tensor, probability: Tensor) -> Future[Tensor]:
        future = submit(pool, image, probability)
        for process in list(pool._executor._processes):
            os.kill(process, signal.SIGKILL)
        return future

    monkeypatch.setattr(RefinementPool, "submit", killed)
    assert evaluate_run(run, "--crf", "--crf-processes=1") == 1
    shown = capsys.readouterr().err
    assert "cmsa-fast: A process of the refinement pool ended before its work was done" in shown
    assert not (run / "evaluation-refer-val-native-crf").exists()


def test_without_the_crf_package(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    assert evaluate_run(run, "--crf") == 1
    assert "pip install" in capsys.readouterr().err
    assert not (run / "evaluation-refer-val-native-crf").exists()


MISTAKES = {
    "no run": (["evaluate", "{}/none"], "There is no run {}/none"),
    "no model": (["evaluate", "{}/data"], "There is no run {}/data: {}/data/model.safetensors"),
    "no data": (["evaluate", "{}/model.safetensors"], "has no options.json with the data of the run"),
    "no root": (["evaluate", "{}/run", "--data", "parquet"], "--data parquet needs --root"),
    "workers": (["evaluate", "{}/run", "--num-workers", "-1"], "--num-workers must be at least 0"),
    "batch": (["evaluate", "{}/run", "--images-per-batch", "0"], "must be at least 1; got 0"),
    "crf": (["evaluate", "{}/run", "--crf-processes", "2"], "--crf-processes needs --crf"),
    "split": (["evaluate", "{}/run", "--split", "testA"], "split 'testA' has no reference"),
    "device": (["evaluate", "{}/run", "--device", "abacus"], "--device abacus"),
    "out": (["evaluate", "{}/run", "--out", "{}/run/options.json"], "--out must be a folder"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_line(mistake: str, run: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    arguments, message = MISTAKES[mistake]
    assert main([argument.replace("{}", str(tmp_path)) for argument in arguments]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "cmsa-fast:" in line]
    assert len(lines) == 1
    assert message.replace("{}", str(tmp_path)) in lines[0]


def test_help_has_the_table_of_conventions(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for text in ("sum of I / sum of U", "lwye/CMSA-Net", "480x480", "p > 0.35"):
        assert text in shown


@pytest.mark.slow
def test_results_under_torchrun_are_identical(run: Path, tmp_path: Path) -> None:
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    common = ["-m", "cmsa_fast", "evaluate", str(run), "--split", "train", "--num-workers", "0", "--save-masks"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for name, start in (("one", []), ("two", torchrun)):
        command = [sys.executable, *start, *common, "--out", str(tmp_path / name)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("all expressions") == 1
    for file in ("sentences.csv", "masks.jsonl"):
        one, two = ((tmp_path / name / file).read_text() for name in ("one", "two"))
        assert len(one.splitlines()) >= 5
        assert one == two


def test_results_of_a_stopped_evaluation_are_kept(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import cmsa_fast.evaluation.evaluate as evaluation

    measured = evaluation.measure

    def stopped(index: int, *arguments: object) -> object:
        if index == 3:
            raise KeyboardInterrupt
        return measured(index, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluation, "measure", stopped)
    assert evaluate_run(run, "--split=train", "--images-per-batch=1") == 130
    folder = run / "evaluation-refer-train-native"
    # The expressions of an image are consecutive: the first image has 0, 1, 3 and 4.
    kept = read_results(folder / "sentences-so-far.csv")
    assert [result.index for result in kept] == [0, 1]
    assert "Stopped after 2 of 5 expressions" in caplog.text
    assert not (folder / "evaluation.json").exists()


def test_the_demo_is_evaluated_into_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "demo", "--data=scenes", "--scenes=4", "--examples=0", "--num-workers=0"]) == 0
    content = json.loads((tmp_path / "evaluation-scenes-val-native" / "evaluation.json").read_text())
    assert content["overall"]["overall_iou"] > 0.4
    assert main(["evaluate", "demo"]) == 1
    assert "demo has no options.json with the data of the run" in capsys.readouterr().err
