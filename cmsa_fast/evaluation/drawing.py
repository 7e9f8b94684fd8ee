"""Masks and heat maps over an image, and the parts of figures: fonts, panels and words with their attention."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

Color = tuple[int, int, int]
# [(index of the token, left, width), ...] of each row of words, in pixels.
WordRows = list[list[tuple[int, int, int]]]

TEXT: Color = (20, 20, 20)
MARK: Color = (235, 30, 90)
# Colours of masks on one image; they differ in lightness too, for colour-blind readers.
PALETTE: tuple[Color, ...] = (
    MARK,
    (20, 120, 220),
    (30, 160, 80),
    (240, 140, 0),
    (150, 60, 200),
    (0, 170, 170),
    (130, 90, 50),
    (90, 90, 90),
)

_SIDES = 640, 1600  # smallest and largest longer side of `draw_masks`
_LEGEND = 18  # font size
_ATTENTION: Color = (255, 176, 0)
# Colours of heat from 0 to 1, at equal steps, without the darkest of the "turbo" map (Mikhailov, 2019).
_HEAT = (
    (65, 80, 200),
    (40, 188, 235),
    (50, 242, 152),
    (164, 252, 60),
    (237, 208, 58),
    (251, 128, 34),
    (210, 40, 5),
)


def overlay(image: Tensor, marks: Sequence[tuple[Tensor, Color]]) -> Tensor:
    """Mark masks on an image: tinted and outlined, the rest paler.

    Args:
        image: uint8 `[3, H, W]`, RGB.
        marks: Masks, bool `[H, W]`, each with its colour. Later ones lie over earlier ones; outlines lie over all.

    Returns:
        uint8 `[3, H, W]`.

    Raises:
        ValueError: A mask has another size than the image.
    """
    pixels = image.float()
    marked = 0.55 * pixels + 0.45 * 255
    tinted = torch.zeros(image.shape[1:], dtype=torch.bool)
    outlines = []
    for mask, color in marks:
        _check_size("mask", mask, image)
        paint = torch.tensor(color, dtype=torch.float32)[:, None, None]
        below = torch.where(tinted, marked, pixels)
        marked = torch.where(mask, 0.55 * below + 0.45 * paint, marked)
        tinted = tinted | mask
        width = 1 + min(mask.shape) // 160
        inner = -F.max_pool2d(-mask[None].float(), 2 * width + 1, stride=1, padding=width)[0]
        outlines.append((mask & (inner == 0), paint))
    for outline, paint in outlines:
        marked = torch.where(outline, paint, marked)
    return marked.round().to(torch.uint8)


def draw_masks(image: Tensor, masks: Sequence[tuple[Tensor, str]]) -> Image.Image:
    """An image with masks in the colours of `PALETTE`, and a legend below it.

    The longer side is enlarged to 640 pixels or reduced to 1600.

    Args:
        image: uint8 `[3, H, W]`, RGB.
        masks: Masks, bool `[H, W]`, each with its text in the legend, at most as many as there are colours.

    Raises:
        ValueError: A mask has another size than the image, or there are too many masks.
    """
    if len(masks) > len(PALETTE):
        raise ValueError(f"masks must be at most {len(PALETTE)}, one for each colour; got {len(masks)}.")
    side = min(max(*image.shape[1:], _SIDES[0]), _SIDES[1])
    shown = resized(image, side)
    marks = []
    for (mask, _), color in zip(masks, PALETTE, strict=False):
        _check_size("mask", mask, image)
        small = F.interpolate(mask[None, None].float(), size=shown.shape[1:], mode="nearest")
        marks.append((small[0, 0] > 0, color))
    height, width = shown.shape[1:]
    row = row_height(_LEGEND)
    sheet = Image.new("RGB", (max(width, _SIDES[0]), height + 8 + row * len(masks)), "white")
    sheet.paste(as_pillow(overlay(shown, marks)), ((sheet.width - width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    for number, ((_, text), (_, color)) in enumerate(zip(masks, marks, strict=True)):
        y = height + 8 + number * row
        draw.rectangle((8, y, 8 + _LEGEND, y + _LEGEND), fill=color)
        draw.text((18 + _LEGEND, y - 2), fit(text, sheet.width - 26 - _LEGEND, _LEGEND), TEXT, font(_LEGEND))
    return sheet


def draw_heat_map(image: Tensor, heat: Tensor) -> Tensor:
    """Lay a heat map over an image in shades of grey, the less transparent the hotter: blue is 0, red is 1.

    Args:
        image: uint8 `[3, H, W]`, RGB.
        heat: Floating point `[H, W]` in [0, 1].

    Returns:
        uint8 `[3, H, W]`.

    Raises:
        ValueError: `heat` has another size than the image.
    """
    _check_size("heat", heat, image)
    grey = (image.float() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
    # Dark and pale images are stretched, so that they stay visible below the colours.
    darkest, brightest = grey.aminmax()
    grey = 40 + (grey - darkest) * 215 / (brightest - darkest).clamp_min(64)
    colors = torch.tensor(_HEAT, dtype=torch.float32).T  # [3, steps]
    heat = heat.float().clamp(0, 1)
    place = heat * (colors.shape[1] - 1)
    below = place.long().clamp_max(colors.shape[1] - 2)
    shade = torch.lerp(colors[:, below], colors[:, below + 1], place - below)
    return torch.lerp(grey.expand(3, -1, -1), shade, 0.4 + 0.4 * heat).round().to(torch.uint8)


def resized(pixels: Tensor, side: int) -> Tensor:
    """An image, uint8 `[3, H, W]`, whose longer side is `side` pixels; the other side has at least one."""
    image = as_pillow(pixels)
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Nearest pixels when enlarging much, so that a small scene shows what the model saw.
    method = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    return torch.from_numpy(np.array(image.resize(size, method))).permute(2, 0, 1)


def as_pillow(pixels: Tensor) -> Image.Image:
    """uint8 `[3, H, W]` as an image of Pillow."""
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))


def row_height(size: int) -> int:
    """Height of a row of words in a font size, with the space below it."""
    return round(size * 26 / 15)


def lay_out_words(tokens: Sequence[str], width: int, size: int = 15) -> WordRows:
    """Rows of words in a font size, wrapped at `width` pixels."""
    rows: WordRows = [[]]
    left = 0
    for index, token in enumerate(tokens):
        room = int(font(size).getlength(token)) + 10
        if left and left + room > width:
            rows.append([])
            left = 0
        rows[-1].append((index, left, room))
        left += room + 3
    return rows


def draw_words(
    draw: ImageDraw.ImageDraw,
    rows: WordRows,
    tokens: Sequence[str],
    weights: list[float],
    x: int,
    y: int,
    size: int = 15,
) -> int:
    """Draw rows of words from (x, y), darker the larger their weight is; returns the y below them.

    The shade is relative to the largest weight (the paper's Fig. 4).
    """
    most = max(weights) or 1.0
    height = row_height(size)
    for row in rows:
        for index, left, width in row:
            share = weights[index] / most
            background = tuple(round(255 + share * (channel - 255)) for channel in _ATTENTION)
            draw.rectangle((x + left, y, x + left + width, y + height - 4), fill=background)
            draw.text((x + left + 5, y + 2), tokens[index], TEXT, font(size))
        y += height
    return y + 4


def level_names(count: int) -> list[str]:
    """The names of a model's levels: those of ResNet's stages if there are three."""
    return ["Res3", "Res4", "Res5"] if count == 3 else [f"level {number}" for number in range(1, count + 1)]


def wrap(text: str, width: int, size: int, most: int) -> list[str]:
    """A text in up to `most` lines of at most `width` pixels in a font size; a longer one ends in an ellipsis."""
    words, lines = text.split(), [""]
    while words and len(lines) < most:
        longer = f"{lines[-1]} {words[0]}".strip()
        if font(size).getlength(longer) <= width:
            lines[-1] = longer
        elif lines[-1]:
            lines.append(words[0])
        else:
            lines[-1] = fit(words[0], width, size)
        words = words[1:]
    return [*lines[:-1], fit(" ".join([lines[-1], *words]), width, size)]


def fit(text: str, width: int, size: int) -> str:
    """A text on one line of at most `width` pixels in a font size; a longer one ends in an ellipsis."""
    text = " ".join(text.split())
    face = font(size)
    if len(text) <= width and face.getlength(text) <= width:
        return text
    # No letter is narrower than a pixel.
    kept = bisect.bisect_left(range(width), True, key=lambda end: face.getlength(f"{text[:end]}…") > width)
    return text[: max(0, kept - 1)] + "…"


@functools.lru_cache(maxsize=16)
def font(size: int) -> ImageFont.FreeTypeFont:
    """The font of all figures."""
    face = ImageFont.load_default(size)
    if not isinstance(face, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType, which drawing words needs.")
    return face


def _check_size(name: str, map_: Tensor, image: Tensor) -> None:
    if image.shape[1:] != map_.shape:
        raise ValueError(f"{name} must have the image's size {list(image.shape[1:])}; got {list(map_.shape)}.")
