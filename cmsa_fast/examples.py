"""What a model finds in chosen samples, ready to be drawn."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from .conventions import Convention
from .data.batch import Collate
from .data.problems import in_one_line
from .data.sample import Sample
from .inference import NATIVE, Refiner, predict_batch
from .models import ExplainsWords
from .plots import Example

_LOG = logging.getLogger(__name__)


@torch.no_grad()
def examples_of(
    model: nn.Module,
    samples: Sequence[Sample],
    collate: Collate,
    device: torch.device | str,
    *,
    convention: Convention = NATIVE,
    refiner: Refiner | None = None,
) -> list[Example]:
    """Predict samples one by one, with the attention that their words received where the model can say.

    Args:
        model: see `cmsa_fast.models.ReferringModel`; put into eval mode.
        samples: what to predict.
        collate: with the model's vocabulary and size.
        device: where the model is.
        convention: how predictions become masks; one that compares masks at the picture's own size.
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
            attention = model.word_attention(features, moved.words, moved.word_mask)[0].cpu()
        tokens = [collate.vocabulary.tokens[word] for word in batch.words[0].tolist()]
        examples.append(
            Example(sample.image, sample.mask, prediction, sample.sentence, tokens, attention)
        )
    return examples


def drawn_or_warned(draw: Callable[[], Path | None]) -> Path | None:
    """What `draw` returns; where it fails, None and a warning: no figure is lost over a picture."""
    try:
        return draw()
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        _LOG.warning("Not all pictures could be drawn: %s", in_one_line(error))
        return None
