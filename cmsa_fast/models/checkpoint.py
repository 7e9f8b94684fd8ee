"""Files of a run: weights with their configuration, and the state training goes on from."""

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model as load_weights
from safetensors.torch import save_model as save_weights
from torch import nn

from ..data.vocabulary import Vocabulary
from .base import ReferringModel
from .registry import build_model

WEIGHTS = "model.safetensors"
STATE = "checkpoint.pt"
_FORMAT = "cmsa_fast/1"


@dataclass(frozen=True)
class ModelConfig:
    """What it takes to build a model again and to prepare its input.

    Attributes:
        name: of `cmsa_fast.models.build_model`.
        options: passed to it.
        tokens: the vocabulary, in the order of the word ids.
        size: side of the square input in pixels.
        max_words: words kept of an expression.
    """

    name: str
    options: dict[str, Any]
    tokens: tuple[str, ...]
    size: int
    max_words: int

    def build(self) -> ReferringModel:
        """The network, with random weights."""
        return build_model(self.name, **self.options)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside `path`, then put it in place, so that a failure leaves what was there."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)  # mkstemp's 0600 would shut others out of a shared folder
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_model(path: Path, model: nn.Module, config: ModelConfig) -> None:
    """Write a model's weights as safetensors, its configuration in the file's metadata.

    Args:
        path: of the file; replaced as a whole.
        model: built by config.build().
        config: kept beside the weights.
    """
    entries = {"format": _FORMAT, "config": json.dumps(vars(config))}
    write_atomically(path, lambda target: save_weights(model, str(target), metadata=entries))


def load_model(path: str | Path) -> tuple[ReferringModel, ModelConfig]:
    """Read a model from a run folder or a .safetensors file.

    Args:
        path: a run folder, or the file in it.

    Returns:
        The model in evaluation mode, on the CPU, and its configuration.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is none that this library wrote.
    """
    path = Path(path)
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"path must be a run folder with {WEIGHTS} in it, or such a file; {file} does not exist."
        )
    try:
        with safe_open(str(file), framework="pt") as opened:
            entries = opened.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{file} is no readable safetensors file: {error}.") from error
    if entries.get("format") != _FORMAT:
        raise ValueError(
            f"{file} holds no configuration of a cmsa_fast model; its metadata are {entries or 'empty'}."
        )
    try:
        stored = json.loads(entries["config"])
        config = ModelConfig(**{**stored, "tokens": tuple(stored["tokens"])})
        model = config.build()
        load_weights(model, str(file))
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{file} does not hold a whole cmsa_fast model: {error}") from error
    return model.eval(), config


def vocabulary_of(config: ModelConfig) -> Vocabulary:
    """The vocabulary a model was trained with."""
    return Vocabulary(config.tokens)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write what training goes on from; the file is replaced as a whole."""
    write_atomically(path, lambda target: torch.save(state, target))


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote; builds tensors and plain containers alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or none of ours.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint to go on from: {path} does not exist.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # PyTorch's own message goes on for a page and ends in advice to load the file unsafely.
        raise ValueError(
            f"{path} is no readable checkpoint: it is damaged, or holds more than tensors and plain "
            f"containers ({type(error).__name__})."
        ) from error
    if not isinstance(state, dict) or "step" not in state:
        raise ValueError(f"{path} is no checkpoint of this library.")
    return state
