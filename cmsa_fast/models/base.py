"""Interface of every model: images and words to mask logits, with reusable image and text features."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any, NamedTuple

from torch import Tensor, nn


class ImageFeatures(NamedTuple):
    """Features of a batch of images.

    Attributes:
        levels: [B_images, C_i, H_i, W_i] each.
        size: (height, width) of the images; logits are resized to it.
    """

    levels: tuple[Tensor, ...]
    size: tuple[int, int]


class TextFeatures(NamedTuple):
    """Features of a batch of expressions.

    Attributes:
        words: [B, N, Cl].
        word_mask: bool [B, N], True where a word is real. None: all are.
    """

    words: Tensor
    word_mask: Tensor | None


class ReferringModel(nn.Module, ABC):
    """Predicts the mask of the object that an expression refers to.

    A model implements `encode_image`, `encode_text` and `decode`. What the first two return is passed to `decode`
    unchanged, so their types are the model's choice. Training calls `forward`; evaluation and prediction encode
    each image once and call `encode_text` and `decode` for its expressions. `ExplainsWords` is the base class of
    models that can attribute their prediction to words.
    """

    def no_weight_decay(self) -> Collection[str]:
        """Names of submodules that training exempts from weight decay, besides biases, norms and embeddings."""
        return ()

    @abstractmethod
    def encode_image(self, images: Tensor) -> Any:
        """Compute everything that depends on the images alone.

        Args:
            images: [B_images, 3, H, W], RGB in [0, 1].

        Returns:
            The image features.
        """

    @abstractmethod
    def encode_text(self, words: Tensor, word_mask: Tensor | None = None) -> Any:
        """Compute everything that depends on the expressions alone.

        Args:
            words: int64 [B, N], word ids.
            word_mask: bool [B, N], True where a word is real. None: all are.

        Returns:
            The text features.

        Raises:
            TypeError, ValueError: Dtypes, shapes or ids do not fit, or an expression has no real word.
        """

    @abstractmethod
    def decode(self, features: Any, text: Any, image_index: Tensor | None = None) -> Tensor:
        """Predict the mask of each expression.

        Args:
            features: From `encode_image`.
            text: From `encode_text`.
            image_index: int64 [B], the image of each expression. None: expression b belongs to image b.

        Returns:
            Logits [B, 1, H, W] at the size of the images.

        Raises:
            TypeError, ValueError: image_index does not fit the images and expressions.
        """

    def segment(
        self,
        features: Any,
        words: Tensor,
        word_mask: Tensor | None = None,
        image_index: Tensor | None = None,
    ) -> Tensor:
        """`encode_text` followed by `decode`: logits [B, 1, H, W]."""
        return self.decode(features, self.encode_text(words, word_mask), image_index)

    def forward(
        self,
        images: Tensor,
        words: Tensor,
        word_mask: Tensor | None = None,
        image_index: Tensor | None = None,
    ) -> Tensor:
        """`encode_image`, `encode_text` and `decode`: logits [B, 1, H, W]."""
        return self.segment(self.encode_image(images), words, word_mask, image_index)


class ExplainsWords(ReferringModel):
    """A model that also reports how much attention each word receives."""

    @abstractmethod
    def explain(self, features: Any, text: Any, image_index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`decode`, with the attention that each word receives.

        Args:
            features: From `encode_image`.
            text: From `encode_text`.
            image_index: As in `decode`.

        Returns:
            The logits of `decode`, [B, 1, H, W], and the attention [B, levels, N], which sums to 1 over the real
            words of each level and is 0 on padding.
        """
