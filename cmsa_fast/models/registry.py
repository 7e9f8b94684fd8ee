"""Models by name, and what every model answers."""

import inspect
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from .base import ImageFeatures
from .cmsa import CMSAModel
from .released_cmsa import ReleasedCMSAModel

MODELS: dict[str, type[nn.Module]] = {
    "cmsa": CMSAModel,
    "cmsa-released": ReleasedCMSAModel,
}


class ReferringModel(Protocol):
    """The calls by which training, evaluation and prediction know a model."""

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """[B_images, 3, H, W] in [0, 1] -> features; once per image."""

    def segment(
        self,
        features: ImageFeatures,
        words: Tensor,
        word_mask: Tensor | None = None,
        image_index: Tensor | None = None,
    ) -> Tensor:
        """int64 [B, N] words of B expressions -> logits [B, 1, H, W]; once per expression."""

    def forward(
        self,
        images: Tensor,
        words: Tensor,
        word_mask: Tensor | None = None,
        image_index: Tensor | None = None,
    ) -> Tensor:
        """The two in a row."""


@runtime_checkable
class ExplainsWords(Protocol):
    """A model that can also say how much attention each word received."""

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """As in `ReferringModel`."""

    def word_attention(
        self,
        features: ImageFeatures,
        words: Tensor,
        word_mask: Tensor | None = None,
        image_index: Tensor | None = None,
    ) -> Tensor:
        """Arguments as in `ReferringModel.segment` -> [B, 3, N], rows summing to 1 over the real words."""


@runtime_checkable
class Folds(Protocol):
    """A model that has a faster form for inference."""

    def fold(self) -> Any:
        """The form, which answers the calls of this model, with features of its own; the model is in eval mode."""


def for_inference(model: nn.Module) -> Any:
    """The folded form of a model in eval mode, or the model itself where it has none (cmsa-released).

    Raises:
        RuntimeError: a model that folds is in training mode.
    """
    return model.fold() if isinstance(model, Folds) else model


def build_model(name: str, **options: Any) -> nn.Module:
    """Build a network by name.

    Args:
        name: one of MODELS; "cmsa" is the paper's network (`CMSAModel`), "cmsa-released" that of the code
            published with it (`ReleasedCMSAModel`).
        options: passed to the network's class.

    Raises:
        ValueError: name or an option is unknown.
    """
    if name not in MODELS:
        raise ValueError(f"name must be one of {', '.join(sorted(MODELS))}; got {name!r}.")
    model = MODELS[name]
    known = list(inspect.signature(model).parameters)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"build_model({name!r}) has no option {', '.join(unknown)}; it has {', '.join(known)}."
        )
    return model(**options)
