"""Model files and folders: round trip, sources, and errors for damaged, foreign or contradictory files."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.small_training import CONFIG, OPTIONS, SIZE, new_model
from torch import nn

from cmsa_fast.data.vocabulary import Vocabulary
from cmsa_fast.models import hub
from cmsa_fast.models.checkpoint import WEIGHTS, load_model, load_pretrained, save_model, save_pretrained


def assert_same_weights(loaded: nn.Module, model: nn.Module) -> None:
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("by_folder", [True, False])
def test_round_trip(tmp_path: Path, by_folder: bool) -> None:
    model = new_model(5)
    save_model(tmp_path / WEIGHTS, model, CONFIG)
    loaded, config = load_model(tmp_path if by_folder else str(tmp_path / WEIGHTS))
    assert config == CONFIG
    assert not loaded.training
    assert_same_weights(loaded, model)
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
    "a token too few": lambda metadata, _: metadata.update(config=changed(tokens=CONFIG.tokens[:-1])),
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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder in `tmp_path`, the current folder."""
    save_pretrained(tmp_path / "owner" / "name", new_model(5), CONFIG)
    return tmp_path / "owner" / "name"


def test_model_folder_has_readable_files(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", WEIGHTS, "vocabulary.txt"]
    content = json.loads((folder / "config.json").read_text())
    assert content == {"format": "cmsa_fast/1", "name": "cmsa", "options": OPTIONS, "size": SIZE, "max_words": 20}
    assert (folder / "vocabulary.txt").read_text().splitlines() == list(CONFIG.tokens)
    model, config = load_pretrained(folder)
    assert config == CONFIG
    assert_same_weights(model, new_model(5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_file_loads_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    model = new_model(5)
    save_pretrained(tmp_path / "half", model, CONFIG, dtype)
    save_pretrained(tmp_path / "whole", model, CONFIG)
    sizes = [(tmp_path / name / WEIGHTS).stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.65 * sizes[1]
    loaded, _ = load_pretrained(tmp_path / "half")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32} == {p.dtype for p in model.parameters()}
    assert_same_weights(loaded, copy.deepcopy(model).to(dtype).float())


def test_weights_that_the_type_cannot_hold_are_refused(tmp_path: Path) -> None:
    model = new_model()
    with torch.no_grad():
        model.get_parameter("mask.bias").fill_(1e5)
    with pytest.raises(ValueError, match=r"must be finite in torch\.float16; mask\.bias is not"):
        save_pretrained(tmp_path / "half", model, CONFIG, torch.float16)
    assert not (tmp_path / "half").exists()


def change_config(**fields: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def other_weights(folder: Path) -> None:
    """Replace the weights by those of another model."""
    options = {**OPTIONS, "attention_channels": 16}
    config = replace(CONFIG, options=options)
    save_model(folder / WEIGHTS, config.build(), config)


COUNT = len(CONFIG.tokens)
CONTRADICTIONS: dict[str, tuple[Callable[[Path], object], str]] = {
    "name": (
        change_config(name="lstm"),
        r"json does not describe .*: name is 'lstm' here and 'cmsa' there",
    ),
    "size": (change_config(size=64), r"config\.json does not describe .*: size is 64 here and 32 there"),
    "weights": (other_weights, r"config\.json does not describe the model\.safetensors beside it: options is "),
    "no JSON": (
        write("config.json", "{"),
        r"config\.json is not the configuration of .*: Expecting",
    ),
    "no object": (write("config.json", "[1]"), r"config\.json is not the configuration of a cmsa_fast model"),
    "foreign": (
        write("config.json", '{"model_type": "bert"}'),
        r"config\.json is not the conf.*'format'",
    ),
    "shorter": (
        lambda folder: Vocabulary(CONFIG.tokens[:-1]).save(folder / "vocabulary.txt"),
        rf"vocabulary\.txt is not .* {COUNT - 1} tokens, the other has {COUNT}, and line {COUNT} is the first",
    ),
    "another order": (
        lambda folder: Vocabulary((*CONFIG.tokens[:4], *CONFIG.tokens[:3:-1])).save(folder / "vocabulary.txt"),
        r"vocabulary\.txt is not the vocabulary .*, and line 5 is the first to differ",
    ),
    "no word list": (write("vocabulary.txt", "dog\n"), r"vocabulary\.txt is not a word list"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictory_folder_is_refused(folder: Path, case: str) -> None:
    change, message = CONTRADICTIONS[case]
    change(folder)
    with pytest.raises(ValueError, match=message):
        load_pretrained(folder)
    if case != "weights":
        assert load_pretrained(folder / WEIGHTS)[1] == CONFIG  # the file alone is complete


def test_weights_of_another_model_give_one_short_sentence(folder: Path) -> None:
    other = replace(CONFIG, options={**OPTIONS, "backbone": "compact"})
    rewrite(folder / WEIGHTS, lambda metadata, _: metadata.update(config=json.dumps(vars(other))))
    with pytest.raises(ValueError, match="does not hold a complete cmsa_fast model") as caught:
        load_model(folder / WEIGHTS)
    assert len(str(caught.value)) < 600


def test_sources_in_order(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that exists comes before the name "demo" and before the hub."""
    asked: list[tuple[object, ...]] = []

    def snapshot_download(repository: str, **options: object) -> str:
        asked.append((repository, options["revision"]))
        return str(folder)

    module = SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setattr(hub, "import_hub", lambda what: module)
    monkeypatch.chdir(tmp_path)
    assert load_pretrained("owner/name")[1] == CONFIG
    assert not asked
    with pytest.raises(ValueError, match="revision is only for a repository of the hub.* got 'v2' for owner/name"):
        load_pretrained("owner/name", revision="v2")
    monkeypatch.chdir(folder)
    assert load_pretrained("owner/name")[1] == load_pretrained("owner/name", "v2")[1] == CONFIG
    assert asked == [("owner/name", None), ("owner/name", "v2")]
    save_pretrained("demo", new_model(), CONFIG)
    assert load_pretrained("demo")[1] == CONFIG
    for missing in ("none", "./owner/name", "owner/name.safetensors", "a/b/c", "/owner/name"):
        with pytest.raises(FileNotFoundError, match=r"run folder that contains model\.safetensors"):
            load_pretrained(missing)
    assert len(asked) == 2
