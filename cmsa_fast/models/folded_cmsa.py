"""`CMSAModel` for inference: each level is folded with the 1x1 convolution of the fusion."""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ..kernels.validation import check_images
from ..nn import CMSA, FoldedLevel, FoldedPlaces
from ..nn.validation import check_unmodified
from .base import Explanation, ReferringModel, TextFeatures
from .cmsa import CMSAModel


class FoldedFeatures(NamedTuple):
    """Image features of a `FoldedCMSAModel`.

    Attributes:
        levels: Of Res3, Res4 and Res5; see `FoldedPlaces`.
        size: (height, width) of the images; logits are resized to it.
    """

    levels: tuple[FoldedPlaces, ...]
    size: tuple[int, int]


class FoldedCMSAModel(ReferringModel):
    """A `CMSAModel` for inference: equal results up to rounding, computed faster.

    `encode_image` computes all that depends on the image alone, so that a further expression costs the attention,
    the fusion and the mask. Image features are not interchangeable with those of the `CMSAModel`.

    Unfolded parts are shared with the model, not copied; `FoldedLevel` describes what happens when folded weights
    change. Calls raise a RuntimeError while gradients are recorded, when the model is in training mode (its batch
    normalisation would follow the images), and when folded weights have changed.

    Examples:
        >>> with torch.no_grad():
        ...     logits = FoldedCMSAModel(model.eval())(images, words)
    """

    def __init__(self, model: CMSAModel) -> None:
        """
        Args:
            model: The model, in eval mode.

        Raises:
            RuntimeError: The model is in training mode.
        """
        super().__init__()
        self.model = model
        self._check_mode()
        self.training = False
        self._levels = [
            FoldedLevel(cast(CMSA, attention), convolution.weight, convolution.bias)
            for attention, convolution in zip(
                model.attention, cast("list[nn.Conv2d]", model.fusion.project), strict=True
            )
        ]

    def encode_image(self, images: Tensor) -> FoldedFeatures:
        self._check_use()
        visual = self.model.backbone(images)
        levels = [level.unchecked_encode(part) for level, part in zip(self._levels, visual, strict=True)]
        return FoldedFeatures(tuple(levels), (images.shape[2], images.shape[3]))

    def prepare(self, features: FoldedFeatures) -> FoldedFeatures:
        levels = zip(self._levels, features.levels, strict=True)
        return features._replace(levels=tuple(level.unchecked_prepare(places) for level, places in levels))

    def encode_text(self, words: Tensor, word_mask: Tensor | None = None) -> TextFeatures:
        return self.model.encode_text(words, word_mask)

    def decode(self, features: FoldedFeatures, text: TextFeatures, image_index: Tensor | None = None) -> Tensor:
        levels = self._project(features, text, image_index, return_word_attention=False)
        return self.model.read_out(levels, features.size).logits

    def explain(
        self, features: FoldedFeatures, text: TextFeatures, image_index: Tensor | None = None
    ) -> Explanation:
        """See `CMSAModel.explain`."""
        levels = self._project(features, text, image_index, return_word_attention=True)
        return self.model.read_out(levels, features.size)

    def place_attention(
        self, features: FoldedFeatures, text: TextFeatures, image_index: Tensor | None = None
    ) -> Tensor:
        self._check_decode(features, text, image_index)
        words, word_mask = text
        received = [
            level.unchecked_place_attention(places, words, word_mask, image_index)
            for level, places in zip(self._levels, features.levels, strict=True)
        ]
        return torch.stack(received, dim=1)

    def _project(
        self,
        features: FoldedFeatures,
        text: TextFeatures,
        image_index: Tensor | None,
        return_word_attention: bool,
    ) -> list[tuple[Tensor, Tensor | None]]:
        self._check_decode(features, text, image_index)
        words, word_mask = text
        return [
            level.unchecked_project(places, words, word_mask, image_index, return_word_attention)
            for level, places in zip(self._levels, features.levels, strict=True)
        ]

    def _check_decode(self, features: object, text: TextFeatures, image_index: Tensor | None) -> None:
        if not isinstance(features, FoldedFeatures):
            raise TypeError(
                f"features must come from encode_image of the folded model; got {type(features).__name__}."
            )
        self._check_use()
        images, words = len(features.levels[0].query), text.words
        check_images("features", images, "words", len(words), image_index, words.device)

    def _check_use(self) -> None:
        self._check_mode()
        for level, convolution in zip(self._levels, self.model.fusion.project, strict=True):
            level.check_use()
            check_unmodified("fusion.project", convolution, nn.Conv2d)

    def _check_mode(self) -> None:
        if self.model.training:
            raise RuntimeError(
                "A folded model is for inference only, but its model is in training mode: call eval() on it."
            )
