"""Run folders: a new one for each run, and options.json, from which a run is resumed."""

import json
from dataclasses import asdict, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ..system.files import write_json
from ..training.recipe import OPTIONS, Recipe
from .data_options import option
from .train_options import TrainOptions

EXAMPLES = "examples"

# Options that may differ when a run is resumed: they do not affect the weights.
_FREE = {"run_dir", "resume", "num_workers", "device", "backend", "checkpoint_every", "examples", "strict"}
_PATHS = {"root", "image_dir", "exclude", "vocabulary", "glove", "run_dir"}
# Options of version 0.1 that were renamed or removed since.
_RENAMED = {
    "pictures": "examples",
    "pictures_per_step": "images_per_step",
    "sentences_per_picture": "expressions_per_image",
}
_REMOVED = ("mixed_splits",)


def choose_folder(options: TrainOptions, parent: Path = Path("runs")) -> Path:
    """The folder for a new run; it is not created yet."""
    if options.run_dir is None:
        stem = f"{datetime.now():%Y%m%d-%H%M%S}-{options.preset}-{options.data}"
        names = (stem, *(f"{stem}-{count}" for count in range(2, 1000)))
        return next(parent / name for name in names if not (parent / name).exists())
    folder = options.run_dir
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--run-dir must be a folder; {folder} is a file.")
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(
            f"--run-dir {folder} is not empty, and a run never overwrites another one. Choose a new folder, or "
            "continue the run in it with --resume."
        )
    return folder


def write_options(folder: Path, options: TrainOptions) -> None:
    """Write options.json: the options as given, and the recipe that results from them."""
    write_json(folder / OPTIONS, {"options": asdict(options), "recipe": asdict(options.recipe())})


def read_options(folder: Path) -> TrainOptions:
    """Read the options a run was started with, including those that the preset decided."""
    path = folder / OPTIONS
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a run folder: it has no {OPTIONS}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        stored, recipe = _renamed(content["options"]), _renamed(content["recipe"])
        paths = {name: Path(stored[name]) for name in _PATHS if stored.get(name) is not None}
        stored["model_options"] = tuple(stored.get("model_options", ()))
        # All of the recipe, because the preset may have changed since.
        return TrainOptions(**{**stored, **paths, **asdict(Recipe(**recipe))})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def resumed_options(given: TrainOptions) -> TrainOptions:
    """The options for --resume: those the run was started with, and the given ones that may differ.

    An option that equals its default counts as not given.
    """
    if given.run_dir is None:
        raise ValueError("--resume needs --run-dir, the folder of the run to continue.")
    started = read_options(given.run_dir)
    for field in fields(TrainOptions):
        now, then = getattr(given, field.name), getattr(started, field.name)
        if field.name not in _FREE and now not in (field.default, then):
            raise ValueError(
                f"A resumed run keeps its options: {option(field.name)} was {then} when {given.run_dir} was "
                f"started; got {now}."
            )
    free = {name: getattr(given, name) for name in _FREE}
    return replace(started, **free)


def _renamed(values: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in values.items() if name not in _REMOVED}
    return {_RENAMED.get(name, name): value for name, value in kept.items()}
