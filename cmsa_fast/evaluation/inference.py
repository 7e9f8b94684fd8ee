"""From a model and a batch to probabilities and masks, each image encoded once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import torch
from torch import Tensor

from ..data.batch import Batch
from ..data.transforms import Letterbox
from ..data.types import Sample
from .conventions import CONVENTIONS, Convention

NATIVE = CONVENTIONS["native"]
EXPRESSIONS_AT_ONCE = 16  # of one image; part of what is computed, so no option


class Refiner(Protocol):
    """Sharpens probabilities beside the model (`cmsa_fast.evaluation.crf.RefinementPool`)."""

    def submit(self, image: Tensor, probability: Tensor) -> Future[Tensor]:
        """uint8 [3, H, W] and floating point [H, W] in [0, 1] -> float32 [H, W]."""
        ...


@torch.no_grad()
def predict_probabilities(
    model: Any,
    batch: Batch,
    device: torch.device | str,
    groups: Sequence[int] | None = None,
) -> list[Tensor]:
    """The probability of every pixel of the square, for each expression of a batch.

    Each image is encoded once and goes through the model with its own expressions alone, so that what else is in
    the batch has no influence on the result, not even on its last bit.

    Args:
        model: see `cmsa_fast.models.base.ReferringModel`.
        batch: on any device.
        device: where the model is.
        turns: for each expression a number; those of one image and one number go through the model together.
            None: `SENTENCES_AT_ONCE` of an image at a time.

    Returns:
        float32 or float64 [S, S] on the CPU, in [0, 1], for each expression.
    """
    moved = batch.to(device)
    images = batch.image_index.tolist()
    if groups is None:
        groups = group_by_image(images)
    rows: dict[int, dict[int, list[int]]] = {}
    for row, (image, turn) in enumerate(zip(images, groups, strict=True)):
        rows.setdefault(image, {}).setdefault(turn, []).append(row)
    found: list[Tensor | None] = [None] * len(batch.samples)
    for image, expressions in rows.items():
        features = model.encode_image(moved.images[image : image + 1])
        for chosen in expressions.values():
            word_mask = moved.word_mask[chosen]
            first = int(word_mask.any(0).int().argmax())  # words are padded at the front
            logits = model.segment(
                features,
                moved.words[chosen, first:],
                word_mask[:, first:],
                torch.zeros(len(chosen), dtype=torch.int64, device=word_mask.device),
            )
            probabilities = (
                logits[:, 0].double() if logits.dtype == torch.float64 else logits[:, 0].float()
            )
            for row, probability in zip(chosen, probabilities.sigmoid().cpu(), strict=True):
                found[row] = probability
    return [probability for probability in found if probability is not None]


def group_by_image(images: Sequence[int]) -> list[int]:
    """For each expression, given its image's number: with which of its image's expressions it goes, from 0."""
    seen: Counter[int] = Counter()
    groups = []
    for image in images:
        groups.append(seen[image] // EXPRESSIONS_AT_ONCE)
        seen[image] += 1
    return groups


def predict_batch(
    model: Any,
    batch: Batch,
    device: torch.device | str,
    convention: Convention = NATIVE,
    refiner: Refiner | None = None,
) -> list[Tensor]:
    """Predicted masks at the size where the convention compares them, by default the images' own.

    Returns:
        bool [H, W] for each expression.
    """
    pending = [
        predicted_mask(probability, letterbox, sample, convention, refiner)
        for probability, letterbox, sample in zip(
            predict_probabilities(model, batch, device),
            batch.letterboxes,
            batch.samples,
            strict=True,
        )
    ]
    return [mask() for mask in pending]


def predicted_mask(
    probability: Tensor,
    letterbox: Letterbox,
    sample: Sample,
    convention: Convention,
    refiner: Refiner | None,
) -> Callable[[], Tensor]:
    """A function that gives the predicted mask, and waits for the refiner where there is one.

    Args:
        probability: floating point [S, S] in [0, 1].
        letterbox: how the image sits in the square.
        sample: the expression with its image.
        convention: says where the refiner works and how probabilities become a mask.
        refiner: None: the probabilities as they are.
    """
    if refiner is None:
        mask = convention.prediction(probability, letterbox)
        return lambda: mask
    if convention.refine_at == "picture":
        own = letterbox.restore(probability).clamp(0, 1)
        refined = refiner.submit(sample.image, own)
        return lambda: convention.prediction_at_own_size(refined.result())
    square = (letterbox.image(sample.image) * 255).round().to(torch.uint8)
    refined = refiner.submit(square, probability)
    return lambda: convention.prediction(refined.result(), letterbox)
