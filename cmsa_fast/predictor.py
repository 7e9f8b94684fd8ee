"""Prediction for one image and any number of expressions: `set_image` once, then `predict`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from .data.batch import pad_words
from .data.errors import shorten
from .data.images import convert_image, read_image
from .data.transforms import Letterbox
from .data.vocabulary import Vocabulary, tokenize
from .evaluation.drawing import MARK, overlay
from .evaluation.inference import EXPRESSIONS_AT_ONCE, NATIVE, Output, segment_expressions
from .models import for_inference
from .models.base import ReferringModel
from .models.checkpoint import ModelConfig, load_pretrained

_logger = logging.getLogger(__name__)

ImageInput = str | PathLike[str] | Tensor | Image.Image | NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image and its features, from `Predictor.encode`; any number of threads may share it.

    Attributes:
        pixels: uint8 `[3, H, W]`, RGB, on the CPU. Not to be written to.
        letterbox: How the image lies in the network's square.
        features: The model's features, on its device.
    """

    pixels: Tensor
    letterbox: Letterbox
    features: Any = field(repr=False)


@dataclass(frozen=True, eq=False)
class Prediction:
    """The object that an expression refers to in an image. What a model does not provide is None.

    Attributes:
        mask: bool `[H, W]` on the CPU, at the image's own size: probability above 0.5, as in an evaluation with
            the "native" convention.
        probability: float32 `[H, W]` in [0, 1], resized bilinearly to the image's own size.
        expression: The expression as given.
        tokens: The N words the model saw; a word that is not in the vocabulary is "<unk>".
        unknown_words: The words of the expression that the vocabulary does not have.
        word_attention: `[L, N]`, the attention each word received at the L levels (Res3, Res4, Res5); rows sum to
            1. The paper's Fig. 4 shows it.
        image: uint8 `[3, H, W]`, the image, shared by its predictions.
        letterbox: How the image lies in the network's square.
    """

    mask: Tensor
    probability: Tensor
    expression: str
    tokens: tuple[str, ...]
    unknown_words: tuple[str, ...]
    word_attention: Tensor | None
    image: Tensor = field(repr=False)
    letterbox: Letterbox = field(repr=False)
    _strongest_channel: Tensor | None = field(repr=False)
    _attend_to_places: Callable[[], Tensor | None] | None = field(repr=False)

    @cached_property
    def place_attention(self) -> Tensor | None:
        """float32 `[L, h, w]`, the attention each place of the network's square received at the levels.

        Each level sums to 1. It is computed when it is first read, at half the cost of the attention itself.
        """
        return None if self._attend_to_places is None else self._attend_to_places()

    @cached_property
    def heat_map(self) -> Tensor | None:
        """float32 `[H, W]` in [0, 1]: the strongest channel of the last feature map, as in the paper's Fig. 5.

        The channel with the largest activation inside the image is resized bilinearly and normalised to [0, 1]. It
        may mark the object, or everything but the object.
        """
        channel = self._strongest_channel
        if channel is None:
            return None
        square = F.interpolate(
            channel[None, None], size=(self.letterbox.size, self.letterbox.size), mode="bilinear"
        )
        heat = self.letterbox.restore(square[0, 0])
        heat = heat - heat.amin()
        return heat / heat.amax().clamp_min(torch.finfo(heat.dtype).tiny)

    def __getstate__(self) -> dict[str, Any]:
        # A copy in another process has no model to ask.
        return {**vars(self), "place_attention": self.place_attention, "_attend_to_places": None}


