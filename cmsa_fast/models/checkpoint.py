"""Model files: weights as safetensors, with the configuration that rebuilds the model in the metadata."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model as load_weights
from safetensors.torch import save_model as save_weights
from torch import nn

from ..system.files import write_atomically
from .base import ReferringModel
from .registry import build_model

WEIGHTS = "model.safetensors"
_FORMAT = "cmsa_fast/1"


@dataclass(frozen=True)
class ModelConfig:
    """What is needed to rebuild a model and to prepare its input.

    Attributes:
        name: Name of the model, as `cmsa_fast.models.build_model` takes it.
        options: Options of `build_model`.
        tokens: Vocabulary, in the order of the word ids.
        size: Side of the square input in pixels.
        max_words: Maximum number of words of an expression; further words are cut off.
    """

    name: str
    options: dict[str, Any]
    tokens: tuple[str, ...]
    size: int
    max_words: int

    def build(self) -> ReferringModel:
        """Build the network with random weights."""
        return build_model(self.name, **self.options)


def save_model(path: Path, model: nn.Module, config: ModelConfig) -> None:
    """Write a model file atomically.

    Args:
        path: File to create or replace.
        model: Built by `config.build()`.
        config: Stored in the metadata of the file.
    """
    metadata = {"format": _FORMAT, "config": json.dumps(vars(config))}
    write_atomically(path, lambda target: save_weights(model, str(target), metadata=metadata))


def load_model(path: str | Path) -> tuple[ReferringModel, ModelConfig]:
    """Load a model from a run folder or a .safetensors file.

    Args:
        path: A run folder, or a file that `save_model` wrote.

    Returns:
        The model in evaluation mode on the CPU, and its configuration.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file was not written by this library, or is damaged.
    """
    path = Path(path)
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"path must be a run folder that contains {WEIGHTS}, or such a file; {file} does not exist."
        )
    try:
        with safe_open(str(file), framework="pt") as opened:
            metadata = opened.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{file} is not a readable safetensors file: {error}.") from error
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"{file} has no configuration of a cmsa_fast model; its metadata are {metadata or 'empty'}."
        )
    try:
        stored = json.loads(metadata["config"])
        config = ModelConfig(**{**stored, "tokens": tuple(stored["tokens"])})
        model = config.build()
        load_weights(model, str(file))
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{file} does not hold a complete cmsa_fast model: {error}") from error
    return model.eval(), config
