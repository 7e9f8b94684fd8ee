"""The folder of a run: made once, never overwritten, resumed with the options it was started with."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ..models.checkpoint import write_atomically
from ..training.recipe import Recipe
from .train_options import TrainOptions

OPTIONS = "options.json"
EVALUATION = "evaluation.json"
EXAMPLES = "examples"

# What may change when a run goes on: it has no influence on the weights.
_FREE = {
    "run_dir",
    "resume",
    "num_workers",
    "device",
    "backend",
    "checkpoint_every",
    "examples",
    "strict",
}
_PATHS = {"root", "image_dir", "exclude", "vocabulary", "glove", "run_dir"}


def choose_folder(options: TrainOptions, parent: Path = Path("runs")) -> Path:
    """Where a new run is to go; nothing is made yet.

    Raises:
        FileExistsError: --run-dir names a folder that is not empty.
        NotADirectoryError: it names a file.
    """
    if options.run_dir is None:
        stem = f"{datetime.now():%Y%m%d-%H%M%S}-{options.preset}-{options.data}"
        names = (stem, *(f"{stem}-{count}" for count in range(2, 1000)))
        return next(parent / name for name in names if not (parent / name).exists())
    folder = options.run_dir
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"--run-dir must be a folder; {folder} is a file.")
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(
            f"--run-dir {folder} is not empty, and a run never overwrites another. Choose a new folder, or "
            "go on with the run in it by --resume."
        )
    return folder


def write_options(folder: Path, options: TrainOptions) -> None:
    """Keep the options as given, and the recipe they come to, in options.json."""
    content = {"options": _plain(asdict(options)), "recipe": asdict(options.recipe())}
    write_json(folder / OPTIONS, content)


def read_options(folder: Path) -> TrainOptions:
    """The options a run was started with; what a preset left open then is filled in.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: its options are unreadable.
    """
    path = folder / OPTIONS
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no run: no {OPTIONS}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        stored, recipe = content["options"], asdict(Recipe(**content["recipe"]))
        paths = {name: Path(stored[name]) for name in _PATHS if stored.get(name) is not None}
        lists = {"model_options": tuple(stored.get("model_options", ()))}
        # The recipe as it was then: a preset may have changed since.
        return TrainOptions(**{**stored, **paths, **lists, **recipe})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def resumed_options(given: TrainOptions) -> TrainOptions:
    """The options a run was started with, for --resume.

    An option given at its default cannot be told from one not given, and gives way to the run's.

    Raises:
        FileNotFoundError: --run-dir holds no run.
        ValueError: --run-dir is missing, its options are unreadable, or an option was given that differs from
            them and would change the result.
    """
    if given.run_dir is None:
        raise ValueError("--resume needs --run-dir, the folder of the run that is to go on.")
    if not (given.run_dir / OPTIONS).is_file():
        raise FileNotFoundError(f"--run-dir {given.run_dir} holds no run to resume: no {OPTIONS}.")
    started = read_options(given.run_dir)
    for field in fields(TrainOptions):
        now, then = getattr(given, field.name), getattr(started, field.name)
        if field.name not in _FREE and now not in (field.default, then):
            option = "--" + field.name.replace("_", "-")
            raise ValueError(
                f"A resumed run keeps its options: {option} was {then} when {given.run_dir} was started; "
                f"got {now}."
            )
    free = {name: getattr(given, name) for name in _FREE}
    return replace(started, **free)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file as a whole or not at all."""
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda target: target.write_text(text, encoding="utf-8"))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}
