"""Model files and folders: saving, and loading from a path, by the name "demo" or from the Hugging Face Hub.

A model folder has three files. model.safetensors holds the weights and, in its metadata, the whole configuration,
so it loads without the other two. config.json and vocabulary.txt repeat the configuration for people and other
programs; a folder in which they say something else is refused.
"""

import copy
import itertools
import json
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model as load_weights
from safetensors.torch import save_model as save_weights
from torch import nn

from ..data.vocabulary import Vocabulary
from ..system.files import write_atomically, write_json
from .base import ReferringModel
from .hub import download, is_repository
from .registry import build_model

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
VOCABULARY = "vocabulary.txt"
CARD = "README.md"
DEMO = "demo"
_SHIPPED = Path(__file__).parent / "pretrained"
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


def load_pretrained(source: str | Path, revision: str | None = None) -> tuple[ReferringModel, ModelConfig]:
    """Load a model from a path, by the name "demo", or from the Hugging Face Hub.

    Args:
        source: A run folder, a model folder or a .safetensors file; otherwise "demo", the model that is part of
            the package; otherwise "owner/name", a repository of the hub, which is downloaded into the hub's cache.
        revision: Branch, tag or commit of the repository. None: its main branch.

    Returns:
        The model in evaluation mode on the CPU, with float32 parameters, and its configuration.

    Raises:
        FileNotFoundError: There is no such model, or the hub cannot be reached and has not been asked before.
        ImportError: The model is on the hub and huggingface_hub is not installed.
        ValueError: The files are damaged, contradict each other or were not written by this library; or `revision`
            is given for a model that is not on the hub.
    """
    return load_model(locate(source, revision))


def locate(source: str | Path, revision: str | None = None) -> Path:
    """The folder or file that `load_pretrained` loads, with the same errors; a model of the hub is downloaded."""
    name, path = str(source), Path(source)
    if not path.exists() and is_repository(name):
        return download(name, revision, (WEIGHTS, CONFIG, VOCABULARY, CARD))
    if revision is not None:
        raise ValueError(f"revision is only for a repository of the hub, owner/name; got {revision!r} for {name}.")
    return _SHIPPED / DEMO if name == DEMO and not path.exists() else path


def save_pretrained(
    folder: str | Path, model: nn.Module, config: ModelConfig, dtype: torch.dtype = torch.float32
) -> None:
    """Write a model folder; its files replace those of the same names.

    Args:
        folder: Created if it does not exist.
        model: Built by `config.build()`.
        config: What rebuilds the model.
        dtype: Type in which the weights are stored; a loaded model has float32 parameters.

    Raises:
        ValueError: A weight is not finite in `dtype`.
    """
    folder = Path(folder)
    if dtype != torch.float32:
        model = copy.deepcopy(model).to(dtype)
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise ValueError(f"The weights must be finite in {dtype}; {name} is not.")
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, config)
    save_model(folder / WEIGHTS, model, config)


def write_config(folder: Path, config: ModelConfig) -> None:
    """Write config.json and vocabulary.txt, the readable form of a configuration, into an existing folder."""
    write_atomically(folder / VOCABULARY, Vocabulary(config.tokens).save)
    write_json(folder / CONFIG, _described(config))


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
    """Load a model from a run folder, a model folder or a .safetensors file.

    Args:
        path: A folder, or a file that `save_model` wrote.

    Returns:
        The model in evaluation mode on the CPU, and its configuration.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A file was not written by this library, is damaged, or contradicts the others.
    """
    path = Path(path)
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"path must be a run folder that contains {WEIGHTS}, or such a file; {file} does not exist."
        )
    config = _stored_config(file)
    if path.is_dir():
        _check_readable_form(path, config)
    try:
        model = config.build()
        load_weights(model, str(file))
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        # The message of torch lists every tensor of another model.
        reason = textwrap.shorten(str(error), 400, placeholder=" ...")
        raise ValueError(f"{file} does not hold a complete cmsa_fast model: {reason}") from error
    return model.eval(), config


def _stored_config(file: Path) -> ModelConfig:
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
        rows = config.options.get("vocabulary_size", len(config.tokens))
        if rows != len(config.tokens):
            raise ValueError(f"it has {len(config.tokens)} tokens, and its model was built for {rows}")
        return config
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} does not hold a complete cmsa_fast model: {error}") from error


def _described(config: ModelConfig) -> dict[str, Any]:
    """The content of config.json."""
    fields = {name: value for name, value in vars(config).items() if name != "tokens"}
    return {"format": _FORMAT, **fields}


def _check_readable_form(folder: Path, config: ModelConfig) -> None:
    """Raise a ValueError if config.json or vocabulary.txt, where present, contradict the weights' own config."""
    path = folder / CONFIG
    if path.is_file():
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
            values = {name: given[name] for name in _described(config)}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not the configuration of a cmsa_fast model: {error}") from error
        for name, value in _described(config).items():
            if values[name] != value:
                raise ValueError(
                    f"{path} does not describe the {WEIGHTS} beside it: {name} is {values[name]!r} here and "
                    f"{value!r} there."
                )
    path = folder / VOCABULARY
    if path.is_file() and (tokens := Vocabulary.from_file(path).tokens) != config.tokens:
        pairs = enumerate(itertools.zip_longest(tokens, config.tokens), start=1)
        line = next(number for number, (given, expected) in pairs if given != expected)
        raise ValueError(
            f"{path} is not the vocabulary of the {WEIGHTS} beside it: it has {len(tokens)} tokens, the other has "
            f"{len(config.tokens)}, and line {line} is the first to differ."
        )
