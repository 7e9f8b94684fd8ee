"""Training recipes: what a preset fixes of the model and the optimisation."""

import math
from dataclasses import dataclass
from typing import Literal

PresetName = Literal["demo", "paper"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything about model and optimisation that a preset fixes and an option may change.

    Attributes:
        size: side of the square the images are letterboxed to, in pixels.
        steps: optimiser steps.
        images_per_step: images in a batch.
        expressions_per_image: expressions drawn for each; an image is encoded once for all of them.
        learning_rate: Adam's, after the warm-up.
        warmup_steps: steps over which the learning rate rises from 0.
        weight_decay: Adam's.
        power: the learning rate falls as (1 - progress) ** power, by steps.
        dice_weight: weight of the Dice loss added to Eq. 7.
        max_words: words kept of an expression.
        backbone: "narrow", "resnet18", "resnet34", "resnet50" or "resnet101".
        backbone_weights: "imagenet", "voc-labels", "none", or the path of a file.
        word_channels: Cl, width of the word table.
        attention_channels: d, width of query, key and value (of cmsa-released: at Res5).
        fused_channels: channels of the gated fusion.
    """

    size: int
    steps: int
    images_per_step: int
    expressions_per_image: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    power: float
    dice_weight: float
    max_words: int
    backbone: str
    backbone_weights: str
    word_channels: int
    attention_channels: int
    fused_channels: int

    def __post_init__(self) -> None:
        at_least_one = (
            "size steps images_per_step expressions_per_image max_words word_channels "
            "attention_channels fused_channels"
        )
        for name in at_least_one.split():
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}.")
        for name in ("learning_rate", "weight_decay", "power", "dice_weight"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite; got {getattr(self, name)}.")
        for name in ("warmup_steps", "weight_decay", "power", "dice_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative; got {getattr(self, name)}.")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0; got {self.learning_rate}.")


PRESETS: dict[PresetName, Recipe] = {
    "demo": Recipe(
        size=128,
        steps=2250,
        images_per_step=8,
        expressions_per_image=4,
        learning_rate=1.5e-3,
        warmup_steps=200,
        weight_decay=0.0,
        power=0.9,
        dice_weight=1.0,
        max_words=20,
        backbone="narrow",
        backbone_weights="none",
        word_channels=64,
        attention_channels=64,
        fused_channels=64,
    ),
    # Section 4 of the paper. It names neither batch nor steps: those are the published code's.
    "paper": Recipe(
        size=320,
        steps=800_000,
        images_per_step=1,
        expressions_per_image=1,
        learning_rate=2.5e-4,
        warmup_steps=0,
        weight_decay=5e-4,
        power=0.9,
        dice_weight=0.0,
        max_words=20,
        backbone="resnet101",
        backbone_weights="imagenet",
        word_channels=1000,
        attention_channels=512,
        fused_channels=500,
    ),
}