class Predictor:
    """Segments what expressions refer to in an image, which is encoded once for all of them.

    `encode` and `segment` keep no state: any number of threads may call them, with the results of one thread.

    Args:
        model: Built by `config.build()`. Its weights are used as they are now; see `cmsa_fast.nn.FoldedLevel`.
        config: Its vocabulary and input size.
        device: Where to compute.

    Examples:
        >>> predictor = Predictor.from_pretrained("runs/mine")
        >>> predictor.set_image("street.jpg")
        >>> mask = predictor.predict("man in the red coat").mask
    """

    def __init__(self, model: ReferringModel, config: ModelConfig, device: torch.device | str = "cpu") -> None:
        self.model = model.eval().to(device)
        self._inference = for_inference(model)
        self.config = config
        self.device = torch.device(device)
        self.vocabulary = Vocabulary(config.tokens)
        self._encoded: EncodedImage | None = None

    @classmethod
    def from_pretrained(
        cls, source: str | Path, device: torch.device | str = "cpu", *, revision: str | None = None
    ) -> Predictor:
        """Load a trained model as `cmsa_fast.models.checkpoint.load_pretrained` does, with its errors.

        Args:
            source: A run folder, a model folder or a .safetensors file; otherwise "demo", the model that is part
                of the package; otherwise "owner/name", a repository of the hub.
            device: Where to compute.
            revision: Branch, tag or commit of the repository.
        """
        model, config = load_pretrained(source, revision)
        return cls(model, config, device)

    @torch.no_grad()
    def encode(self, image: ImageInput) -> EncodedImage:
        """Encode an image for `segment`.

        Args:
            image: A file in a common format, rotated upright by its EXIF tag; an image of Pillow; uint8
                `[3, H, W]`, RGB, as a tensor on any device; or uint8 `[H, W, 3]`, RGB, as an array of numpy.

        Raises:
            FileNotFoundError: The file does not exist.
            TypeError: `image` is none of these, or has another dtype.
            ValueError: The file is not a readable image, or the tensor or array has another shape.
        """
        pixels = _pixels(image)
        letterbox = Letterbox(pixels.shape[1], pixels.shape[2], self.config.size)
        square = letterbox.image(pixels)[None].to(self.device)
        return EncodedImage(pixels, letterbox, self._inference.prepare(self._inference.encode_image(square)))

    @torch.no_grad()
    def segment(self, encoded: EncodedImage, expressions: Sequence[str]) -> list[Prediction]:
        """Segment what each of some expressions refers to.

        Up to 16 expressions pass the model together, so that the last bits of a result depend on the others.

        Args:
            encoded: From `encode` of this predictor.
            expressions: One or more expressions, each with at least one word. Words that the vocabulary does not
                have, and words beyond the model's maximum, are named in a warning.

        Raises:
            TypeError: `expressions` is a string, or one of them is none.
            ValueError: An expression has no word.
        """
        if isinstance(expressions, str):
            raise TypeError("expressions must be a sequence of strings; got one string.")
        words = [self._words(expression) for expression in expressions]
        predictions: list[Prediction] = []
        for start in range(0, len(words), EXPRESSIONS_AT_ONCE):
            chosen = slice(start, start + EXPRESSIONS_AT_ONCE)
            ids = [self.vocabulary.ids(tokens) for tokens in words[chosen]]
            padded = (part.to(self.device) for part in pad_words(ids))
            outputs = segment_expressions(self._inference, encoded.features, *padded, explain=True)
            for expression, tokens, output in zip(expressions[chosen], words[chosen], outputs, strict=True):
                predictions.append(self._predict(encoded, expression, tokens, output))
        return predictions

    def set_image(self, image: ImageInput) -> None:
        """Encode the image that the next expressions are about; arguments and errors are those of `encode`."""
        self._encoded = self.encode(image)

    @overload
    def predict(self, expression: str) -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, expression: Sequence[str]) -> list[Prediction]: ...
    def predict(self, expression: str | Sequence[str]) -> Prediction | list[Prediction]:
        """Segment what one or several expressions refer to in the image of `set_image`.

        Any number of threads may call this after `set_image`; a thread that sets another image meanwhile does not
        change the results of calls that have begun.

        Returns:
            The prediction of a string, a list of predictions of a sequence of strings.

        Raises:
            RuntimeError: No image was set.
            TypeError, ValueError: As `segment`.
        """
        encoded = self._encoded
        if encoded is None:
            raise RuntimeError("Call set_image before predict: there is no image yet.")
        if isinstance(expression, str):
            return self.segment(encoded, [expression])[0]
        return self.segment(encoded, expression)

    def draw(self, prediction: Prediction) -> Tensor:
        """The image of a prediction with the object marked: uint8 `[3, H, W]`."""
        return overlay(prediction.image, [(prediction.mask, MARK)])

    def _words(self, expression: str) -> list[str]:
        words = tokenize(expression)
        most = self.config.max_words
        if len(words) > most:
            shown = shorten(expression)
            _logger.warning("The model reads the first %d of %d words of %r.", most, len(words), shown)
        return words[:most]

    def _predict(self, encoded: EncodedImage, expression: str, words: list[str], output: Output) -> Prediction:
        ids = self.vocabulary.ids(words)
        unknown = [word for word, id_ in zip(words, ids, strict=True) if id_ == Vocabulary.UNKNOWN_ID]
        unknown = list(dict.fromkeys(unknown))
        if unknown:
            _logger.warning("The vocabulary has no %s; the model reads <unk>.", ", ".join(map(repr, unknown)))
        probability = encoded.letterbox.restore(output.probability).clamp(0, 1)
        return Prediction(
            NATIVE.prediction_at_own_size(probability),
            probability,
            expression,
            tuple(self.vocabulary.tokens[id_] for id_ in ids),
            tuple(unknown),
            output.word_attention,
            encoded.pixels,
            encoded.letterbox,
            _strongest_channel(output.last_features, encoded.letterbox),
            partial(self._place_attention, encoded.features, ids),
        )

    @torch.no_grad()
    def _place_attention(self, features: Any, ids: list[int]) -> Tensor | None:
        text = self._inference.encode_text(torch.tensor([ids], device=self.device))
        received = self._inference.place_attention(features, text)
        return None if received is None else received[0].float().cpu()


