"""Prediction for one image and any number of expressions: `set_image` once, then `predict`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .data.images import read_image
from .data.transforms import Letterbox
from .data.vocabulary import Vocabulary
from .evaluation.inference import NATIVE, segment_expressions
from .evaluation.visualization import overlay
from .models import for_inference
from .models.base import ReferringModel
from .models.checkpoint import ModelConfig, load_model


@dataclass(frozen=True)
class Prediction:
    """The object that an expression refers to in an image.

    Attributes:
        mask: bool `[H, W]` on the CPU, at the image's own size: probability above 0.5, as in an evaluation with
            the "native" convention.
        probability: float32 `[H, W]` in [0, 1], resized bilinearly to the image's own size.
        tokens: The N words the model saw; a word that is not in the vocabulary is "<unk>".
        word_attention: `[3, N]`, the attention each word received at Res3, Res4 and Res5; rows sum to 1. None if
            the model does not provide it (cmsa-released).
    """

    mask: Tensor
    probability: Tensor
    tokens: tuple[str, ...]
    word_attention: Tensor | None


class Predictor:
    """Segments what expressions refer to in an image, which is encoded once for all of them.

    Args:
        model: Built by `config.build()`. Its weights are used as they are now; see `cmsa_fast.nn.FoldedLevel`.
        config: Its vocabulary and input size.
        device: Where to compute.

    Example:
        predictor = Predictor.from_run("runs/mine")
        predictor.set_image("street.jpg")
        mask = predictor.predict("man in the red coat").mask
    """

    def __init__(self, model: ReferringModel, config: ModelConfig, device: torch.device | str = "cpu") -> None:
        self.model = model.eval().to(device)
        self._inference = for_inference(model)
        self.config = config
        self.device = torch.device(device)
        self.vocabulary = Vocabulary(config.tokens)
        self._features: Any = None
        self._letterbox: Letterbox | None = None
        self._image: Tensor | None = None

    @classmethod
    def from_run(cls, path: str | Path, device: torch.device | str = "cpu") -> Predictor:
        """Load a run folder, or the model.safetensors in it.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file was not written by this library.
        """
        model, config = load_model(path)
        return cls(model, config, device)

    @torch.no_grad()
    def set_image(self, image: str | Path | Tensor) -> None:
        """Encode the image that the next expressions are about.

        Args:
            image: A file in a common format, rotated upright by its EXIF tag; or uint8 `[3, H, W]`, RGB, on any
                device.

        Raises:
            FileNotFoundError: The file does not exist.
            TypeError: `image` is a tensor of another dtype.
            ValueError: The file is not a readable image, or the tensor has another shape.
        """
        pixels = image if isinstance(image, Tensor) else read_image(image)
        if pixels.dtype != torch.uint8:
            raise TypeError(f"image must be uint8; got {pixels.dtype}.")
        if pixels.ndim != 3 or pixels.shape[0] != 3 or 0 in pixels.shape:
            raise ValueError(f"image must have shape [3, height, width]; got {list(pixels.shape)}.")
        pixels = pixels.cpu()  # resized on the CPU, as in an evaluation
        letterbox = Letterbox(pixels.shape[1], pixels.shape[2], self.config.size)
        square = letterbox.image(pixels)[None].to(self.device)
        self._features = self._inference.encode_image(square)
        self._letterbox, self._image = letterbox, pixels

    def predict(self, expression: str) -> Prediction:
        """Segment the object that an expression refers to.

        Raises:
            RuntimeError: No image was set.
            TypeError: `expression` is not a string.
            ValueError: `expression` has no word.
        """
        if self._letterbox is None:
            raise RuntimeError("Call set_image before predict: there is no image yet.")
        ids = self.vocabulary.encode(expression, self.config.max_words)
        words = torch.tensor([ids], device=self.device)
        (output,) = segment_expressions(
            self._inference, self._features, words, torch.ones_like(words).bool(), explain=True
        )
        probability = self._letterbox.restore(output.probability).clamp(0, 1)
        tokens = tuple(self.vocabulary.tokens[word] for word in ids)
        mask = NATIVE.prediction_at_own_size(probability)
        return Prediction(mask, probability, tokens, output.word_attention)

    def draw(self, prediction: Prediction) -> Tensor:
        """The image with the object marked: uint8 `[3, H, W]`.

        Raises:
            RuntimeError: No image was set.
        """
        if self._image is None:
            raise RuntimeError("Call set_image before draw: there is no image yet.")
        return overlay(self._image, prediction.mask)
