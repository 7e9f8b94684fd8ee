"""Weights with their configuration, and the state training goes on from."""

from __future__ import annotations

import json
import os
import pickle
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.small_training import CONFIG, VOCABULARY, new_model

import cmsa_fast.models.checkpoint as checkpoint
from cmsa_fast.models.checkpoint import (
    WEIGHTS,
    load_model,
    load_state,
    save_model,
    save_state,
    vocabulary_of,
    write_atomically,
)


def entries(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def half_a_file(target: Path) -> None:
    target.write_bytes(b"half")
    raise OSError(28, "No space left on device")


def test_writing_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for text in ("first", "second"):
        write_atomically(path, lambda target, text=text: target.write_text(text))  # type: ignore[misc]
        assert entries(tmp_path) == {"file": text.encode()}
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_alone(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write(target: Path) -> None:
        target.write_text("half")
        raise error

    with pytest.raises(error):
        write_atomically(path, write)
    assert entries(tmp_path) == {"file": b"old"}


def test_a_failed_save_leaves_the_old_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = new_model()
    save_model(tmp_path / WEIGHTS, model, CONFIG)
    save_state(tmp_path / "checkpoint.pt", {"step": 1})
    before = entries(tmp_path)
    monkeypatch.setattr(
        checkpoint, "save_weights", lambda model, target, **_: half_a_file(Path(target))
    )
    monkeypatch.setattr(torch, "save", lambda state, target: half_a_file(target))
    with pytest.raises(OSError, match="No space left"):
        save_model(tmp_path / WEIGHTS, new_model(1), CONFIG)
    with pytest.raises(OSError, match="No space left"):
        save_state(tmp_path / "checkpoint.pt", {"step": 2})
    assert entries(tmp_path) == before


@pytest.mark.parametrize("by_folder", [True, False])
def test_weights_come_back_with_config_and_vocabulary(tmp_path: Path, by_folder: bool) -> None:
    model = new_model(5)
    save_model(tmp_path / WEIGHTS, model, CONFIG)
    loaded, config = load_model(tmp_path if by_folder else str(tmp_path / WEIGHTS))
    assert config == CONFIG
    assert vocabulary_of(config).tokens == VOCABULARY.tokens
    assert not loaded.training
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, expected[name]), name
    words = torch.tensor([[4, 5]])
    images = torch.rand(1, 3, 33, 47)
    with torch.no_grad():
        assert torch.equal(loaded(images, words), model.eval()(images, words))


def rewrite(path: Path, change: Callable[[dict[str, str], dict[str, Any]], object]) -> None:
    with safe_open(str(path), framework="pt") as opened:
        metadata = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    change(metadata, tensors)
    save_file(tensors, str(path), metadata)


DAMAGE: dict[str, Callable[[dict[str, str], dict[str, Any]], object]] = {
    "no config": lambda metadata, _: metadata.pop("config"),
    "no JSON": lambda metadata, _: metadata.update(config="{"),
    "a list": lambda metadata, _: metadata.update(config="[]"),
    "a field too few": lambda metadata, _: metadata.update(config='{"name": "cmsa", "tokens": []}'),
    "another model": lambda metadata, _: metadata.update(
        config=json.dumps({**vars(CONFIG), "name": "lstm"})
    ),
    "an unknown option": lambda metadata, _: metadata.update(
        config=json.dumps({**vars(CONFIG), "options": {**CONFIG.options, "depth": 3}})
    ),
    "options of no kind": lambda metadata, _: metadata.update(
        config=json.dumps({**vars(CONFIG), "options": 3})
    ),
    "a tensor too few": lambda _, tensors: tensors.pop("mask.bias"),
    "another shape": lambda _, tensors: tensors.update({"mask.bias": torch.zeros(2)}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_weights_are_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / WEIGHTS
    save_model(path, new_model(), CONFIG)
    rewrite(path, DAMAGE[damage])
    with pytest.raises(
        ValueError, match=r"model\.safetensors does not hold a whole cmsa_fast model"
    ):
        load_model(path)


def test_files_of_others(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS
    save_file({"weight": torch.zeros(2)}, str(path))
    with pytest.raises(ValueError, match="no configuration of a cmsa_fast model.*empty"):
        load_model(tmp_path)
    save_file({"weight": torch.zeros(2)}, str(path), {"format": "pt"})
    with pytest.raises(ValueError, match="no configuration of a cmsa_fast model.*'pt'"):
        load_model(tmp_path)
    save_model(path, new_model(), CONFIG)
    whole = path.read_bytes()
    for content in (b"", b"no safetensors", whole[:-7], whole[:40]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="no readable safetensors file"):
            load_model(path)


def test_missing_weights(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", tmp_path / "none.safetensors"):
        with pytest.raises(FileNotFoundError, match=r"run folder with model\.safetensors"):
            load_model(path)


def test_a_state_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    state = {"step": 3, "model": {"weight": torch.rand(2, 3)}, "words": ("a", "b"), "losses": [0.5]}
    save_state(path, state)
    loaded = load_state(path)
    assert torch.equal(loaded["model"].pop("weight"), state["model"].pop("weight"))  # type: ignore[attr-defined]
    assert loaded == state


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("wrap", ["torch", "pickle"])
def test_a_hostile_checkpoint_runs_nothing(tmp_path: Path, wrap: str) -> None:
    target, path = tmp_path / "made", tmp_path / "checkpoint.pt"
    state = {"step": 1, "model": Hostile(target)}
    if wrap == "torch":
        torch.save(state, path)
    else:
        path.write_bytes(pickle.dumps(state))
    with pytest.raises(ValueError, match="no readable checkpoint") as caught:
        load_state(path)
    assert not target.exists()
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)  # PyTorch's advice to load it all the same
    if wrap == "torch":
        torch.load(path, weights_only=False)
        assert target.is_dir()  # the trap was one


def test_other_files_as_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(FileNotFoundError, match="no checkpoint to go on from"):
        load_state(path)
    save_state(path, {"step": 1, "weight": torch.zeros(1000)})
    whole = path.read_bytes()
    for content in (b"", b"nothing", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="no readable checkpoint"):
            load_state(path)
    for other in ([1], {"weight": torch.zeros(2)}):
        torch.save(other, path)
        with pytest.raises(ValueError, match="no checkpoint of this library"):
            load_state(path)
