"""The run folder: never overwritten, resumed with the options it was started with."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import cmsa_fast.cli.train_options as config
from cmsa_fast.cli.run_folder import OPTIONS, choose_folder, resumed_options, write_options
from cmsa_fast.cli.train_options import TrainOptions
from cmsa_fast.training.recipe import PRESETS, Recipe


def started(folder: Path, **options: Any) -> TrainOptions:
    given = TrainOptions(run_dir=folder, **options)
    folder.mkdir(exist_ok=True)
    write_options(folder, given)
    return given


def test_default_folder_is_new(tmp_path: Path) -> None:
    parent = tmp_path / "runs"
    first = choose_folder(TrainOptions(), parent)
    assert first.parent == parent
    assert first.name.endswith("-demo-scenes")
    assert not parent.exists()
    seen = set()
    for _ in range(3):
        folder = choose_folder(TrainOptions(preset="paper", data="refer"), parent)
        assert "-paper-refer" in folder.name
        assert folder not in seen
        folder.mkdir(parents=True)
        seen.add(folder)


def test_new_and_empty_folders_are_accepted(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "new" / "deep"):
        assert choose_folder(TrainOptions(run_dir=folder)) == folder
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["options.json", "notes.txt", ".hidden", "folder/"])
def test_folder_that_is_not_empty_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("/"):
        path.mkdir()
    else:
        path.write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty, and a run never overwrites another"):
        choose_folder(TrainOptions(run_dir=tmp_path))
    assert list(tmp_path.iterdir()) == [path]


def test_options_round_trip(tmp_path: Path) -> None:
    given = started(tmp_path, data="refer", root=Path("some/where"), steps=7, learning_rate=0.5)
    content = json.loads((tmp_path / OPTIONS).read_text())
    assert content["recipe"] == asdict(given.recipe())
    assert content["options"]["root"] == "some/where"
    again = resumed_options(TrainOptions(run_dir=tmp_path, resume=True, num_workers=3, examples=1))
    assert again.recipe() == given.recipe()
    assert (again.root, again.data, again.run_dir) == (Path("some/where"), "refer", tmp_path)
    assert (again.num_workers, again.examples, again.resume) == (3, 1, True)


def test_changed_preset_does_not_change_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = started(tmp_path).recipe()
    other: dict[Any, Recipe] = {**PRESETS, "demo": replace(PRESETS["demo"], steps=3, size=64)}
    monkeypatch.setattr(config, "PRESETS", other)
    assert TrainOptions().recipe().steps == 3
    assert resumed_options(TrainOptions(run_dir=tmp_path, resume=True)).recipe() == recipe


def test_repeated_options_are_accepted_and_changed_ones_refused(tmp_path: Path) -> None:
    started(tmp_path, seed=3)
    steps = PRESETS["demo"].steps
    resumed = resumed_options(TrainOptions(run_dir=tmp_path, resume=True, seed=3, steps=steps))
    assert (resumed.seed, resumed.steps) == (3, steps)
    for given, text in (
        ({"seed": 4}, "--seed was 3 when .* was started; got 4"),
        ({"steps": steps + 1}, f"--steps was {steps} when .* got {steps + 1}"),
        ({"evaluate_split": "testA"}, "--evaluate-split was val"),
        ({"root": Path("other")}, "--root was None"),
        ({"preset": "paper"}, "--preset was demo"),
        ({"model": "cmsa-released"}, "--model was cmsa when .* got cmsa-released"),
    ):
        with pytest.raises(ValueError, match=text):
            resumed_options(TrainOptions(run_dir=tmp_path, resume=True, **given))  # type: ignore[arg-type]


def test_missing_run_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--resume needs --run-dir"):
        resumed_options(TrainOptions(resume=True))
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match=r"is not a run folder: it has no options\.json"):
            resumed_options(TrainOptions(resume=True, run_dir=folder))


DAMAGE = ["", "{", "[]", "{}", "3", '{"options": []}', '{"options": {}, "recipe": {}}', "\xff"]
CHANGES = [("options", "depth", 3), ("recipe", "steps", "many"), ("options", "root", 3)]


@pytest.mark.parametrize("damage", [*DAMAGE, *CHANGES])
def test_damaged_options_are_named(tmp_path: Path, damage: str | tuple[str, str, object]) -> None:
    started(tmp_path)
    path = tmp_path / OPTIONS
    if isinstance(damage, str):
        path.write_bytes(damage.encode("latin-1"))
    else:
        part, name, value = damage
        content = json.loads(path.read_text())
        content[part][name] = value
        path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"options\.json is damaged"):
        resumed_options(TrainOptions(resume=True, run_dir=tmp_path))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 0) for name in ("size", "steps", "images_per_step", "max_words")),
        *((name, -1) for name in ("fused_channels", "warmup_steps", "weight_decay", "power")),
        ("learning_rate", 0.0),
        *((name, float("nan")) for name in ("learning_rate", "weight_decay", "power")),
        *(("ema_decay", 1.0), ("schedule", "step"), ("end_learning_rate", 1.0)),
        ("validate_every", -1),
        *((name, float("inf")) for name in ("learning_rate", "dice_weight")),
    ],
)
def test_recipe_out_of_range_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name} must .* got '?{value}"):
        TrainOptions(**{name: value}).recipe()  # type: ignore[arg-type]


def test_options_replace_the_values_of_the_preset() -> None:
    assert TrainOptions(preset="paper").recipe() == PRESETS["paper"]
    changed = TrainOptions(preset="paper", steps=5, weight_decay=0.0).recipe()
    assert changed == replace(PRESETS["paper"], steps=5, weight_decay=0.0)


def test_paper_preset_has_the_values_of_the_paper() -> None:
    paper = PRESETS["paper"]
    assert (paper.size, paper.max_words, paper.backbone) == (320, 20, "resnet101")
    widths = (paper.word_channels, paper.attention_channels, paper.fused_channels)
    assert widths == (1000, 512, 500)
    assert (paper.learning_rate, paper.weight_decay, paper.power) == (2.5e-4, 5e-4, 0.9)
    assert (paper.dice_weight, paper.warmup_steps, paper.ema_decay) == (0.0, 0, 0.0)
    assert (paper.schedule, paper.end_learning_rate) == ("poly", 1e-5)
