"""What the page answers: an image is encoded once, each expression gets a mask and its explanation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from io import BytesIO
from pathlib import Path
from threading import Lock

from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..data.errors import one_line
from ..data.images import read_image
from ..data.vocabulary import tokenize
from ..evaluation.drawing import PALETTE, as_pillow, draw_heat_map, level_names, overlay, resized
from ..predictor import EncodedImage, Prediction, Predictor

MOST_EXPRESSIONS = len(PALETTE)
_MOST_CHARACTERS = 20_000
_IMAGES_KEPT = 16  # encoded images in memory, for all clients together
_SHOWN_SIDES = 512, 1280  # the longest side of a drawn image is at least and at most this many pixels


@dataclass(frozen=True)
class Answer:
    """What is shown for an image and its expressions.

    Attributes:
        message: HTML, one sentence: the time spent, or what is wrong with the input.
        marked: The image with every mask in its colour. None if the input was wrong.
        legend: HTML, one entry for each expression: its colour, its words and their attention.
        heat_maps: An image and a caption for each expression.
    """

    message: str
    marked: Image.Image | None = None
    legend: str = ""
    heat_maps: Sequence[tuple[Image.Image, str]] = ()


@dataclass(frozen=True)
class _Encoded:
    image: EncodedImage
    seconds: float


class Answers:
    """Answers for one model, from any number of threads.

    An image is identified by its path, which must not be used for another image later. Gradio's paths of uploads
    contain a checksum of the file.

    Args:
        predictor: The model.
        max_pixels: Largest number of pixels of an image.
    """

    def __init__(self, predictor: Predictor, max_pixels: int) -> None:
        self.predictor = predictor
        self.max_pixels = max_pixels
        self._lock = Lock()
        self._encoded: Callable[[Path], _Encoded] = lru_cache(_IMAGES_KEPT)(self._encode)

    def receive(self, path: str | None) -> str:
        """Encode a new image.

        Returns:
            The message, as in `Answer`; empty if there is no image.
        """
        if path is None:
            return ""
        try:
            encoded = self._encode_once(Path(path))
        except (ValueError, OSError) as error:
            return _wrong(one_line(error))
        height, width = encoded.image.pixels.shape[1:]
        return _right(f"{width} × {height} pixels, encoded in {_seconds(encoded.seconds)}.")

    def segment(self, path: str | None, text: str) -> Answer:
        """Segment what each line of `text` refers to in an image."""
        try:
            expressions = _expressions(text)
            if path is None:
                raise ValueError("Choose an image first.")
            encoded = self._encode_once(Path(path))
        except (ValueError, OSError) as error:
            return Answer(_wrong(one_line(error)))
        shown = _shown(encoded.image.pixels)
        marks, entries, heat_maps = [], [], []
        total = 0.0
        for number, expression in enumerate(expressions):
            started = time.perf_counter()
            try:
                # One at a time, so that the memory does not grow with their number.
                (prediction,) = self.predictor.segment(encoded.image, [expression])
            except ValueError as error:
                entries.append(_entry(number, expression, _wrong(one_line(error))))
                continue
            seconds = time.perf_counter() - started
            total += seconds
            entries.append(_entry(number, expression, self._explanation(prediction, expression, seconds)))
            marks.append((_over(shown, prediction.mask) >= 0.5, PALETTE[number]))
            if prediction.heat_map is not None:
                heat_map = draw_heat_map(shown, _over(shown, prediction.heat_map))
                heat_maps.append((as_pillow(heat_map), expression))
        count = "1 expression" if len(marks) == 1 else f"{len(marks)} expressions"
        message = f"{count} in {_seconds(total)}; the image was encoded once, in {_seconds(encoded.seconds)}."
        return Answer(_right(message), as_pillow(overlay(shown, marks)), "".join(entries), heat_maps)

    def _explanation(self, prediction: Prediction, expression: str, seconds: float) -> str:
        """HTML below an expression: how much it marks, what the model did not read, the words with attention."""
        share = prediction.mask.float().mean().item()
        facts = [f"{100 * share:.1f} % of the image" if share else "nothing marked", _seconds(seconds)]
        parts = [f"<p>{' · '.join(facts)}</p>"]
        words, read = tokenize(expression), len(prediction.tokens)
        if len(words) > read:
            parts.append(_note(f"Only the first {read} of {len(words)} words were read."))
        if prediction.unknown_words:
            names = ", ".join(f"“{word}”" for word in dict.fromkeys(prediction.unknown_words))
            parts.append(_note(f"Unknown to the model: {names}."))
        return "".join(parts) + _attended(words[:read], prediction)

    def _encode_once(self, path: Path) -> _Encoded:
        with self._lock:  # a second request for the same image waits for the first
            return self._encoded(path)

    def _encode(self, path: Path) -> _Encoded:
        try:
            content = BytesIO(path.read_bytes())
        except FileNotFoundError:
            raise FileNotFoundError("The image is no longer on the server; choose it again.") from None
        content.name = path.name
        pixels = read_image(content, max_pixels=self.max_pixels)
        started = time.perf_counter()
        return _Encoded(self.predictor.encode(pixels), time.perf_counter() - started)


def _expressions(text: str) -> list[str]:
    """One expression for each line that is not blank."""
    text = text.encode(errors="replace").decode()  # a lone surrogate could not be sent back
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError("Type what the image shows, one expression a line.")
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"The expressions have {len(text)} characters; at most {_MOST_CHARACTERS} are read.")
    if len(lines) > MOST_EXPRESSIONS:
        raise ValueError(f"There are {len(lines)} expressions; at most {MOST_EXPRESSIONS} are marked at once.")
    return lines


def _entry(number: int, expression: str, below: str) -> str:
    colour = "rgb({}, {}, {})".format(*PALETTE[number])
    return (
        f'<section><span class="swatch" style="background: {colour}"></span>'
        f'<div><h4 dir="auto">{escape(expression)}</h4>{below}</div></section>'
    )


def _attended(words: Sequence[str], prediction: Prediction) -> str:
    """The words, one row for each level, with a background as strong as their attention (Fig. 4 of the paper)."""
    attention = prediction.word_attention
    if attention is None:
        return ""
    rows = []
    for label, weights in zip(level_names(len(attention)), attention.tolist(), strict=True):
        most = max(weights) or 1.0
        chips = "".join(
            f'<span class="word{" unknown" if word in prediction.unknown_words else ""}" dir="auto" '
            f'title="{100 * weight:.0f} %" style="--share: {weight / most:.3f}">{escape(word)}</span>'
            for word, weight in zip(words, weights, strict=True)
        )
        rows.append(f'<div class="words"><span class="level">{label}</span>{chips}</div>')
    return "".join(rows)


def _shown(pixels: Tensor) -> Tensor:
    """An image at the size at which it is shown."""
    longest = max(pixels.shape[1:])
    side = min(max(longest, _SHOWN_SIDES[0]), _SHOWN_SIDES[1])
    return pixels if side == longest else resized(pixels, side)


def _over(shown: Tensor, map_: Tensor) -> Tensor:
    """A map `[H, W]` of the image, at the size at which the image is shown."""
    size = shown.shape[1:]
    mode = "area" if size.numel() < map_.numel() else "nearest"
    return functional.interpolate(map_[None, None].float(), size, mode=mode)[0, 0]


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def _right(sentence: str) -> str:
    return f'<p class="right">{escape(sentence)}</p>'


def _wrong(sentence: str) -> str:
    return f'<p class="wrong" role="alert">{escape(sentence)}</p>'


def _note(sentence: str) -> str:
    return f'<p class="note" dir="auto">{escape(sentence)}</p>'
