"""What every cross-modal module requires of its features, words and masks."""

import torch
from torch import Tensor

from ..kernels.validation import (
    check_alike,
    check_floating,
    check_image_index,
    check_range,
    check_word_mask,
)


def check_inputs(
    visual: Tensor,
    words: Tensor,
    word_mask: Tensor | None,
    image_index: Tensor | None,
    *,
    visual_channels: int,
    word_channels: int,
) -> None:
    """Check the arguments of a module that brings expressions to images.

    Args:
        visual: [B, visual_channels, H, W], or [B_images, visual_channels, H, W] with image_index.
        words: [B, N, word_channels], in visual's dtype, but under autocast.
        word_mask: bool [B, N] with a true word in every expression, or None.
        image_index: int64 [B] in 0..B_images-1, or None.

    Raises:
        TypeError: an argument is no tensor or has the wrong dtype.
        ValueError: shapes or devices do not fit, an expression has no real word, or image_index is out of range.
    """
    check_visual(visual, visual_channels)
    check_words(
        words,
        word_mask,
        image_index,
        word_channels=word_channels,
        images=len(visual),
        like_name="visual",
        like=visual,
    )


def check_visual(visual: Tensor, visual_channels: int) -> None:
    """Check visual features alone; raises as `check_inputs`."""
    check_floating("visual", visual)
    if visual.ndim != 4 or visual.shape[1] != visual_channels or 0 in visual.shape[2:]:
        raise ValueError(
            f"visual must have shape [batch, {visual_channels}, height, width] with at least one place; "
            f"got {list(visual.shape)}."
        )


def check_words(
    words: Tensor,
    word_mask: Tensor | None,
    image_index: Tensor | None,
    *,
    word_channels: int,
    images: int,
    like_name: str,
    like: Tensor,
) -> None:
    """Check expressions for `images` images; raises as `check_inputs`.

    Args:
        words: [B, N, word_channels], in the dtype of `like`, but under autocast, and on its device.
        word_mask: as in `check_inputs`, like image_index.
        image_index: int64 [B] or None.
        word_channels: Cl.
        images: how many images there are.
        like_name: what a message calls `like`.
        like: any tensor of the dtype and device asked for.
    """
    check_floating("words", words)
    if words.ndim != 3 or words.shape[2] != word_channels or words.shape[1] == 0:
        raise ValueError(
            f"words must have shape [batch, words, {word_channels}] with at least one word; "
            f"got {list(words.shape)}."
        )
    check_dtype_and_device("words", words, like_name, like)
    if word_mask is not None:
        check_word_mask(word_mask, words.shape[:2], "words", words.device)
    _check_image_index(images, words, image_index)


def check_dtype_and_device(name: str, part: Tensor, like_name: str, like: Tensor) -> None:
    """Whether two tensors fit each other; under autocast, which casts both when they are used, any dtypes do."""
    if torch.is_autocast_enabled(like.device.type):
        part = part.to(like.dtype)
    check_alike(name, part, like_name, like)


def _check_image_index(images: int, words: Tensor, image_index: Tensor | None) -> None:
    expressions = len(words)
    if image_index is None:
        if images != expressions:
            raise ValueError(
                f"words must have visual's batch of {images}, unless image_index says which image "
                f"each expression belongs to; got {expressions}."
            )
        return
    check_image_index(image_index, expressions, "words", words.device)
    if expressions and not images:
        raise ValueError(
            f"visual must hold at least one image for {expressions} expressions; got 0."
        )
    check_range("image_index", image_index, images)
