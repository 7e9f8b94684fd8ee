"""Runs commands: training of a tiny model, and commands that must fail with a one-line error."""

from __future__ import annotations

import pytest

from cmsa_fast.cli import main

TINY = {
    "steps": 4,
    "size": 64,
    "images-per-step": 1,
    "expressions-per-image": 2,
    "warmup-steps": 1,
    "word-channels": 8,
    "attention-channels": 8,
    "fused-channels": 8,
    "examples": 0,
    "num-workers": 0,
}


def training(*arguments: object, **options: object) -> list[str]:
    """The command that trains a tiny model; underscores in the names of options become hyphens."""
    given = TINY | {name.replace("_", "-"): value for name, value in options.items()}
    return ["train", *map(str, arguments), *(f"--{name}={value}" for name, value in given.items())]


def failed(capsys: pytest.CaptureFixture[str], *command: object) -> str:
    """Runs a command that must exit with 1; returns its one-line error."""
    capsys.readouterr()
    assert main([str(word) for word in command]) == 1
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err + shown.out
    (line,) = [line for line in shown.err.splitlines() if line.startswith("cmsa-fast: ")]
    return line.removeprefix("cmsa-fast: ")
