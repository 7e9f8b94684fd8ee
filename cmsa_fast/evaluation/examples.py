"""What a model finds in chosen samples, ready to be drawn."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.batch import Collate
from ..data.errors import one_line
from ..data.types import ReferringDataset, Sample
from ..models.base import ExplainsWords
from .conventions import Convention
from .inference import NATIVE, Refiner, predict_batch
from .results import ExpressionResult
from .visualization import Example, save_examples

_logger = logging.getLogger(__name__)


@torch.no_grad()
def examples_of(
    model: Any,
    samples: Sequence[Sample],
    collate: Collate,
    device: torch.device | str,
    *,
    convention: Convention = NATIVE,
    refiner: Refiner | None = None,
) -> list[Example]:
    """Predict samples one by one, with the attention that their words received where the model can say.

    Args:
        model: see `cmsa_fast.models.base.ReferringModel`; put into eval mode.
        samples: what to predict.
        collate: with the model's vocabulary and size.
        device: where the model is.
        convention: how predictions become masks; one that compares masks at the image's own size.
        refiner: sharpens probabilities before they are cut.
    """
    model.eval()
    examples = []
    for sample in samples:
        batch = collate([sample])
        (prediction,) = predict_batch(model, batch, device, convention, refiner)
        moved = batch.to(device)
        attention = None
        if isinstance(model, ExplainsWords):
            features = model.encode_image(moved.images)
            text = model.encode_text(moved.words, moved.word_mask)
            attention = model.explain(features, text)[1][0].cpu()
        tokens = [collate.vocabulary.tokens[word] for word in batch.words[0].tolist()]
        examples.append(
            Example(sample.image, sample.mask, prediction, sample.expression, tokens, attention)
        )
    return examples


def save_extremes(
    results: Sequence[ExpressionResult],
    most: int,
    model: nn.Module,
    dataset: ReferringDataset,
    collate: Collate,
    device: torch.device | str,
    folder: Path,
    *,
    convention: Convention = NATIVE,
    refiner: Refiner | None = None,
) -> Path | None:
    """Draw the best and the worst expressions of an evaluation on one sheet, as `save_examples` does.

    Args:
        results: of the evaluation.
        most: how many of either to draw.
        model, dataset, collate, device: of the evaluation.
        folder: for the images.
        convention, refiner: as for `examples_of`.

    Returns:
        The path of the sheet; None where none is to be drawn.
    """
    if not most:
        return None
    worst, best = extremes(results, most)
    chosen = [dataset[result.index] for result in (*best, *worst)]
    examples = examples_of(model, chosen, collate, device, convention=convention, refiner=refiner)
    return save_examples(examples, folder, ["best"] * len(best) + ["worst"] * len(worst))


def extremes(
    results: Sequence[ExpressionResult], most: int
) -> tuple[list[ExpressionResult], list[ExpressionResult]]:
    """The worst and the best expressions, none of them in both; of equals, the first ones."""
    ordered = sorted(results, key=lambda result: (result.iou, result.index))
    worst = ordered[: min(most, len(ordered) // 2)]
    rest = ordered[len(worst) :]
    return worst, sorted(rest, key=lambda result: (-result.iou, result.index))[:most]


def drawn_or_warned(draw: Callable[[], Path | None]) -> Path | None:
    """What `draw` returns; where it fails, None and a warning: no figure is lost over an image."""
    try:
        return draw()
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        _logger.warning("Not all images could be drawn: %s", one_line(error))
        return None
