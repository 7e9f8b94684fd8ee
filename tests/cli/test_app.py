"""The command line: --help, exit statuses, one-line error messages."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from unittest.mock import Mock

import pytest
from conftest import REPOSITORY
from support.refer_layout import small_refcoco
from support.small_training import arguments

import cmsa_fast.cli.train as train_job
from cmsa_fast.cli import main
from cmsa_fast.cli.train_options import TrainOptions
from cmsa_fast.training.recipe import PRESETS, Recipe

Capture = pytest.CaptureFixture[str]


def help_of(command: list[str]) -> str:
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True)
    assert not done.stderr
    return done.stdout


def entries(shown: str) -> dict[str, str]:
    """Option -> description, parsed from the output of --help."""
    plain = " ".join(line.strip(" │╭╮╰╯─") for line in shown.splitlines())
    parts = re.split(r" (--[a-z-]+(?= ))(?= (?:[A-Z]{3,5}|\{[a-z0-9,-]+\}| ))", " " + plain)
    found: dict[str, str] = {}
    for option, text in zip(parts[1::2], parts[2::2], strict=True):
        found.setdefault(option, " ".join(text.split()))
    return found


@pytest.fixture(scope="module")
def shown() -> str:
    return help_of([sys.executable, "train.py", "--help"])


def test_train_py_and_cmsa_fast_have_the_same_help(shown: str) -> None:
    code = "import sys; from cmsa_fast.cli import main; sys.exit(main(['train', '--help']))"
    assert help_of([sys.executable, "-c", code]) == shown


def test_help_describes_every_option(shown: str) -> None:
    found = entries(shown)
    for field in fields(TrainOptions):
        option = "--" + field.name.replace("_", "-")
        assert option in found, option
        text = re.sub(r"\(default: [^)]*\)", "", found[option])
        assert len(text.split()) >= 4, (option, text)
    assert "Train a referring segmentation model" in shown
    assert "synthetic scenes" in shown


def test_help_shows_the_values_of_both_presets(shown: str) -> None:
    found = entries(shown)
    for field in fields(Recipe):
        demo, paper = (getattr(PRESETS[name], field.name) for name in ("demo", "paper"))
        option = "--" + field.name.replace("_", "-")
        assert found[option].endswith(f"(default: demo {demo}, paper {paper})"), found[option]
    assert "None" not in shown


@pytest.mark.parametrize("command", ["train", "evaluate", "score"])
def test_help_has_no_premature_line_breaks(command: str) -> None:
    shown = help_of([sys.executable, "-m", "cmsa_fast", command, "--help"])
    lines = [line.strip("│").rstrip() for line in shown.splitlines() if line.startswith("│")]
    width = max(len(line) for line in lines)
    pairs = [
        (line, following)
        for line, following in zip(lines, lines[1:], strict=False)
        if not following.lstrip().startswith("-") and not re.fullmatch(r" *--[a-z-]+( \S+)?", line)
    ]
    assert len(pairs) > 15
    for line, following in pairs:
        # If the next word fits, a line break of the source was kept.
        assert len(line) + 1 + len(following.split()[0]) > width - 2, (line, following)


def failed(capsys: Capture, *given: str) -> str:
    """Run a command that must fail with status 1; return its message."""
    assert main(["train", *arguments(), *given]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "cmsa-fast:" in line]
    assert len(lines) == 1
    assert "Traceback" not in lines[0]
    return lines[0].removeprefix("cmsa-fast: ")


Prepare = Callable[[Path], list[str]]


def damaged(folder: Path) -> list[str]:
    layout = small_refcoco(folder)
    layout.write()
    (layout.image_folder / "COCO_train2014_000000000007.jpg").write_bytes(b"no image")
    return ["--data", "refer", "--root", str(folder), "--strict"]


def truncated_pickle(folder: Path) -> list[str]:
    root = small_refcoco(folder).write()
    path = root / "refcoco" / "refs(unc).p"
    path.write_bytes(path.read_bytes()[:-20])
    return ["--data", "refer", "--root", str(folder)]


def dataset(folder: Path) -> list[str]:
    return ["--data", "refer", "--root", str(small_refcoco(folder).write())]


MISTAKES: dict[str, tuple[Prepare, str]] = {
    "no root": (lambda _: ["--data", "refer"], "--data refer needs --root"),
    "missing root": (lambda f: ["--data", "refer", "--root", f"{f}/none"], "none"),
    "empty root": (lambda f: ["--data", "refer", "--root", str(f)], "refcoco"),
    "root of scenes": (lambda f: ["--root", str(f)], "--root cannot be used with --data scenes"),
    "unknown split": (lambda f: [*dataset(f), "--train-split", "x"], "split 'x' has no reference"),
    "unknown name": (lambda f: [*dataset(f), "--name", "refs"], "refs"),
    "no word list": (lambda f: ["--vocabulary", f"{f}/none"], "word list"),
    "no GloVe": (lambda f: ["--glove", f"{f}/none"], "GloVe"),
    "damaged pickle": (truncated_pickle, "refs(unc).p"),
    "damaged image": (damaged, "cannot be read as an image"),
    "device": (lambda _: ["--device", "abacus"], "--device abacus cannot be used here"),
    "backend": (lambda _: ["--backend", "magic"], "backend must be one of"),
    "width": (
        lambda _: ["--model", "cmsa-released", "--attention-channels", "7"],
        "attention_channels must be at least 8",
    ),
    "weights": (lambda f: ["--backbone", "resnet18", "--backbone-weights", f"{f}/none.pth"], "none.pth"),
    "weights of compact": (lambda _: ["--backbone-weights", "imagenet"], "no published weights"),
    "seed": (lambda _: ["--seed", "-1"], "--seed must be at least 0; got -1."),
    "large seed": (lambda _: ["--seed", str(2**64)], "--seed must be below 2**63"),
    "workers": (lambda _: ["--num-workers", "-2"], "--num-workers must be at least 0; got -2."),
    "scenes": (lambda _: ["--evaluate-scenes", "1"], "--evaluate-scenes must be at least 2"),
    "expressions": (
        lambda _: ["--expressions-per-image", "13"],
        "--expressions-per-image must be at most 12 with --data scenes; got 13.",
    ),
    "validation": (lambda _: ["--validate-expressions", "0"], "must be at least 1; got 0"),
    "checkpoints": (lambda _: ["--checkpoint-every", "0"], "--checkpoint-every must be at least 1"),
    "size": (lambda _: ["--size", "33"], "size must be at least 64"),
    "steps": (lambda _: ["--steps", "0"], "steps must be at least 1; got 0."),
}


@pytest.mark.parametrize(("mistake", "num_workers"), [*((name, "0") for name in MISTAKES), ("damaged image", "1")])
def test_mistake_gives_one_line(mistake: str, num_workers: str, tmp_path: Path, capsys: Capture) -> None:
    prepare, text = MISTAKES[mistake]
    (tmp_path / "given").mkdir()
    given = prepare(tmp_path / "given")
    run = ["--run-dir", str(tmp_path / "run"), "--num-workers", num_workers]
    line = failed(capsys, *run, *given)
    assert text in line
    if mistake == "damaged image":
        assert "DataLoader" not in line
    else:
        assert not (tmp_path / "run").exists()  # detected before anything was written


def test_run_folder_is_never_overwritten(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "never overwrites" in failed(capsys, "--run-dir", str(tmp_path))
    assert "must be a folder" in failed(capsys, "--run-dir", str(tmp_path / "notes.txt"))
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "command", ["", "train --stepz 3", "train --data films", "train --model unet", "train extra"]
)
def test_usage_errors_exit_with_2(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(command.split())
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_help_lists_the_commands(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "train" in capsys.readouterr().out


def fail_with(monkeypatch: pytest.MonkeyPatch, *errors: BaseException) -> None:
    """Make each of the next calls of `cmsa-fast train` raise one of the errors."""
    monkeypatch.setattr(train_job, "run_training", Mock(side_effect=errors))


def test_ctrl_c_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, KeyboardInterrupt())
    assert main(["train"]) == 130


def test_error_with_several_lines_and_notes_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    error = ValueError("two\n  lines")
    error.add_note("In sample 7.")
    fail_with(monkeypatch, error, FloatingPointError("nan"), OSError())
    for expected in ("two lines In sample 7.", "nan", "OSError"):
        assert main(["train"]) == 1
        assert capsys.readouterr().err == f"cmsa-fast: {expected}\n"


def test_bugs_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        main(["train"])
