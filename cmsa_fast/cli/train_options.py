"""Options of `cmsa-fast train`."""

import json
from collections.abc import Container
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import tyro

from ..models.registry import MODELS
from ..training.recipe import PRESETS, PresetName, Recipe
from .data_options import FORMS_HELP, DataForm, DataOptions, without_default

if TYPE_CHECKING:
    ModelName = str
else:
    ModelName = Literal[tuple(MODELS)]
Backbone = Literal["narrow", "resnet18", "resnet34", "resnet50", "resnet101"]


def _of_preset(name: str) -> Any:
    """What --help says of an option that the preset decides: its value in each."""
    if name == "backbone":
        metavar = "{" + ",".join(get_args(Backbone)) + "}"
    else:
        metavar = Recipe.__annotations__[name].__name__.upper()
    values = ", ".join(f"{preset} {getattr(recipe, name)}" for preset, recipe in PRESETS.items())
    return without_default(metavar, f"default: {values}")


@dataclass(frozen=True, kw_only=True)
class TrainOptions(DataOptions):
    """What to train on, for how long, and where to; `cmsa-fast train --help` shows all of it."""

    preset: Annotated[
        PresetName,
        tyro.conf.arg(
            help="demo: the paper's architecture, narrow, at 128 px. paper: the full-size model (DeepLab-101, "
            "320 px, 1000 word channels, 512 attention channels, 500 fused channels, Adam, Eq. 7)."
        ),
    ] = "demo"

    model: Annotated[
        ModelName,
        tyro.conf.arg(help=" ".join(f"{name}: {entry.summary}." for name, entry in MODELS.items())),
    ] = "cmsa"

    model_options: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE ...")] = ()
    """Further options of the model, with values in JSON, such as freeze_batch_norm=false."""

    data: Annotated[DataForm, tyro.conf.arg(help=FORMS_HELP)] = "scenes"

    strict: bool = False
    """Stop at the first record or image that cannot be used; otherwise it is left out and reported."""

    train_split: str = "train"
    """Split to learn from, unless --data scenes."""

    evaluate_split: str = "val"
    """Split to evaluate on at the end, unless --data scenes."""

    evaluate_scenes: int = 500
    """Unseen scenes of --data scenes to evaluate on at the end, two expressions each."""

    exclude: Annotated[Path | None, without_default("FILE", "default: none")] = None
    """Images to leave out of the training split, as `cmsa-fast data check --write-exclusions` lists them."""

    vocabulary: Annotated[
        Path | None, without_default("PATH", "default: the words of the training expressions")
    ] = None
    """A published word list, one word a line."""

    glove: Annotated[Path | None, without_default("PATH", "default: none, a random start")] = None
    """A GloVe text file whose vectors the word table starts from; its width replaces --word-channels."""

    run_dir: Annotated[
        Path | None, without_default("PATH", "default: a fresh folder under runs/")
    ] = None
    """Folder for everything the run writes; must be empty or not there, but for --resume."""

    resume: bool = False
    """Continue the run in --run-dir from its last checkpoint, with the options it was started with."""

    seed: int = 0
    """Of the weights, the scenes and the order; the same seed gives the same result on the same machine."""

    num_workers: int = 1
    """Processes that read or draw images beside the training; 0: none."""

    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:1, ...; auto: CUDA where there is one."""

    backend: str = "auto"
    """Of the attention: auto, torch (the exact factorisation) or reference (the literal form, small sizes)."""

    checkpoint_every: int = 200
    """Steps between checkpoints; one is always written at the end, and on Ctrl-C."""

    examples: int = 12
    """How many evaluated expressions to draw."""

    size: Annotated[int | None, _of_preset("size")] = None
    """Side of the square input in pixels."""
    steps: Annotated[int | None, _of_preset("steps")] = None
    """Optimiser steps; the learning rate falls to 0 over them."""
    images_per_step: Annotated[int | None, _of_preset("images_per_step")] = None
    """Images in a batch."""
    expressions_per_image: Annotated[int | None, _of_preset("expressions_per_image")] = None
    """Expressions drawn for each image of a batch."""
    learning_rate: Annotated[float | None, _of_preset("learning_rate")] = None
    """Adam's learning rate after the warm-up."""
    warmup_steps: Annotated[int | None, _of_preset("warmup_steps")] = None
    """Steps over which the learning rate rises from 0."""
    weight_decay: Annotated[float | None, _of_preset("weight_decay")] = None
    """Adam's weight decay."""
    power: Annotated[float | None, _of_preset("power")] = None
    """Power of the polynomial decay of the learning rate."""
    dice_weight: Annotated[float | None, _of_preset("dice_weight")] = None
    """Weight of the Dice loss added to the cross-entropy of Eq. 7."""
    max_words: Annotated[int | None, _of_preset("max_words")] = None
    """Words kept of an expression."""
    backbone: Annotated[Backbone | None, _of_preset("backbone")] = None
    """Network that sees the image."""
    backbone_weights: Annotated[str | None, _of_preset("backbone_weights")] = None
    """One of imagenet, voc-labels (its COCO training has seen RefCOCO's test images), none, or a file."""
    word_channels: Annotated[int | None, _of_preset("word_channels")] = None
    """Width of the word table."""
    attention_channels: Annotated[int | None, _of_preset("attention_channels")] = None
    """Width of query, key and value; with --model cmsa-released at Res5, less at Res4 and Res3."""
    fused_channels: Annotated[int | None, _of_preset("fused_channels")] = None
    """Channels of the gated fusion."""

    def recipe(self) -> Recipe:
        """The preset's recipe with the options that were given in place of its values.

        Raises:
            ValueError: a value is out of range.
        """
        given: dict[str, Any] = {
            field.name: value
            for field in fields(Recipe)
            if (value := getattr(self, field.name)) is not None
        }
        return replace(PRESETS[self.preset], **given)

    def further_model_options(self, reserved: Container[str]) -> dict[str, Any]:
        """--model-options as a dict.

        Args:
            reserved: Names that have an option of their own.

        Raises:
            ValueError: An entry is not NAME=VALUE, or its name is reserved or repeated.
        """
        values: dict[str, Any] = {}
        for entry in self.model_options:
            name, equals, value = entry.partition("=")
            if not equals or name in reserved or name in values:
                raise ValueError(
                    "--model-options must be NAME=VALUE, each name once and none that has an option of its own; "
                    f"got {entry!r}."
                )
            try:
                values[name] = json.loads(value)
            except json.JSONDecodeError:
                values[name] = value
        return values