def _pixels(image: ImageInput) -> Tensor:
    """A copy of the image, uint8 [3, H, W], on the CPU, where it is resized as in an evaluation."""
    if isinstance(image, Image.Image):
        return convert_image(image)
    if isinstance(image, str | PathLike):
        return read_image(image)
    if not isinstance(image, Tensor | np.ndarray):
        raise TypeError(
            f"image must be a path, an image of Pillow, a tensor or an array of numpy; got {type(image).__name__}."
        )
    kind, layout, channel = (
        ("a tensor", "3, height, width", 0) if isinstance(image, Tensor) else ("an array", "height, width, 3", 2)
    )
    if image.dtype not in (torch.uint8, np.uint8):
        raise TypeError(f"image must be uint8; got {image.dtype}.")
    if image.ndim != 3 or image.shape[channel] != 3 or 0 in image.shape:
        raise ValueError(f"image must have shape [{layout}] as {kind}; got {list(image.shape)}.")
    if isinstance(image, Tensor):
        return image.detach().to("cpu", copy=True)
    return torch.from_numpy(image.transpose(2, 0, 1).copy())


def _strongest_channel(features: Tensor | None, letterbox: Letterbox) -> Tensor | None:
    """The channel of [C, h, w] with the largest activation at a place that the image covers, float32 [h, w]."""
    if features is None:
        return None
    height, width = features.shape[1:]
    rows = _covered(letterbox.top, letterbox.scaled_height, letterbox.size, height)
    columns = _covered(letterbox.left, letterbox.scaled_width, letterbox.size, width)
    strongest = features[:, rows, columns].amax((1, 2)).argmax()
    return features[strongest].float().cpu()


def _covered(start: int, length: int, size: int, places: int) -> slice:
    """Of `places` that divide `size` pixels, those that the pixels start..start + length touch."""
    return slice(start * places // size, -(-(start + length) * places // size))
