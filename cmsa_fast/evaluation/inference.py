"""From a model to probabilities, word attention and masks; every image is encoded once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..data.batch import Batch
from ..data.transforms import Letterbox
from ..data.types import Sample
from ..models.base import Explanation, ReferringModel
from .conventions import CONVENTIONS, Convention

NATIVE = CONVENTIONS["native"]
EXPRESSIONS_AT_ONCE = 16  # of one image; not an option, because the last bits of the results depend on it


class Output(NamedTuple):
    """What a model computes for one expression. What was not asked for or the model does not provide is None.

    Attributes:
        probability: float32 or float64 `[S, S]` in [0, 1] on the CPU, over the network's square.
        word_attention: float `[levels, N]` on the CPU, the attention each of the N words receives; rows sum to 1.
        last_features: float `[C, h, w]` on the model's device, the last feature map.
    """

    probability: Tensor
    word_attention: Tensor | None = None
    last_features: Tensor | None = None


class Refiner(Protocol):
    """Refines probabilities in parallel with the model (`cmsa_fast.evaluation.crf_pool.RefinementPool`)."""

    def submit(self, image: Tensor, probability: Tensor) -> Future[Tensor]:
        """uint8 `[3, H, W]` and floating-point `[H, W]` in [0, 1] -> float32 `[H, W]`."""
        ...


@torch.no_grad()
def segment_expressions(
    model: ReferringModel, features: Any, words: Tensor, word_mask: Tensor, *, explain: bool = False
) -> list[Output]:
    """Run a model in eval mode on B expressions about one image.

    `features` are one image's, from `encode_image`; `words` is int64 and `word_mask` bool, both `[B, N]` on the
    model's device. With `explain` the outputs have what else the model provides.
    """
    image_index = torch.zeros(len(words), dtype=torch.int64, device=words.device)
    text = model.encode_text(words, word_mask)
    if explain:
        logits, attention, last_features = model.explain(features, text, image_index)
    else:
        logits, attention, last_features = Explanation(model.decode(features, text, image_index))
    wide = logits[:, 0].double() if logits.dtype == torch.float64 else logits[:, 0].float()
    probabilities = wide.sigmoid().cpu()
    nothing = [None] * len(words)
    received = nothing
    if attention is not None:
        received = [part[:, real] for part, real in zip(attention.cpu(), word_mask.cpu(), strict=True)]
    last = nothing if last_features is None else last_features
    return [Output(*parts) for parts in zip(probabilities, received, last, strict=True)]


@torch.no_grad()
def segment_batch(
    model: ReferringModel,
    batch: Batch,
    device: torch.device | str,
    groups: Sequence[int] | None = None,
    *,
    explain: bool = False,
) -> list[Output]:
    """Run a model on the expressions of a batch.

    Each image is encoded once and passes the model only with its own expressions, so that the result does not
    depend, even in its last bit, on the other images of the batch. Expressions of one image with the same number
    in `groups` (None: those of `group_by_image`) pass together.
    """
    moved = batch.to(device)
    images = batch.image_index.tolist()
    if groups is None:
        groups = group_by_image(images)
    rows: dict[int, dict[int, list[int]]] = {}
    for row, (image, group) in enumerate(zip(images, groups, strict=True)):
        rows.setdefault(image, {}).setdefault(group, []).append(row)
    outputs: dict[int, Output] = {}
    for image, members in rows.items():
        features = model.encode_image(moved.images[image : image + 1])
        for chosen in members.values():
            first = int(batch.word_mask[chosen].any(0).int().argmax())  # padding comes first
            words, word_mask = moved.words[chosen, first:], moved.word_mask[chosen, first:]
            result = segment_expressions(model, features, words, word_mask, explain=explain)
            outputs.update(zip(chosen, result, strict=True))
    return [outputs[row] for row in range(len(images))]


def group_by_image(images: Sequence[int]) -> list[int]:
    """For the image of each expression, its group: its number within the image // `EXPRESSIONS_AT_ONCE`."""
    seen: Counter[int] = Counter()
    groups = []
    for image in images:
        groups.append(seen[image] // EXPRESSIONS_AT_ONCE)
        seen[image] += 1
    return groups


def predicted_mask(
    probability: Tensor, letterbox: Letterbox, sample: Sample, convention: Convention, refiner: Refiner | None
) -> Callable[[], Tensor]:
    """A function that returns the predicted mask, bool `[H, W]` at the convention's size.

    With a refiner, which is given the probabilities `[S, S]` at once, the function waits for its result.
    """
    if refiner is None:
        mask = convention.prediction(probability, letterbox)
        return lambda: mask
    if convention.refine_at == "image":
        own = letterbox.restore(probability).clamp(0, 1)
        refined = refiner.submit(sample.image, own)
        return lambda: convention.prediction_at_own_size(refined.result())
    square = (letterbox.image(sample.image) * 255).round().to(torch.uint8)
    refined = refiner.submit(square, probability)
    return lambda: convention.prediction(refined.result(), letterbox)
