"""A user with an image and an expression: `set_image` once, then `predict` for each expression."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .data.images import read_image
from .data.transforms import Letterbox
from .evaluation.inference import NATIVE
from .evaluation.visualization import overlay
from .models import for_inference
from .models.base import ExplainsWords, ReferringModel
from .models.checkpoint import ModelConfig, load_model, vocabulary_of


@dataclass(frozen=True)
class Prediction:
    """What an expression names in an image.

    Attributes:
        mask: bool [H, W] on the CPU, at the image's own size: probability above 0.5, as an evaluation by the
            "native" convention counts it.
        probability: float32 [H, W] in [0, 1], of the network's square, brought to that size (bilinear).
        tokens: the N words the model saw; a word it does not know is "<unk>".
        word_attention: [3, N], the attention each received at Res3, Res4 and Res5; rows sum to 1. None where the
            model cannot say (cmsa-released).
    """

    mask: Tensor
    probability: Tensor
    tokens: tuple[str, ...]
    word_attention: Tensor | None


class Predictor:
    """Finds what expressions name in an image, which is encoded once for all of them.

    Example:
        predictor = Predictor.from_run("runs/mine")
        predictor.set_image("street.jpg")
        mask = predictor.predict("man in the red coat").mask
    """

    def __init__(
        self, model: ReferringModel, config: ModelConfig, device: torch.device | str = "cpu"
    ) -> None:
        """
        Args:
            model: built by config.build(). Its weights are taken as they are now; see `cmsa_fast.nn.FoldedLevel`.
            config: its vocabulary and input size.
            device: where to compute.
        """
        self.model: Any = model.eval().to(device)
        self._inference: Any = for_inference(model)
        self.config = config
        self.device = torch.device(device)
        self.vocabulary = vocabulary_of(config)
        self._features: Any = None
        self._letterbox: Letterbox | None = None
        self._image: Tensor | None = None

    @classmethod
    def from_run(cls, path: str | Path, device: torch.device | str = "cpu") -> "Predictor":
        """Load a run folder, or the model.safetensors in it.

        Raises:
            FileNotFoundError, ValueError: there is no such file, or it is none of this library's.
        """
        model, config = load_model(path)
        return cls(model, config, device)

    @torch.no_grad()
    def set_image(self, image: str | Path | Tensor) -> None:
        """Encode the image that the expressions to come are about.

        Args:
            image: a file of any common format, turned upright as its EXIF says; or uint8 [3, H, W], RGB, on any
                device.

        Raises:
            FileNotFoundError, ValueError: the file is not there or no readable image.
            TypeError: image is a tensor of another dtype.
        """
        pixels = image if isinstance(image, Tensor) else read_image(image)
        if pixels.dtype != torch.uint8:
            raise TypeError(f"image must be uint8; got {pixels.dtype}.")
        if pixels.ndim != 3 or pixels.shape[0] != 3 or 0 in pixels.shape:
            raise ValueError(f"image must have shape [3, height, width]; got {list(pixels.shape)}.")
        pixels = pixels.cpu()  # where masks are, and where an evaluation scales images
        letterbox = Letterbox(pixels.shape[1], pixels.shape[2], self.config.size)
        square = letterbox.image(pixels)[None].to(self.device)
        self._features = self._inference.encode_image(square)
        self._letterbox, self._image = letterbox, pixels

    @torch.no_grad()
    def predict(self, expression: str) -> Prediction:
        """Find what an expression names.

        Raises:
            RuntimeError: no image was set.
            TypeError: expression is no string.
            ValueError: expression has no word.
        """
        if self._letterbox is None:
            raise RuntimeError("Call set_image before predict: there is no image yet.")
        ids = self.vocabulary.encode(expression, self.config.max_words)
        words = torch.tensor([ids], device=self.device)
        text = self._inference.encode_text(words)
        attention = None
        if isinstance(self._inference, ExplainsWords):
            logits, received = self._inference.explain(self._features, text)
            attention = received[0].cpu()
        else:
            logits = self._inference.decode(self._features, text)
        square = logits[0, 0].float().sigmoid().cpu()
        # As an evaluation makes masks by default (see `cmsa_fast.evaluation.conventions`).
        probability = self._letterbox.restore(square).clamp(0, 1)
        tokens = tuple(self.vocabulary.tokens[word] for word in ids)
        mask = NATIVE.prediction(square, self._letterbox)
        return Prediction(mask, probability, tokens, attention)

    def draw(self, prediction: Prediction) -> Tensor:
        """The image with the object marked: uint8 [3, H, W].

        Raises:
            RuntimeError: no image was set.
        """
        if self._image is None:
            raise RuntimeError("Call set_image before draw: there is no image yet.")
        return overlay(self._image, prediction.mask)
