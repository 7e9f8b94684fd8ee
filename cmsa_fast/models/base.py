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


class Explanation(NamedTuple):
    """Logits of B expressions, and what a model shows of their computation at no further cost.

    Attributes:
        logits: [B, 1, H, W], those of `ReferringModel.decode`.
        word_attention: [B, levels, N], the attention that each word receives: it sums to 1 over the real words of
            each level and is 0 on padding. None: the model does not provide it.
        last_features: [B, C, h, w], the last feature map, from which the logits are computed (the paper's Fig. 5
            shows its strongest channel). None: the model does not provide it.
    """

    logits: Tensor
    word_attention: Tensor | None = None
    last_features: Tensor | None = None


class ReferringModel(nn.Module, ABC):
    """Predicts the mask of the object that an expression refers to.

    A model implements `encode_image`, `encode_text` and `decode`. What the first two return is passed to `decode`
    unchanged, so their types are the model's choice. Training calls `forward`; evaluation and prediction encode
    each image once and call `encode_text` and `decode` for its expressions. A model that can show how it came to
    its prediction also overrides `explain` and `place_attention`.
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

    def prepare(self, features: Any) -> Any:
        """Compute more of what depends on the images alone, at the cost of memory; prediction calls it once.

        Args:
            features: From `encode_image`.

        Returns:
            Features with which `decode` takes less time; its results are equal up to rounding.
        """
        return features

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

    def explain(self, features: Any, text: Any, image_index: Tensor | None = None) -> Explanation:
        """`decode`, with what the model shows of its computation; arguments and errors are those of `decode`."""
        return Explanation(self.decode(features, text, image_index))

    def place_attention(self, features: Any, text: Any, image_index: Tensor | None = None) -> Tensor | None:
        """Compute the attention that each place receives, at about half the cost of the attention itself.

        Arguments and errors are those of `decode`.

        Returns:
            [B, levels, h, w], without a gradient; it sums to 1 over the places of each level. None: the model does
            not provide it.
        """
        return None

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
