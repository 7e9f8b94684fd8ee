"""Example images: input, ground truth and prediction side by side, and the attention each word received."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..data.batch import Collate
from ..data.errors import one_line
from ..data.types import ReferringDataset, Sample
from ..models import for_inference
from ..models.base import ReferringModel
from .conventions import Convention
from .drawing import (
    MARK,
    TEXT,
    as_pillow,
    draw_words,
    fit,
    font,
    lay_out_words,
    level_names,
    overlay,
    resized,
    row_height,
)
from .inference import NATIVE, Refiner, predicted_mask, segment_batch
from .metrics import SegmentationMetrics
from .results import ExpressionResult
from .score import percent

_logger = logging.getLogger(__name__)

_PANEL = 256
_GAP = 8
_LABEL = 48
_ROW = row_height(15)
_OVERVIEW = 40


@dataclass(frozen=True)
class Example:
    """One expression, ready to be drawn."""

    image: Tensor  # uint8 `[3, H, W]`, RGB
    truth: Tensor  # bool `[H, W]`
    prediction: Tensor  # bool `[H, W]`
    expression: str  # the expression as written
    tokens: Sequence[str]  # the N words the model saw
    # `[levels, N]`, the attention each word received. None if the model does not provide it.
    attention: Tensor | None

    @property
    def iou(self) -> float:
        """Intersection over union; 1 if both masks are empty."""
        metrics = SegmentationMetrics()
        metrics.update(self.prediction, self.truth)
        return metrics.ious[0]


def predict_examples(
    model: ReferringModel,
    samples: Sequence[Sample],
    collate: Collate,
    device: torch.device | str,
    *,
    convention: Convention = NATIVE,
    refiner: Refiner | None = None,
) -> list[Example]:
    """Predict samples, with the attention their words receive if the model provides it.

    The model is set to eval mode, and samples of one image are encoded once. The convention must compare masks at
    the image's own size, so not lavt.
    """
    inference = for_inference(model.eval())
    examples: dict[int, Example] = {}
    by_image: dict[int, list[int]] = {}
    for index, sample in enumerate(samples):
        by_image.setdefault(sample.image_id, []).append(index)
    for indices in by_image.values():
        batch = collate([samples[index] for index in indices])
        outputs = segment_batch(inference, batch, device, explain=True)
        for row, (index, output) in enumerate(zip(indices, outputs, strict=True)):
            sample = samples[index]
            mask = predicted_mask(output.probability, batch.letterboxes[row], sample, convention, refiner)
            words = batch.words[row][batch.word_mask[row]].tolist()
            tokens = [collate.vocabulary.tokens[word] for word in words]
            examples[index] = Example(
                sample.image, sample.mask, mask(), sample.expression, tokens, output.word_attention
            )
    return [examples[index] for index in range(len(samples))]


def save_extremes(
    results: Sequence[ExpressionResult],
    most: int,
    model: ReferringModel,
    dataset: ReferringDataset,
    collate: Collate,
    device: torch.device | str,
    folder: Path,
    *,
    convention: Convention = NATIVE,
    refiner: Refiner | None = None,
) -> Path | None:
    """Draw up to `most` of the best and of the worst expressions of an evaluation, as `save_examples`.

    Returns:
        The path of the overview; None if `most` is 0.
    """
    if not most:
        return None
    worst, best = extremes(results, most)
    chosen = [dataset[result.index] for result in (*best, *worst)]
    examples = predict_examples(model, chosen, collate, device, convention=convention, refiner=refiner)
    return save_examples(examples, folder, ["best"] * len(best) + ["worst"] * len(worst))


def extremes(
    results: Sequence[ExpressionResult], most: int
) -> tuple[list[ExpressionResult], list[ExpressionResult]]:
    """The worst and the best expressions, none of them in both; of equal ones, the first."""
    ordered = sorted(results, key=lambda result: (result.iou, result.index))
    worst = ordered[: min(most, len(ordered) // 2)]
    rest = ordered[len(worst) :]
    return worst, sorted(rest, key=lambda result: (-result.iou, result.index))[:most]


def draw_or_warn(draw: Callable[[], Path | None]) -> Path | None:
    """The result of `draw`; if it fails, None and a warning, so that the metrics are not lost."""
    try:
        return draw()
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        _logger.warning("Not all example images could be drawn: %s", one_line(error))
        return None


def draw_example(example: Example) -> Image.Image:
    """Image, ground truth and prediction side by side; below them the words with their attention at each level.

    The rows of words are the paper's Fig. 4: the darker a word's background, the more attention it received,
    relative to the most attended word of the level. Without attention there is one row of words, on white.
    Text that is too long for its line ends in an ellipsis.

    Raises:
        ValueError: A mask has another size than the image, or the attention does not fit the tokens.
    """
    attention, words = example.attention, len(example.tokens)
    if attention is None:
        labels, attention = ["words"], torch.zeros(1, words)
    else:
        labels = level_names(len(attention))
    if words == 0 or attention.shape[1:] != (words,):
        raise ValueError(
            f"attention must be [levels, {words}], for at least one token; got {list(attention.shape)}."
        )
    panels = [
        ("image", example.image),
        ("ground truth", overlay(example.image, [(example.truth, MARK)])),
        (f"prediction, IoU {percent(example.iou)} %", overlay(example.image, [(example.prediction, MARK)])),
    ]
    width = 3 * _PANEL + 4 * _GAP
    top = 2 * _ROW
    room = width - _LABEL - 2 * _GAP
    tokens = [fit(token, room - 10, 15) for token in example.tokens]
    rows = lay_out_words(tokens, room)
    below = len(labels) * (len(rows) * _ROW + 4)
    sheet = Image.new("RGB", (width, top + _PANEL + _GAP + below + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 5), fit(example.expression, width - 2 * _GAP, 17), TEXT, font(17))
    for index, (title, pixels) in enumerate(panels):
        left = _GAP + index * (_PANEL + _GAP)
        draw.text((left, _ROW + 6), title, TEXT, font(13))
        shown = as_pillow(resized(pixels, _PANEL))
        offset = ((_PANEL - shown.width) // 2, (_PANEL - shown.height) // 2)
        sheet.paste(shown, (left + offset[0], top + offset[1]))
    y = top + _PANEL + _GAP
    for label, weights in zip(labels, attention.tolist(), strict=True):
        draw.text((_GAP, y + 4), label, TEXT, font(13))
        y = draw_words(draw, rows, tokens, weights, _GAP + _LABEL, y)
    return sheet


def save_examples(examples: Sequence[Example], folder: Path, sections: Sequence[str] | None = None) -> Path:
    """Write one PNG for each example, and overview.png with the first 40 of them, whose path is returned.

    `sections` are the headings in overview.png, one for each example; examples of one heading are consecutive.

    Raises:
        ValueError: There is no example.
    """
    if not examples:
        raise ValueError("examples must hold at least one example to draw.")
    folder.mkdir(parents=True, exist_ok=True)
    sheets = []
    for index, example in enumerate(examples):
        sheet = draw_example(example)
        sheet.save(folder / f"{index:03d}.png")
        if index < _OVERVIEW:
            sheets.append(sheet)
    width = sheets[0].width
    rows = []
    titled = zip(sections or [""] * len(sheets), sheets, strict=False)
    for title, group in itertools.groupby(titled, key=lambda pair: pair[0]):
        if title:
            heading = Image.new("RGB", (width, _ROW + _GAP), "white")
            ImageDraw.Draw(heading).text((_GAP, _GAP), title, MARK, font(20))
            rows.append([heading])
        section = [sheet for _, sheet in group]
        rows += [section[start : start + 2] for start in range(0, len(section), 2)]
    heights = [max(sheet.height for sheet in row) for row in rows]
    overview = Image.new("RGB", (min(2, len(sheets)) * width, sum(heights)), "white")
    for row, y in zip(rows, itertools.accumulate(heights, initial=0), strict=False):
        for column, sheet in enumerate(row):
            overview.paste(sheet, (column * width, y))
    path = folder / "overview.png"
    overview.save(path)
    return path
