"""Masks and heat maps over an image, and the parts of figures: fonts, panels and words with their attention."""

from __future__ import annotations

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
ROW = 26  # height of a row of words

_ATTENTION: Color = (255, 176, 0)
# Google's "turbo" (Mikhailov, 2019) at equal steps from 0 to 1.
_HEAT = (
    (48, 18, 59),
    (70, 107, 227),
    (40, 188, 235),
    (50, 242, 152),
    (164, 252, 60),
    (237, 208, 58),
    (251, 128, 34),
    (210, 49, 5),
    (122, 4, 3),
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
        if image.shape[1:] != mask.shape:
            raise ValueError(f"mask must have the image's size {list(image.shape[1:])}; got {list(mask.shape)}.")
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


def draw_heat_map(image: Tensor, heat: Tensor) -> Tensor:
    """Lay a heat map over an image in shades of grey: blue is 0, red is 1.

    Args:
        image: uint8 `[3, H, W]`, RGB.
        heat: Floating point `[H, W]` in [0, 1].

    Returns:
        uint8 `[3, H, W]`.

    Raises:
        ValueError: `heat` has another size than the image.
    """
    if image.shape[1:] != heat.shape:
        raise ValueError(f"heat must have the image's size {list(image.shape[1:])}; got {list(heat.shape)}.")
    grey = (image.float() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
    colors = torch.tensor(_HEAT, dtype=torch.float32).T  # [3, steps]
    place = heat.float().clamp(0, 1) * (colors.shape[1] - 1)
    below = place.long().clamp_max(colors.shape[1] - 2)
    shade = torch.lerp(colors[:, below], colors[:, below + 1], place - below)
    return (0.35 * grey + 0.65 * shade).round().to(torch.uint8)


def panel(pixels: Tensor, side: int) -> Image.Image:
    """An image, uint8 `[3, H, W]`, resized so that its longer side is `side` pixels."""
    image = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Nearest pixels when enlarging, so that a small scene shows what the model saw.
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return image.resize(size, method)


def lay_out_words(tokens: Sequence[str], width: int) -> WordRows:
    """Rows of words, wrapped at `width` pixels."""
    rows: WordRows = [[]]
    left = 0
    for index, token in enumerate(tokens):
        size = int(font(15).getlength(token)) + 10
        if left and left + size > width:
            rows.append([])
            left = 0
        rows[-1].append((index, left, size))
        left += size + 3
    return rows


def draw_words(
    draw: ImageDraw.ImageDraw, rows: WordRows, tokens: Sequence[str], weights: list[float], x: int, y: int
) -> int:
    """Draw rows of words from (x, y), darker the larger their weight is; returns the y below them.

    The shade is relative to the largest weight (the paper's Fig. 4).
    """
    most = max(weights) or 1.0
    for row in rows:
        for index, left, width in row:
            share = weights[index] / most
            background = tuple(round(255 + share * (channel - 255)) for channel in _ATTENTION)
            draw.rectangle((x + left, y, x + left + width, y + ROW - 4), fill=background)
            draw.text((x + left + 5, y + 2), tokens[index], TEXT, font(15))
        y += ROW
    return y + 4


def fit(text: str, width: int, size: int) -> str:
    """A text on one line of at most `width` pixels in a font size; a longer one ends in an ellipsis."""
    text = " ".join(text.split())
    face = font(size)
    if len(text) <= width and face.getlength(text) <= width:
        return text
    text = text[:width]  # no letter is narrower than a pixel
    while text and face.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def font(size: int) -> ImageFont.FreeTypeFont:
    """The font of all figures."""
    face = ImageFont.load_default(size)
    if not isinstance(face, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType, which drawing words needs.")
    return face
