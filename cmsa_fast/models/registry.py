"""Registry of models by name. Adding a model takes one entry in `MODELS`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from .base import ReferringModel


class ModelEntry(NamedTuple):
    """Location of a model. Its module is imported when the model is used, so the registry does not load torch.

    Attributes:
        path: "module:Class" of the `ReferringModel`.
        summary: What --help says of the model.
        inference: "module:Class" of an equivalent, faster `ReferringModel`, constructed from a model in eval mode.
            None: there is none.
    """

    path: str
    summary: str
    inference: str | None = None


MODELS: dict[str, ModelEntry] = {
    "cmsa": ModelEntry(
        "cmsa_fast.models.cmsa:CMSAModel",
        "the network of the paper, Eq. 1-6",
        inference="cmsa_fast.models.folded_cmsa:FoldedCMSAModel",
    ),
    "cmsa-released": ModelEntry(
        "cmsa_fast.models.released_cmsa:ReleasedCMSAModel",
        "the network of the code published with it (rectified projections, pooled keys, squeezed levels, gates "
        "per channel)",
    ),
}


_KINDS = {bool: "true or false", int: "an integer", str: "a string"}


def model_options(name: str) -> Mapping[str, inspect.Parameter]:
    """The options of a model, which are the parameters of its constructor.

    Raises:
        ValueError: name is unknown.
    """
    if name not in MODELS:
        raise ValueError(f"name must be one of {', '.join(sorted(MODELS))}; got {name!r}.")
    return inspect.signature(_load(MODELS[name].path)).parameters


def build_model(name: str, **options: Any) -> ReferringModel:
    """Build a model with random weights.

    Args:
        name: One of `MODELS`.
        options: Arguments of the model's constructor.

    Raises:
        TypeError: An option is not of the type of its default, where that is a bool, an int or a string.
        ValueError: name or an option is unknown, or an option is out of range.
    """
    known = model_options(name)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"build_model({name!r}) has no option {', '.join(unknown)}; it has {', '.join(known)}.")
    for option, value in options.items():
        kind = type(known[option].default)
        if kind in _KINDS and type(value) is not kind:
            raise TypeError(f"{option} must be {_KINDS[kind]}; got {value!r}.")
    return _load(MODELS[name].path)(**options)


def for_inference(model: ReferringModel) -> ReferringModel:
    """The faster equivalent of a model in eval mode, or the model itself where there is none.

    Raises:
        RuntimeError: The model is in training mode.
    """
    path = f"{type(model).__module__}:{type(model).__qualname__}"
    for entry in MODELS.values():
        if entry.path == path and entry.inference is not None:
            return _load(entry.inference)(model)
    return model


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
