"""`CMSAModel` for inference, its levels folded with the convolutions of the fusion."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..nn import CMSA, FoldedPlaces

if TYPE_CHECKING:
    from .cmsa import CMSAModel


class FoldedFeatures(NamedTuple):
    """What a `FoldedCMSAModel` keeps of a batch of images between expressions.

    Attributes:
        levels: of Res3, Res4 and Res5, see `FoldedPlaces`.
        size: (height, width) of the images they came from, to which logits are brought back.
    """

    levels: tuple[FoldedPlaces, ...]
    size: tuple[int, int]


class FoldedCMSAModel:
    """What `CMSAModel.fold` returns: its calls, equal to its own but for rounding, and faster.

    `encode_image` forms all that depends on the image alone, so a further expression costs the attention, the
    fusion and the mask. Features are not exchanged between the two models.

    The parts that are not folded are the model's own, not copies. See `FoldedLevel` for what happens when weights
    change. A call is refused, with a RuntimeError, where a gradient is recorded, where the model is in training
    mode (its batch normalisation would follow the images), and where the weights of a level have changed.
    """

    def __init__(self, model: CMSAModel) -> None:
        """
        Args:
            model: in eval mode.

        Raises:
            RuntimeError: the model is in training mode.
        """
        self._model = model
        self._check_mode()
        self._levels = [
            cast(CMSA, attention).fold(convolution.weight, convolution.bias)
            for attention, convolution in zip(
                model.attention, cast("list[nn.Conv2d]", model.fusion.project), strict=True
            )
        ]

    def encode_image(self, images: Tensor) -> FoldedFeatures:
        """
        Args:
            images: [B_images, 3, H, W], RGB in [0, 1].

        Returns:
            What `segment` and `word_attention` need of the images.
        """
        self._check_mode()
        for level in self._levels:
            level.check_use()
        visual = self._model.backbone(images)
        levels = (level.encode(part) for level, part in zip(self._levels, visual, strict=True))
        return FoldedFeatures(tuple(levels), (images.shape[2], images.shape[3]))

    def segment(
        self,
        features: FoldedFeatures,
        words: Tensor,
        word_mask: Tensor | None = None,
        image_index: Tensor | None = None,
    ) -> Tensor:
        """`CMSAModel.segment`, of features from this model's `encode_image`: [B, 1, H, W] logits."""
        vectors = self._vectors(features, words)
        projected = [
            level.project(places, vectors, word_mask, image_index=image_index)
            for level, places in zip(self._levels, features.levels, strict=True)
        ]
        logits = self._model.mask(self._model.fusion.fuse(projected))
        return F.interpolate(logits, size=features.size, mode="bilinear", align_corners=False)

    def word_attention(
        self,
        features: FoldedFeatures,
        words: Tensor,
        word_mask: Tensor | None = None,
        image_index: Tensor | None = None,
    ) -> Tensor:
        """`CMSAModel.word_attention`, of features from this model's `encode_image`: [B, 3, N]."""
        vectors = self._vectors(features, words)
        received = [
            level.word_attention(places, vectors, word_mask, image_index=image_index)
            for level, places in zip(self._levels, features.levels, strict=True)
        ]
        return torch.stack(received, dim=1)

    def forward(
        self,
        images: Tensor,
        words: Tensor,
        word_mask: Tensor | None = None,
        image_index: Tensor | None = None,
    ) -> Tensor:
        """`encode_image` and `segment` in a row: [B, 1, H, W] logits."""
        return self.segment(self.encode_image(images), words, word_mask, image_index)

    __call__ = forward

    def _vectors(self, features: FoldedFeatures, words: Tensor) -> Tensor:
        """[B, N, Cl]."""
        if not isinstance(features, FoldedFeatures):
            raise TypeError(
                "features must come from the folded model's encode_image; "
                f"got {type(features).__name__}."
            )
        self._check_mode()
        return self._model.words(words)

    def _check_mode(self) -> None:
        if self._model.training:
            raise RuntimeError(
                "A folded model is for inference, and this one's model is in training mode: call eval() on it."
            )
