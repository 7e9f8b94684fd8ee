"""`cmsa-fast push` on a run of `cmsa-fast train`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.fake_hub import TOKEN, FakeHub, connect
from support.small_training import arguments

from cmsa_fast.cli import main
from cmsa_fast.evaluation.score import percent
from cmsa_fast.models.checkpoint import CARD, load_pretrained

Capture = pytest.CaptureFixture[str]


def test_a_trained_run_is_written_and_uploaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments(examples=0), "--run-dir=run"]) == 0
    before = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    capsys.readouterr()

    command = ["push", "run", "someone/small", "--license=mit"]
    assert main([*command, "--dtype=float16", "--dry-run"]) == 0
    assert "hub/someone/small was written and nothing uploaded" in capsys.readouterr().out
    card = Path("hub/someone/small", CARD).read_text()
    evaluation = json.loads(Path("run/evaluation.json").read_text())
    assert f"| 5 unseen scenes | native | 10 | {percent(evaluation['overall']['overall_iou'])} |" in card
    assert f"| native | 10 | {percent(evaluation['shuffled']['overall_iou'])} |" in card
    assert "stored as float16" in card
    assert main([*command, "--dry-run"]) == 1
    assert "folder must be empty or not exist" in capsys.readouterr().err

    with FakeHub() as hub:
        connect(monkeypatch, hub, tmp_path / "cache", TOKEN)
        assert main([*command, "--private"]) == 0
        assert f"{hub.url}/someone/small" in capsys.readouterr().out
        loaded, ours = load_pretrained("someone/small")[0], load_pretrained("run")[0]
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert before == {path.name: path.read_bytes() for path in Path("run").iterdir()}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("push {run} small", "repository must be owner/name; got 'small'."),
        ("push {run}/none someone/small --dry-run", "run/none does not exist"),
        ("push {run} someone/small --license=MIT --dry-run", "license must be written as on the hub"),
    ],
)
def test_mistakes_give_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, command: str, message: str
) -> None:
    monkeypatch.chdir(run.parent)
    assert main(command.format(run=run).split()) == 1
    error = capsys.readouterr().err
    assert error.startswith("cmsa-fast: ")
    assert message in error
    assert error.count("\n") == 1
    assert not Path("hub").exists()
