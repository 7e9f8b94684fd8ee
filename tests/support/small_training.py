"""A data set in memory, a tiny model and a short recipe, for the tests of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cmsa_fast.data.batch import Collate
from cmsa_fast.data.types import Sample
from cmsa_fast.data.vocabulary import Vocabulary
from cmsa_fast.models.checkpoint import ModelConfig
from cmsa_fast.training.loop import Progress, train
from cmsa_fast.training.recipe import PRESETS, Recipe

SIZE = 32
EXPRESSIONS = ("left dog", "right dog", "the cat", "a brown cat in the middle", "dog")
VOCABULARY = Vocabulary.from_expressions(EXPRESSIONS)
OPTIONS: dict[str, Any] = {
    "vocabulary_size": len(VOCABULARY),
    "backbone": "narrow",
    "narrow_widths": [8, 8, 8, 8, 8],
    "word_channels": 8,
    "attention_channels": 8,
    "fused_channels": 8,
}
CONFIG = ModelConfig("cmsa", OPTIONS, VOCABULARY.tokens, SIZE, 20)
RECIPE = replace(
    PRESETS["demo"],
    size=SIZE,
    steps=13,
    images_per_step=2,
    expressions_per_image=1,
    optimizer="adamw",
    learning_rate=1.5e-3,
    warmup_steps=3,
)
# Options of a `cmsa-fast train` that takes a second.
TINY: dict[str, Any] = {
    "steps": 3,
    "size": 64,
    "images_per_step": 2,
    "expressions_per_image": 2,
    "warmup_steps": 1,
    "word_channels": 8,
    "attention_channels": 8,
    "fused_channels": 8,
    "evaluate_scenes": 5,
    "examples": 3,
    "num_workers": 0,
}


def arguments(**options: Any) -> list[str]:
    """`TINY` with changes, as arguments of the command line."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in (TINY | options).items()]


class Listed:
    """Samples in a list as a data set."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = list(samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def expressions(self) -> list[str]:
        return [sample.expression for sample in self.samples]

    def image_ids(self) -> list[int]:
        return [sample.image_id for sample in self.samples]


def images(count: int = 5, expressions: int = 2) -> Listed:
    """Noise of odd sizes with rectangles as masks, `expressions` each; kinds "a" and "b" in turn."""
    random = torch.Generator().manual_seed(3)
    samples = []
    for number in range(count):
        height, width = 23 + 6 * number, 41 - 4 * number
        image = torch.randint(0, 256, (3, height, width), generator=random, dtype=torch.uint8)
        for place in range(expressions):
            mask = torch.zeros(height, width, dtype=torch.bool)
            mask[3 : 11 + place, 2 + 5 * place : 13 + 5 * place] = True
            index = len(samples)
            expression = EXPRESSIONS[index % len(EXPRESSIONS)]
            samples.append(Sample(image, mask, expression, number, index, index, "ab"[place % 2]))
    return Listed(samples)


def new_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return CONFIG.build()


def run(
    folder: Path,
    dataset: Any = None,
    *,
    recipe: Recipe = RECIPE,
    collate: Any = None,
    model: nn.Module | None = None,
    config: ModelConfig = CONFIG,
    **options: Any,
) -> tuple[nn.Module, Progress]:
    """Train the tiny model in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model = new_model() if model is None else model
    collate = collate or Collate(VOCABULARY, recipe.size)
    dataset = images() if dataset is None else dataset
    return model, train(model, config, dataset, collate, recipe, folder, **options)
