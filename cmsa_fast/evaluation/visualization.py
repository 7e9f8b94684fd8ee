"""Example images: input, ground truth and prediction side by side, and the attention each word received."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from ..data.batch import Collate
from ..data.errors import one_line
from ..data.types import ReferringDataset, Sample
from ..models import for_inference
from ..models.base import ReferringModel
from .conventions import Convention
from .inference import NATIVE, Refiner, predicted_mask, segment_batch
from .metrics import SegmentationMetrics
from .results import ExpressionResult
from .score import percent

_logger = logging.getLogger(__name__)

_PANEL = 256
_GAP = 8
_ROW = 26
_LABEL = 48
_TEXT = (20, 20, 20)
_MARK = (235, 30, 90)
_ATTENTION = (255, 176, 0)
_OVERVIEW = 40

_Rows = list[list[tuple[int, int, int]]]


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


def overlay(image: Tensor, mask: Tensor) -> Tensor:
    """Mark a mask, bool `[H, W]`, on an image, uint8 `[3, H, W]`: tinted and outlined, the rest paler.

    Raises:
        ValueError: `mask` has another size than the image.
    """
    if image.shape[1:] != mask.shape:
        raise ValueError(f"mask must have the image's size {list(image.shape[1:])}; got {list(mask.shape)}.")
    colour = torch.tensor(_MARK, dtype=torch.float32)[:, None, None]
    pixels = image.float()
    pale = 0.55 * pixels + 0.45 * 255
    marked = torch.where(mask, 0.55 * pixels + 0.45 * colour, pale)
    width = 1 + min(mask.shape) // 160
    inner = -F.max_pool2d(-mask[None].float(), 2 * width + 1, stride=1, padding=width)[0]
    outline = mask & (inner == 0)
    return torch.where(outline, colour, marked).round().to(torch.uint8)


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
        labels = [f"level {number}" for number in range(1, len(attention) + 1)]
        labels = ["Res3", "Res4", "Res5"] if len(labels) == 3 else labels
    if words == 0 or attention.shape[1:] != (words,):
        raise ValueError(
            f"attention must be [levels, {words}], for at least one token; got {list(attention.shape)}."
        )
    panels = [
        ("image", example.image),
        ("ground truth", overlay(example.image, example.truth)),
        (f"prediction, IoU {percent(example.iou)} %", overlay(example.image, example.prediction)),
    ]
    width = 3 * _PANEL + 4 * _GAP
    top = 2 * _ROW
    room = width - _LABEL - 2 * _GAP
    tokens = [_fit(token, room - 10, _font(15)) for token in example.tokens]
    rows = _lay_out(tokens, room)
    below = len(labels) * (len(rows) * _ROW + 4)
    sheet = Image.new("RGB", (width, top + _PANEL + _GAP + below + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 5), _fit(example.expression, width - 2 * _GAP, _font(17)), _TEXT, _font(17))
    for index, (title, pixels) in enumerate(panels):
        left = _GAP + index * (_PANEL + _GAP)
        draw.text((left, _ROW + 6), title, _TEXT, _font(13))
        panel = _panel(pixels)
        offset = ((_PANEL - panel.width) // 2, (_PANEL - panel.height) // 2)
        sheet.paste(panel, (left + offset[0], top + offset[1]))
    y = top + _PANEL + _GAP
    for label, weights in zip(labels, attention.tolist(), strict=True):
        draw.text((_GAP, y + 4), label, _TEXT, _font(13))
        y = _draw_words(draw, rows, tokens, weights, y)
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
            ImageDraw.Draw(heading).text((_GAP, _GAP), title, _MARK, _font(20))
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


def _panel(pixels: Tensor) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    scale = _PANEL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Nearest pixels when enlarging, so that a small scene shows what the model saw.
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return image.resize(size, method)


def _lay_out(tokens: Sequence[str], width: int) -> _Rows:
    """Rows of (index of the token, left, width), in pixels, wrapped at `width`."""
    rows: _Rows = [[]]
    left = 0
    for index, token in enumerate(tokens):
        size = int(_font(15).getlength(token)) + 10
        if left and left + size > width:
            rows.append([])
            left = 0
        rows[-1].append((index, left, size))
        left += size + 3
    return rows


def _draw_words(
    draw: ImageDraw.ImageDraw, rows: _Rows, tokens: Sequence[str], weights: list[float], y: int
) -> int:
    most = max(weights) or 1.0
    for row in rows:
        for index, left, width in row:
            share = weights[index] / most
            background = tuple(round(255 + share * (channel - 255)) for channel in _ATTENTION)
            x = _GAP + _LABEL + left
            draw.rectangle((x, y, x + width, y + _ROW - 4), fill=background)
            draw.text((x + 5, y + 2), tokens[index], _TEXT, _font(15))
        y += _ROW
    return y + 4


def _fit(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    text = " ".join(text.split())  # one line
    if len(text) <= width and font.getlength(text) <= width:
        return text
    text = text[:width]  # no letter is narrower than a pixel
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType, which drawing words needs.")
    return font
