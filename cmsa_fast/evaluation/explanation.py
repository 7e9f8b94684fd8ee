"""One figure that explains a prediction: mask, heat map, and the attention of words and places at each level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from ..data.transforms import Letterbox
from ..data.vocabulary import tokenize
from .drawing import (
    MARK,
    TEXT,
    as_pillow,
    draw_heat_map,
    draw_words,
    fit,
    font,
    lay_out_words,
    level_names,
    overlay,
    resized,
    row_height,
    wrap,
)

_PANEL = 400
_GAP = 16
_LABEL = 64  # width of the names of the levels before their words
_TITLE, _CAPTION, _WORD = 26, 17, 20  # font sizes
_TITLE_LINES = 3
_WIDTH = 3 * _PANEL + 4 * _GAP
_ROOM = _WIDTH - 2 * _GAP
_BAR = (256, 14)


class Explained(Protocol):
    """A prediction as `draw_explanation` reads it, such as `cmsa_fast.predictor.Prediction`."""

    @property
    def image(self) -> Tensor:
        """uint8 `[3, H, W]`, RGB."""

    @property
    def mask(self) -> Tensor:
        """bool `[H, W]`."""

    @property
    def expression(self) -> str:
        """The expression as given."""

    @property
    def tokens(self) -> Sequence[str]:
        """The N words the model saw."""

    @property
    def letterbox(self) -> Letterbox:
        """How the image lies in the network's square."""

    @property
    def word_attention(self) -> Tensor | None:
        """`[L, N]`, the attention each word received at each level."""

    @property
    def place_attention(self) -> Tensor | None:
        """`[L, h, w]`, the attention each place of the square received at each level."""

    @property
    def heat_map(self) -> Tensor | None:
        """`[H, W]` in [0, 1], the strongest channel of the last feature map."""


def draw_explanation(prediction: Explained) -> Image.Image:
    """Draw an image and its mask, and below them what the model shows of its computation.

    These are the heat map of the paper's Fig. 5, whose channel may mark the object or everything but the object;
    the words, darker the more attention they received relative to the level's most attended word (Fig. 4); and the
    attention each place received, from blue for none to red for the level's most attended place inside the image.
    An unknown word is followed by "<unk>", which the model saw. What the model does not provide is left out.
    """
    shown = resized(prediction.image, _PANEL)
    mask = _shrink(prediction.mask.float(), shown, "nearest") > 0
    share = 100 * float(prediction.mask.float().mean())
    panels = [("image", shown), (f"mask: {share:.1f} % of the image", overlay(shown, [(mask, MARK)]))]
    heat, places = prediction.heat_map, prediction.place_attention
    if heat is not None:
        title = "strongest channel of the last feature map"
        panels.append((title, draw_heat_map(shown, _shrink(heat, shown, "bilinear"))))
    strips = [
        *(_line(text, _TITLE) for text in wrap(prediction.expression, _ROOM, _TITLE, _TITLE_LINES)),
        _panels(panels),
        *_words(_word_labels(prediction), prediction.word_attention),
    ]
    if places is not None:
        strips.append(_line("Attention received by each place", _CAPTION))
        strips.append(_panels(_place_panels(places, prediction.letterbox, shown)))
    if heat is not None or places is not None:
        strips.append(_color_bar())
    figure = Image.new("RGB", (_WIDTH, sum(strip.height for strip in strips) + 2 * _GAP), "white")
    y = _GAP
    for strip in strips:
        figure.paste(strip, (0, y))
        y += strip.height
    return figure


def _shrink(map_: Tensor, shown: Tensor, mode: str) -> Tensor:
    """A map [H, W] at the size of an image [3, h, w]."""
    return F.interpolate(map_[None, None].float(), size=shown.shape[1:], mode=mode)[0, 0]


def _place_panels(attention: Tensor, letterbox: Letterbox, shown: Tensor) -> list[tuple[str, Tensor]]:
    square = F.interpolate(attention[:, None].float(), size=(letterbox.size,) * 2, mode="bilinear")[:, 0]
    panels = []
    for name, received in zip(level_names(len(attention)), letterbox.inside(square), strict=True):
        heat = _shrink(received, shown, "bilinear")
        heat = heat / heat.amax().clamp_min(torch.finfo(heat.dtype).tiny)
        times = float(received.amax()) * attention[0].numel()
        panels.append((f"{name}: at most {times:.2g} times the mean", draw_heat_map(shown, heat)))
    return panels


def _strip(height: int, draw: Callable[[ImageDraw.ImageDraw, Image.Image], object]) -> Image.Image:
    strip = Image.new("RGB", (_WIDTH, height), "white")
    draw(ImageDraw.Draw(strip), strip)
    return strip


def _line(text: str, size: int) -> Image.Image:
    return _strip(row_height(size), lambda draw, _: draw.text((_GAP, 0), text, TEXT, font(size)))


def _panels(panels: Sequence[tuple[str, Tensor]]) -> Image.Image:
    """Images in rows of three, a title above each."""
    top = row_height(_CAPTION)
    height = panels[0][1].shape[1] + top + _GAP
    rows = -(-len(panels) // 3)

    def draw_panels(draw: ImageDraw.ImageDraw, strip: Image.Image) -> None:
        for index, (title, pixels) in enumerate(panels):
            x, y = _GAP + index % 3 * (_PANEL + _GAP), index // 3 * height
            draw.text((x, y + 2), title, TEXT, font(_CAPTION))
            strip.paste(as_pillow(pixels), (x, y + top))

    return _strip(rows * height, draw_panels)


def _word_labels(prediction: Explained) -> list[str]:
    words = tokenize(prediction.expression)  # as many as the tokens, or more
    return [
        token if token == word else f"{word} {token}"
        for word, token in zip(words, prediction.tokens, strict=False)
    ]


def _words(tokens: Sequence[str], attention: Tensor | None) -> list[Image.Image]:
    """A heading and the words at each level; without attention the words on white."""
    shown = [fit(token, _ROOM - _LABEL - 10, _WORD) for token in tokens]
    rows = lay_out_words(shown, _ROOM - _LABEL, _WORD)
    height = len(rows) * row_height(_WORD) + 8

    def level(name: str, weights: list[float]) -> Image.Image:
        def draw_level(draw: ImageDraw.ImageDraw, _: Image.Image) -> None:
            draw.text((_GAP, 5), name, TEXT, font(_CAPTION))
            draw_words(draw, rows, shown, weights, _GAP + _LABEL, 0, _WORD)

        return _strip(height, draw_level)

    if attention is None:
        return [_line("Words", _CAPTION), level("", [0.0] * len(shown))]
    levels = zip(level_names(len(attention)), attention.tolist(), strict=True)
    return [_line("Attention received by each word", _CAPTION), *(level(*one) for one in levels)]


def _color_bar() -> Image.Image:
    width, height = _BAR
    ramp = torch.linspace(0, 1, width).expand(height, width)
    bar = as_pillow(draw_heat_map(torch.full((3, height, width), 128, dtype=torch.uint8), ramp))

    def draw_bar(draw: ImageDraw.ImageDraw, strip: Image.Image) -> None:
        x = _GAP
        for part in ("least", bar, "most"):
            if isinstance(part, str):
                draw.text((x, 0), part, TEXT, font(_CAPTION))
                x += round(font(_CAPTION).getlength(part)) + 10
            else:
                strip.paste(part, (x, 4))
                x += width + 10

    return _strip(row_height(_CAPTION), draw_bar)
