"""Options of `cmsa-fast train`."""

import json
from collections.abc import Container
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import tyro

from ..models.registry import MODELS
from ..training.recipe import PRESETS, OptimizerName, PresetName, Recipe, Schedule
from .data_options import FORMS_HELP, DataForm, DataOptions, without_default

if TYPE_CHECKING:
    ModelName = str
else:
    ModelName = Literal[tuple(MODELS)]
Backbone = Literal["narrow", "compact", "resnet18", "resnet34", "resnet50", "resnet101"]


def _of_preset(name: str, choices: Any = None) -> Any:
    """Metavar and default of an option that the preset decides: --help shows its value in each preset."""
    kind = choices or Recipe.__annotations__[name]
    metavar = "{" + ",".join(get_args(kind)) + "}" if get_origin(kind) else str(kind.__name__).upper()
    values = ", ".join(f"{preset} {getattr(recipe, name)}" for preset, recipe in PRESETS.items())
    return without_default(metavar, f"default: {values}")


@dataclass(frozen=True, kw_only=True)
class TrainOptions(DataOptions):
    """Options of `cmsa-fast train`; `recipe()` combines them with the preset."""

    preset: Annotated[
        PresetName,
        tyro.conf.arg(
            help="Sizes, optimiser and schedule. demo: a narrow CMSA model at 128 px, trained in minutes on a "
            "CPU. paper: the model of the paper (ResNet-101, 320 px) with its optimiser; see docs/deviations.md."
        ),
    ] = "demo"

    model: Annotated[
        ModelName,
        tyro.conf.arg(
            help="Network to train. " + " ".join(f"{name}: {entry.summary}." for name, entry in MODELS.items())
        ),
    ] = "cmsa"

    model_options: Annotated[tuple[str, ...], without_default("NAME=VALUE", "default: none")] = ()
    """One or more further options of the model, values as JSON: narrow_widths=[16,16,32,32,64]."""

    data: Annotated[DataForm, tyro.conf.arg(help=FORMS_HELP)] = "scenes"

    strict: bool = False
    """Stop at the first record or image that cannot be used; otherwise it is left out and reported."""

    train_split: str = "train"
    """Split to train on; unused with --data scenes."""

    evaluate_split: str = "val"
    """Split to validate and evaluate on; unused with --data scenes."""

    evaluate_scenes: int = 500
    """Scenes to evaluate on at the end with --data scenes; each has two expressions."""

    validate_expressions: int = 200
    """Expressions of a validation: evenly spaced in the evaluation split, or of scenes that are not in it."""

    exclude: Annotated[Path | None, without_default("FILE", "default: none")] = None
    """List of images to leave out of the training split, from `cmsa-fast data check --write-exclusions`."""

    vocabulary: Annotated[
        Path | None, without_default("PATH", "default: the words of the training expressions")
    ] = None
    """Vocabulary file with one word per line."""

    glove: Annotated[Path | None, without_default("PATH", "default: none, random initialisation")] = None
    """GloVe text file to initialise the word embedding from; its width replaces --word-channels."""

    run_dir: Annotated[Path | None, without_default("PATH", "default: a new folder under runs/")] = None
    """Folder for all output of the run; must be empty or not exist, except with --resume."""

    resume: bool = False
    """Continue the run in --run-dir from its last checkpoint, with the options it was started with."""

    seed: int = 0
    """Seed of weights, scenes and order; the same seed gives the same result on the same machine."""

    num_workers: int = 1
    """Worker processes that read or draw images; 0: the training process reads them."""

    device: str = "auto"
    """Device to train on: cpu, cuda, cuda:1, ...; auto: CUDA if available."""

    backend: str = "auto"
    """Attention backend: auto, torch (exact factorisation), triton, or reference (all pairs, small sizes)."""

    checkpoint_every: int = 200
    """Steps between checkpoints; also written after a validation, at the end and on Ctrl-C."""

    examples: int = 12
    """Number of evaluated expressions to draw."""

    freeze_backbone: bool = False
    """Do not train the backbone, as in the published code; the paper does not say."""

    size: Annotated[int | None, _of_preset("size")] = None
    """Side of the square input in pixels."""
    steps: Annotated[int | None, _of_preset("steps")] = None
    """Optimiser steps; the learning-rate schedule spans them."""
    images_per_step: Annotated[int | None, _of_preset("images_per_step")] = None
    """Images in a batch."""
    expressions_per_image: Annotated[int | None, _of_preset("expressions_per_image")] = None
    """Expressions sampled for each image of a batch."""
    optimizer: Annotated[OptimizerName | None, _of_preset("optimizer")] = None
    """adamw, or muon: orthogonalised steps for the matrices (convolutions, linear layers), Adam's for others."""
    learning_rate: Annotated[float | None, _of_preset("learning_rate")] = None
    """Learning rate after the warm-up; with --optimizer muon of all parameters but the matrices."""
    matrix_rate: Annotated[float | None, _of_preset("matrix_rate")] = None
    """Learning rate of the matrices after the warm-up, with --optimizer muon."""
    end_learning_rate: Annotated[float | None, _of_preset("end_learning_rate")] = None
    """Learning rate at the end of the schedule (the published code: 1e-05)."""
    warmup_steps: Annotated[int | None, _of_preset("warmup_steps")] = None
    """Steps over which the learning rate rises linearly from 0."""
    schedule: Annotated[Schedule | None, _of_preset("schedule")] = None
    """How the learning rate falls: poly, (1 - progress) ** power, or cosine."""
    power: Annotated[float | None, _of_preset("power")] = None
    """Power of --schedule poly."""
    weight_decay: Annotated[float | None, _of_preset("weight_decay")] = None
    """Decoupled weight decay of the convolutions of backbone, mask head and Res5 squeeze; no others decay."""
    ema_decay: Annotated[float | None, _of_preset("ema_decay")] = None
    """Decay of the moving average of the weights, which is then evaluated and saved; 0: no average."""
    validate_every: Annotated[int | None, _of_preset("validate_every")] = None
    """Steps between validations, of which model.safetensors keeps the best; 0: it keeps the last weights."""
    dice_weight: Annotated[float | None, _of_preset("dice_weight")] = None
    """Weight of the Dice loss added to the cross-entropy of Eq. 7."""
    max_words: Annotated[int | None, _of_preset("max_words")] = None
    """Maximum number of words of an expression; further words are cut off."""
    backbone: Annotated[Backbone | None, _of_preset("backbone", Backbone)] = None
    """Network that encodes the image."""
    backbone_weights: Annotated[str | None, _of_preset("backbone_weights")] = None
    """imagenet, voc-labels (its COCO training includes RefCOCO's test images), none, or a file."""
    word_channels: Annotated[int | None, _of_preset("word_channels")] = None
    """Width of the word embedding."""
    attention_channels: Annotated[int | None, _of_preset("attention_channels")] = None
    """Width of query, key and value; with cmsa-released at Res5, less at Res4 and Res3."""
    fused_channels: Annotated[int | None, _of_preset("fused_channels")] = None
    """Channels of the gated fusion."""
    mask_scale: Annotated[int | None, _of_preset("mask_scale")] = None
    """Rows and columns of logits for each place, with --model cmsa; the paper has 1."""

    def recipe(self) -> Recipe:
        """The recipe of the preset, with the given options in place of its values."""
        given: dict[str, Any] = {
            field.name: value for field in fields(Recipe) if (value := getattr(self, field.name)) is not None
        }
        return replace(PRESETS[self.preset], **given)

    def further_model_options(self, reserved: Container[str]) -> dict[str, Any]:
        """Parse --model-options; a value that is not JSON is a string.

        Args:
            reserved: Names that have an option of their own.
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
