"""The ten lines of the README that train on your own images run as printed."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image
from support.commands import TINY
from support.refer_layout import noise

from cmsa_fast.cli import main

HEIGHT, WIDTH = 96, 120


def ten_lines() -> tuple[list[str], list[list[str]]]:
    """The lines of the manifest, and the commands without the name of the program."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    section = text.partition("### Train on your own images\n")[2].partition("\n## ")[0]
    lines, commands = re.findall(r"```(?:json)?\n(.*?)```", section, re.DOTALL)
    words = [shlex.split(line) for line in commands.splitlines()]
    assert {one[0] for one in words} == {"cmsa-fast"}
    return lines.splitlines(), [one[1:] for one in words]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A folder with the files that the manifest names, in which the commands run."""
    lines, commands = ten_lines()
    assert len(lines) + len(commands) == 10
    for folder in ("photos", "masks"):
        (tmp_path / folder).mkdir()
    for number, name in enumerate(sorted({json.loads(line)["image"] for line in lines})):
        Image.fromarray(noise(number, HEIGHT, WIDTH)).save(tmp_path / name)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[20:90, 10:100] = 255
    Image.fromarray(mask).save(tmp_path / "masks" / "both-cups.png")
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    return commands


@pytest.mark.parametrize("tiny", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["tiny", "as printed"])
def test_train_on_your_own_images(
    commands: list[list[str]], tiny: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in commands:
        added = [f"--{name}={value}" for name, value in TINY.items()] if tiny and command[0] == "train" else []
        capsys.readouterr()
        assert main([*command, *added]) == 0, command
        shown = capsys.readouterr().out
        if command[0] == "data":
            assert "Nothing is missing or damaged; no warning. 4 images checked" in shown
        if command[0] == "evaluate":
            assert "own val, convention native" in shown
            assert re.search(r"^all expressions +2 ", shown, re.MULTILINE)
    assert {path.suffix for path in Path("predicted").rglob("*")} >= {".png", ".json"}
    with Image.open("explained.png") as figure:
        assert figure.width > 100
