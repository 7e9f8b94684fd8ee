"""Training recipes: sizes of the model, batch, optimiser and schedule, and the presets that fix them."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

OPTIONS = "options.json"  # in a run folder: the options of the training as given, and the recipe
PresetName = Literal["demo", "paper"]
OptimizerName = Literal["adamw", "muon"]
Schedule = Literal["poly", "cosine"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of model and optimisation that a preset fixes and an option may change.

    Fields with a default were added after version 0.1; the default is what that version did.
    """

    size: int  # side of the square that images are letterboxed to, in pixels
    steps: int  # number of optimiser steps
    images_per_step: int  # images in a batch
    expressions_per_image: int  # expressions sampled for each image; the image is encoded once for all of them
    optimizer: OptimizerName = "adamw"  # "adamw", or "muon" (`cmsa_fast.training.muon.Muon`)
    learning_rate: float  # learning rate after the warm-up, with "muon" of all parameters but the matrices
    matrix_rate: float = 1e-2  # learning rate of the matrices with "muon", after the warm-up
    # Learning rate at the end of the schedule; with "muon" both rates fall in proportion.
    end_learning_rate: float = 0.0
    warmup_steps: int  # steps over which the learning rate rises linearly from 0
    schedule: Schedule = "poly"  # "poly" or "cosine"; see `cmsa_fast.training.optimization.learning_rate_factor`
    power: float  # power of schedule "poly"
    weight_decay: float  # decoupled weight decay of the layers that `parameter_groups` chooses
    # Decay of the moving average of the weights, which is then evaluated and saved; 0: none.
    ema_decay: float = 0.0
    validate_every: int = 0  # steps between validations; 0: none
    dice_weight: float  # weight of the Dice loss added to Eq. 7
    max_words: int  # maximum number of words of an expression
    backbone: str  # "narrow", "compact", "resnet18", "resnet34", "resnet50" or "resnet101"
    backbone_weights: str  # "imagenet", "voc-labels", "none", or the path of a file
    word_channels: int  # Cl, width of the word embedding
    attention_channels: int  # d, width of query, key and value (in cmsa-released: at Res5)
    fused_channels: int  # channels of the gated fusion
    mask_scale: int = 1  # rows and columns of logits for each place

    def __post_init__(self) -> None:
        counts = (
            "size steps images_per_step expressions_per_image max_words word_channels "
            "attention_channels fused_channels mask_scale"
        )
        amounts = "end_learning_rate weight_decay power dice_weight warmup_steps validate_every"
        least_values = dict.fromkeys(counts.split(), 1) | dict.fromkeys(amounts.split(), 0)
        for name in ("learning_rate", "matrix_rate", *amounts.split()):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite; got {getattr(self, name)}.")
        for name, least in least_values.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {getattr(self, name)}.")
        for name in ("learning_rate", "matrix_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0; got {getattr(self, name)}.")
        if self.end_learning_rate > self.learning_rate:
            raise ValueError(
                f"end_learning_rate must not be above learning_rate, {self.learning_rate}; "
                f"got {self.end_learning_rate}."
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be from 0 to below 1; got {self.ema_decay}.")
        for name, choices in {"schedule": Schedule, "optimizer": OptimizerName}.items():
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"{name} must be one of {', '.join(get_args(choices))}; got {getattr(self, name)!r}."
                )


PRESETS: dict[PresetName, Recipe] = {
    "demo": Recipe(
        size=128,
        steps=2400,
        images_per_step=4,
        expressions_per_image=8,
        optimizer="muon",
        learning_rate=3e-3,
        matrix_rate=1e-2,
        warmup_steps=60,
        power=1.0,
        weight_decay=0.0,
        validate_every=600,
        dice_weight=1.0,
        max_words=20,
        backbone="compact",
        backbone_weights="none",
        word_channels=64,
        attention_channels=32,
        fused_channels=64,
        mask_scale=4,
    ),
    # Section 4 of the paper. Batch, steps and final learning rate are those of the published code, because the
    # paper does not give them; docs/deviations.md compares the two.
    "paper": Recipe(
        size=320,
        steps=800_000,
        images_per_step=1,
        expressions_per_image=1,
        learning_rate=2.5e-4,
        end_learning_rate=1e-5,
        warmup_steps=0,
        power=0.9,
        weight_decay=5e-4,
        validate_every=10_000,
        dice_weight=0.0,
        max_words=20,
        backbone="resnet101",
        backbone_weights="imagenet",
        word_channels=1000,
        attention_channels=512,
        fused_channels=500,
    ),
}
