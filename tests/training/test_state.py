"""Checkpoints: round trip, and errors for damaged, foreign or hostile files."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small_training import CONFIG, RECIPE, images, new_model

import cmsa_fast.models.checkpoint as checkpoint
from cmsa_fast.models.checkpoint import WEIGHTS, save_model
from cmsa_fast.training.state import STATE, TrainingState, load_state


def fill_the_disk(target: Path) -> None:
    target.write_bytes(b"half")
    raise OSError(28, "No space left on device")


def test_failed_save_keeps_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = TrainingState.start(new_model(), RECIPE, CONFIG, images())
    save_model(tmp_path / WEIGHTS, new_model(), CONFIG)
    state.save(tmp_path / STATE)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(checkpoint, "save_weights", lambda model, target, **_: fill_the_disk(Path(target)))
    monkeypatch.setattr(torch, "save", lambda state, target: fill_the_disk(target))
    with pytest.raises(OSError, match="No space left"):
        save_model(tmp_path / WEIGHTS, new_model(1), CONFIG)
    with pytest.raises(OSError, match="No space left"):
        state.save(tmp_path / STATE)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("wrap", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_not_executed(tmp_path: Path, wrap: str) -> None:
    target, path = tmp_path / "made", tmp_path / "checkpoint.pt"
    state = {"step": 1, "model": Hostile(target)}
    if wrap == "torch":
        torch.save(state, path)
    else:
        path.write_bytes(pickle.dumps(state))
    with pytest.raises(ValueError, match="is not a readable checkpoint") as caught:
        load_state(path)
    assert not target.exists()
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)  # PyTorch recommends to load it unsafely
    if wrap == "torch":
        torch.load(path, weights_only=False)
        assert target.is_dir()  # loaded unsafely, it does execute its code


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"step": 1, "weight": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    for content in (b"", b"nothing", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a readable checkpoint"):
            load_state(path)
    for other in ([1], {"weight": torch.zeros(2)}):
        torch.save(other, path)
        with pytest.raises(ValueError, match="is not a checkpoint of this library"):
            load_state(path)
