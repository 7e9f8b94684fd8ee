"""A tiny model with varied masks, and results without a model, for the tests of evaluation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cmsa_fast.cli import main
from cmsa_fast.data.batch import Collate
from cmsa_fast.evaluation.results import ExpressionResult

from .small_training import SIZE, VOCABULARY, Listed, images, new_model

COLLATE = Collate(VOCABULARY, SIZE)


def varied_model() -> nn.Module:
    """A random model with confident masks that are neither empty nor full on the data of `images`."""
    model = new_model(2).eval()
    batch = COLLATE([images(5, 3)[0]])
    with torch.no_grad():
        model.mask.bias -= float(model(batch.images, batch.words).median())  # type: ignore[union-attr, operator]
        model.mask.weight *= 20  # type: ignore[union-attr, operator]
    return model


def damaged(data: Listed, *places: int) -> Listed:
    """The data with expressions at some places that have no word."""
    samples = [replace(one, expression="") if place in places else one for place, one in enumerate(data.samples)]
    return Listed(samples)


def evaluate_run(run: Path, *options: str) -> int:
    """The exit status of `cmsa-fast evaluate` without workers and drawings."""
    return main(["evaluate", str(run), "--num-workers=0", "--examples=0", *options])


def content_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text())


def random_results(
    seed: int, images: int = 40, shift: float = 0.0, no_target: bool = False
) -> list[ExpressionResult]:
    """Three expressions for each image; the same true masks for every seed.

    Args:
        seed: Of the predictions.
        images: Number of images.
        shift: Added to the mean IoU of the predictions.
        no_target: Let every seventh expression name nothing.
    """
    masks, random = np.random.default_rng(0), np.random.default_rng(seed)
    results = []
    for index in range(3 * images):
        names_nothing = no_target and index % 7 == 0
        true = 0 if names_nothing else int(masks.integers(50, 5000))
        intersection = int(true * np.clip(random.normal(0.6 + shift, 0.2), 0, 1))
        predicted = intersection + int(random.integers(0, 1000) * (random.random() < 0.9))
        union = predicted + true - intersection
        results.append(
            ExpressionResult(
                index=index,
                image_id=index // 3,
                ref_id=index // 2,
                sent_id=index,
                expression=f'the "dog", {index}\nnext line – café',
                words=3,
                kind="",
                names_nothing=names_nothing,
                height=80,
                width=100,
                intersection=intersection,
                predicted=predicted,
                true=true,
                share=true / 8000,
                iou=intersection / union if union else 1.0,
                convention="native",
            )
        )
    return results
