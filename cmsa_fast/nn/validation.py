"""Checks of the arguments of cross-modal modules: visual features, words, masks and image indices."""

from torch import Tensor, nn

from ..kernels.backends import autocast
from ..kernels.validation import check_alike, check_floating, check_word_mask


def check_visual(visual: Tensor, visual_channels: int) -> None:
    """Check visual features [B, visual_channels, H, W]."""
    check_floating("visual", visual)
    if visual.ndim != 4 or visual.shape[1] != visual_channels or 0 in visual.shape[2:]:
        raise ValueError(
            f"visual must have shape [batch, {visual_channels}, height, width] with at least one place; "
            f"got {list(visual.shape)}."
        )


def check_words(words: Tensor, word_mask: Tensor | None, word_channels: int, like_name: str, like: Tensor) -> None:
    """Check words and their mask, in dtype and device of `like`, an argument of that name."""
    check_floating("words", words)
    if words.ndim != 3 or words.shape[2] != word_channels or words.shape[1] == 0:
        raise ValueError(
            f"words must have shape [batch, words, {word_channels}] with at least one word; "
            f"got {list(words.shape)}."
        )
    check_dtype_and_device("words", words, like_name, like)
    if word_mask is not None:
        check_word_mask(word_mask, words.shape[:2], "words", words.device)


def check_dtype_and_device(name: str, part: Tensor, like_name: str, like: Tensor) -> None:
    """Check that two tensors fit, after autocast has cast both."""
    part, like = autocast(part, like)
    check_alike(name, part, like_name, like)


def check_convolution(weight: Tensor, bias: Tensor | None, channels: int, like_name: str, like: Tensor) -> None:
    """Check weight [E, channels, 1, 1] and bias [E] of a 1x1 convolution, in dtype and device of `like`."""
    check_floating("weight", weight)
    check_alike("weight", weight, like_name, like)
    if weight.ndim != 4 or weight.shape[1:] != (channels, 1, 1):
        raise ValueError(
            f"weight must have shape [channels, {channels}, 1, 1], that of a 1x1 convolution; "
            f"got {list(weight.shape)}."
        )
    if bias is None:
        return
    check_floating("bias", bias)
    check_alike("bias", bias, "weight", weight)
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape [channels] = [{len(weight)}]; got {list(bias.shape)}.")


def check_unmodified(name: str, part: nn.Module, kind: type[nn.Module]) -> None:
    """Check that a module computes what its class does, because its weight is used without a call."""
    came = type(part).__name__
    if type(part).forward is kind.forward and "forward" not in part.__dict__:
        if not (
            part._forward_pre_hooks or part._forward_hooks or part._backward_pre_hooks or part._backward_hooks
        ):
            return
        came = "one with hooks"
    raise TypeError(
        f"{name} must be an nn.{kind.__name__} without hooks, because only its weight and bias are read (merge "
        f"adapters into the weight, or use torch.nn.utils.parametrize); got {came}."
    )
