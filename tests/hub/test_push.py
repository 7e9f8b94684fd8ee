"""Sharing a model: the folder that is written, its upload, and errors, against a hub on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.fake_hub import TOKEN, FakeHub, Repository, connect
from support.small_training import CONFIG, new_model

from cmsa_fast.hub import push_to_hub, write_model_folder
from cmsa_fast.models.checkpoint import CARD, WEIGHTS, load_pretrained, save_model, save_pretrained

FILES = [CARD, "config.json", WEIGHTS, "vocabulary.txt"]


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with FakeHub() as running:
        yield running


@pytest.fixture(autouse=True)
def connected(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories.clear()
    connect(monkeypatch, hub, tmp_path / "cache", TOKEN)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder of version 0.1: the weights alone."""
    (tmp_path / "run").mkdir()
    save_model(tmp_path / "run" / WEIGHTS, new_model(3), CONFIG)
    return tmp_path / "run"


def test_a_pushed_model_is_loaded_from_the_hub(hub: FakeHub, run: Path) -> None:
    assert push_to_hub(run, "someone/small", license="mit") == f"{hub.url}/someone/small"
    repository = hub.repositories["someone/small"]
    assert not repository.private
    assert sorted(repository.files) == FILES
    assert repository.files[WEIGHTS] == (run / WEIGHTS).read_bytes()
    assert b"license: mit\n" in repository.files[CARD]
    model, config = load_pretrained("someone/small")
    assert config == CONFIG
    expected = new_model(3).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    with pytest.raises(FileNotFoundError, match=r"someone/small.* has no revision v2; the cache .*cache does not"):
        load_pretrained("someone/small", "v2")
    hub.repositories.clear()
    assert load_pretrained("someone/small")[1] == CONFIG  # from the cache


def test_missing_repository_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"file or folder someone/none.*has no such repository.*cache does"
    ):
        load_pretrained("someone/none")


def test_unreachable_hub_is_named(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = FakeHub()
    gone.url = "http://127.0.0.1:1"
    connect(monkeypatch, gone, tmp_path / "cache", TOKEN)
    with pytest.raises(
        FileNotFoundError, match=r"someone/none.*the hub cannot be reached \(.*refused\).*cache does"
    ):
        load_pretrained("someone/none")
    with pytest.raises(OSError, match=r"run was not uploaded to someone/small, which needs the internet.*refused"):
        push_to_hub(run, "someone/small")


def test_an_account_is_needed(hub: FakeHub, tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, hub, tmp_path / "cache")
    with pytest.raises(OSError, match=r"not uploaded to someone/small.*`hf auth login`.*Invalid username"):
        push_to_hub(run, "someone/small")
    assert not hub.repositories


def test_private_repository(hub: FakeHub, run: Path) -> None:
    push_to_hub(run, "someone/secret", private=True)
    assert hub.repositories["someone/secret"].private
    hub.repositories["someone/open"] = Repository(private=False)
    with pytest.raises(ValueError, match="someone/open exists and is public"):
        push_to_hub(run, "someone/open", private=True)
    assert not hub.repositories["someone/open"].files


def test_folder_can_be_edited_and_pushed(hub: FakeHub, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    write_model_folder(run, folder, name="someone/small", dtype=torch.float16)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert {value.dtype for value in load_file(folder / WEIGHTS).values()} >= {torch.float16}
    (folder / CARD).write_text("My own card.")
    push_to_hub(folder, "someone/small")
    assert hub.repositories["someone/small"].files[CARD] == b"My own card."
    with pytest.raises(ValueError, match=r"license must be written into .*README\.md"):
        push_to_hub(folder, "someone/small", license="mit")


def test_nothing_is_overwritten(run: Path) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    for folder in (run, run / WEIGHTS):
        with pytest.raises(FileExistsError, match="folder must be empty or not exist"):
            write_model_folder(run, folder, name="someone/small")
    assert before == {path.name: path.read_bytes() for path in run.iterdir()}


@pytest.mark.parametrize("repository", ["small", "some one/small", "a/b/c", "https://hub/someone/small", ""])
def test_repository_has_an_owner(run: Path, repository: str) -> None:
    with pytest.raises(ValueError, match="repository must be owner/name; got"):
        push_to_hub(run, repository)


@pytest.mark.parametrize("license", ["MIT License", "mit\ntags: [x]", ""])
def test_license_is_one_name(run: Path, tmp_path: Path, license: str) -> None:
    with pytest.raises(ValueError, match="license must be written as on the hub"):
        write_model_folder(run, tmp_path / "shared", name="someone/small", license=license)


def test_damaged_models_are_not_shared(hub: FakeHub, tmp_path: Path) -> None:
    save_pretrained(tmp_path / "model", new_model(), CONFIG)
    shutil.copyfile(tmp_path / "model" / "config.json", tmp_path / "model" / "vocabulary.txt")
    with pytest.raises(ValueError, match=r"vocabulary\.txt is not a word list"):
        push_to_hub(tmp_path / "model", "someone/small")
    assert not hub.repositories
