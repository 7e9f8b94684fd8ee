"""Model files: round trip, and errors for damaged or foreign files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.small_training import CONFIG, new_model

from cmsa_fast.models.checkpoint import WEIGHTS, load_model, save_model


@pytest.mark.parametrize("by_folder", [True, False])
def test_round_trip(tmp_path: Path, by_folder: bool) -> None:
    model = new_model(5)
    save_model(tmp_path / WEIGHTS, model, CONFIG)
    loaded, config = load_model(tmp_path if by_folder else str(tmp_path / WEIGHTS))
    assert config == CONFIG
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


def changed(**fields: object) -> str:
    return json.dumps(vars(CONFIG) | fields)


DAMAGE: dict[str, Callable[[dict[str, str], dict[str, Any]], object]] = {
    "no config": lambda metadata, _: metadata.pop("config"),
    "no JSON": lambda metadata, _: metadata.update(config="{"),
    "a list": lambda metadata, _: metadata.update(config="[]"),
    "a field too few": lambda metadata, _: metadata.update(config='{"name": "cmsa", "tokens": []}'),
    "another model": lambda metadata, _: metadata.update(config=changed(name="lstm")),
    "an unknown option": lambda metadata, _: metadata.update(
        config=changed(options={**CONFIG.options, "depth": 3})
    ),
    "options of no kind": lambda metadata, _: metadata.update(config=changed(options=3)),
    "a tensor too few": lambda _, tensors: tensors.pop("mask.bias"),
    "another shape": lambda _, tensors: tensors.update({"mask.bias": torch.zeros(2)}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / WEIGHTS
    save_model(path, new_model(), CONFIG)
    rewrite(path, DAMAGE[damage])
    with pytest.raises(ValueError, match=r"model\.safetensors does not hold a complete cmsa_fast model"):
        load_model(path)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS
    save_file({"weight": torch.zeros(2)}, str(path))
    with pytest.raises(ValueError, match="has no configuration of a cmsa_fast model.*empty"):
        load_model(tmp_path)
    save_file({"weight": torch.zeros(2)}, str(path), {"format": "pt"})
    with pytest.raises(ValueError, match="has no configuration of a cmsa_fast model.*'pt'"):
        load_model(tmp_path)
    save_model(path, new_model(), CONFIG)
    whole = path.read_bytes()
    for content in (b"", b"no safetensors", whole[:-7], whole[:40]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a readable safetensors file"):
            load_model(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", tmp_path / "none.safetensors"):
        with pytest.raises(FileNotFoundError, match=r"run folder that contains model\.safetensors"):
            load_model(path)
