"""Images of what a model found: input, truth, prediction, and the words it attended to."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

_PANEL = 256
_GAP = 8
_ROW = 26
_LABEL = 48
_INK = (20, 20, 20)
_MARK = (235, 30, 90)
_WORD = (255, 176, 0)
_LEVELS = ("Res3", "Res4", "Res5")
_OVERVIEW = 40


@dataclass(frozen=True)
class Example:
    """One evaluated expression.

    Attributes:
        image: uint8 [3, H, W], RGB.
        truth: bool [H, W].
        prediction: bool [H, W].
        expression: as it was written.
        tokens: the N words the model saw.
        attention: [3, N], what each word received at Res3, Res4 and Res5. None where the model cannot say.
    """

    image: Tensor
    truth: Tensor
    prediction: Tensor
    expression: str
    tokens: Sequence[str]
    attention: Tensor | None

    @property
    def iou(self) -> float:
        """Intersection over union; 1 where both masks are empty."""
        union = int((self.truth | self.prediction).sum())
        return int((self.truth & self.prediction).sum()) / union if union else 1.0


def overlay(image: Tensor, mask: Tensor) -> Tensor:
    """Mark a mask on an image: the object tinted and outlined, the rest paler.

    Args:
        image: uint8 [3, H, W], RGB.
        mask: bool [H, W].

    Returns:
        uint8 [3, H, W].

    Raises:
        ValueError: mask does not have the image's size.
    """
    if image.shape[1:] != mask.shape:
        raise ValueError(
            f"mask must have the image's size {list(image.shape[1:])}; got {list(mask.shape)}."
        )
    colour = torch.tensor(_MARK, dtype=torch.float32)[:, None, None]
    pixels = image.float()
    pale = 0.55 * pixels + 0.45 * 255
    marked = torch.where(mask, 0.55 * pixels + 0.45 * colour, pale)
    width = 1 + min(mask.shape) // 160
    inner = -F.max_pool2d(-mask[None].float(), 2 * width + 1, stride=1, padding=width)[0]
    outline = mask & (inner == 0)
    return torch.where(outline, colour, marked).round().to(torch.uint8)


def draw_example(example: Example) -> Image.Image:
    """Input, truth and prediction side by side; below, the words with their attention at each level.

    The rows of words are the paper's Fig. 4: the darker a word's ground, the more attention it received,
    relative to the most attended word of its level. Without attention the words stand in one row, on white. What
    is too long for its line ends in an ellipsis.

    Raises:
        ValueError: a mask does not have the image's size, or attention does not fit the tokens.
    """
    labels: Sequence[str] = _LEVELS
    attention = example.attention
    if attention is None:
        labels, attention = ("words",), torch.zeros(1, len(example.tokens))
    expected = (len(labels), len(example.tokens))
    if not example.tokens or tuple(attention.shape) != expected:
        raise ValueError(
            f"attention must have shape {list(expected)}, levels x tokens, with at least one token; "
            f"got {list(attention.shape)}."
        )
    panels = [
        ("input", example.image),
        ("truth", overlay(example.image, example.truth)),
        (f"prediction, IoU {example.iou:.2f}", overlay(example.image, example.prediction)),
    ]
    width = 3 * _PANEL + 4 * _GAP
    top = 2 * _ROW
    room = width - _LABEL - 2 * _GAP
    tokens = [_fit(token, room - 10, _font(15)) for token in example.tokens]
    word_rows = [_lay_out(tokens, room)] * len(labels)
    below = sum(len(rows) * _ROW + 4 for rows in word_rows)
    sheet = Image.new("RGB", (width, top + _PANEL + _GAP + below + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 5), _fit(example.expression, width - 2 * _GAP, _font(17)), _INK, _font(17))
    for index, (title, pixels) in enumerate(panels):
        left = _GAP + index * (_PANEL + _GAP)
        draw.text((left, _ROW + 6), title, _INK, _font(13))
        panel = _panel(pixels)
        offset = ((_PANEL - panel.width) // 2, (_PANEL - panel.height) // 2)
        sheet.paste(panel, (left + offset[0], top + offset[1]))
    y = top + _PANEL + _GAP
    for label, weights, rows in zip(labels, attention.tolist(), word_rows, strict=True):
        draw.text((_GAP, y + 4), label, _INK, _font(13))
        y = _draw_words(draw, rows, tokens, weights, y)
    return sheet


def save_examples(
    examples: Sequence[Example], folder: Path, sections: Sequence[str] | None = None
) -> Path:
    """Write one PNG for each example, and overview.png with the first 40 of them.

    Args:
        examples: at least one.
        folder: made where it does not exist.
        sections: for each example the heading of overview.png under which it stands; those of one heading follow
            one another. None: no headings.

    Returns:
        The path of overview.png.

    Raises:
        ValueError: there is no example, or sections does not have one heading for each.
    """
    if not examples:
        raise ValueError("examples must hold at least one example to draw.")
    if sections is None:
        sections = [""] * len(examples)
    if len(sections) != len(examples):
        raise ValueError(
            f"sections must have one heading for each of the {len(examples)} examples; got {len(sections)}."
        )
    folder.mkdir(parents=True, exist_ok=True)
    sheets: list[Image.Image] = []
    for index, example in enumerate(examples):
        sheet = draw_example(example)
        sheet.save(folder / f"{index:03d}.png")
        sheets += [sheet] * (len(sheets) < _OVERVIEW)
    columns = 1 if len(sheets) == 1 else 2
    overview = _stacked(
        [_in_rows(title, group, columns) for title, group in _grouped(sections, sheets)]
    )
    path = folder / "overview.png"
    overview.save(path)
    return path


def _grouped(
    sections: Sequence[str], sheets: Sequence[Image.Image]
) -> list[tuple[str, list[Image.Image]]]:
    pairs = zip(sections, sheets, strict=False)  # sheets end earlier where there are many
    return [
        (title, [sheet for _, sheet in group])
        for title, group in itertools.groupby(pairs, key=lambda pair: pair[0])
    ]


def _in_rows(title: str, sheets: list[Image.Image], columns: int) -> Image.Image:
    rows = [sheets[start : start + columns] for start in range(0, len(sheets), columns)]
    heights = [max(sheet.height for sheet in row) for row in rows]
    top = (_ROW + _GAP) if title else 0
    image = Image.new("RGB", (columns * sheets[0].width, top + sum(heights)), "white")
    if title:
        ImageDraw.Draw(image).text((_GAP, _GAP), title, _MARK, _font(20))
    y = top
    for row, height in zip(rows, heights, strict=True):
        for column, sheet in enumerate(row):
            image.paste(sheet, (column * sheets[0].width, y))
        y += height
    return image


def _stacked(images: list[Image.Image]) -> Image.Image:
    whole = Image.new("RGB", (images[0].width, sum(image.height for image in images)), "white")
    y = 0
    for image in images:
        whole.paste(image, (0, y))
        y += image.height
    return whole


def _panel(pixels: Tensor) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    scale = _PANEL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Enlarged pixels stay square, so that a small scene shows what the model saw.
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return image.resize(size, method)


def _lay_out(tokens: Sequence[str], width: int) -> list[list[tuple[int, int, int]]]:
    """Rows of (number of the token, left, width), in pixels, broken where they would pass `width`."""
    rows: list[list[tuple[int, int, int]]] = [[]]
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
    draw: ImageDraw.ImageDraw,
    rows: list[list[tuple[int, int, int]]],
    tokens: Sequence[str],
    weights: list[float],
    y: int,
) -> int:
    most = max(weights) or 1.0
    for row in rows:
        for index, left, width in row:
            share = weights[index] / most
            ground = tuple(round(255 + share * (channel - 255)) for channel in _WORD)
            x = _GAP + _LABEL + left
            draw.rectangle((x, y, x + width, y + _ROW - 4), fill=ground)
            draw.text((x + 5, y + 2), tokens[index], _INK, _font(15))
        y += _ROW
    return y + 4


def _fit(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    text = " ".join(text.split())  # one line, whatever was typed
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
