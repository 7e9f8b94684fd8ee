"""Letterbox: resizes images and masks to the square network input, and predictions back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Letterbox:
    """An image scaled to fit a square, centred and padded with zeros.

    The longer side is scaled to `size`; the other side keeps the aspect ratio, rounded to the nearest pixel and
    at least 1. `image`, `mask` and `restore` use the same box, whose edges are the edges of the image; they
    raise a TypeError for a tensor of another dtype than stated and a ValueError for another shape.

    Args:
        height: Height of the image in pixels, at least 1.
        width: Width of the image in pixels, at least 1.
        size: Side of the square in pixels, at least 1.

    Raises:
        TypeError: An argument is not an int.
        ValueError: An argument is below 1.
    """

    height: int
    width: int
    size: int

    def __post_init__(self) -> None:
        for name in ("height", "width", "size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an int, but it is a {type(value).__name__}.")
            if value < 1:
                raise ValueError(f"{name} must be at least 1 pixel, but it is {value}.")

    @property
    def scaled_height(self) -> int:
        """Height of the scaled image, 1 to `size` pixels."""
        return self._scaled(self.height)

    @property
    def scaled_width(self) -> int:
        """Width of the scaled image, 1 to `size` pixels."""
        return self._scaled(self.width)

    @property
    def top(self) -> int:
        """Rows of padding above the image; below it are as many or one more."""
        return (self.size - self.scaled_height) // 2

    @property
    def left(self) -> int:
        """Columns of padding left of the image; right of it are as many or one more."""
        return (self.size - self.scaled_width) // 2

    def image(self, image: Tensor) -> Tensor:
        """Resizes and pads the image (bilinear, with antialiasing when it shrinks).

        Args:
            image: uint8 `[3, height, width]`.

        Returns:
            float32 `[3, size, size]` in [0, 1]; the padding is 0.
        """
        _check("image", image, torch.uint8, (3, self.height, self.width))
        scaled = _resize(image[None].float(), self.scaled_height, self.scaled_width)[0]
        # Rounding of the filter weights can produce values just above 1.
        return self._pad((scaled / 255).clamp_(0, 1))

    def mask(self, mask: Tensor) -> Tensor:
        """Resizes and pads a mask.

        The mask is resized like the image (bilinear with antialiasing) and thresholded at 0.5. The published
        code sets every non-zero value instead, which dilates every object. With the threshold at 0.5, an
        object thinner than half a pixel of the square can become empty.

        Args:
            mask: bool `[height, width]`.

        Returns:
            bool `[size, size]`; the padding is False.
        """
        _check("mask", mask, torch.bool, (self.height, self.width))
        scaled = _resize(mask[None, None].float(), self.scaled_height, self.scaled_width)[0, 0]
        return self._pad(scaled >= 0.5)

    def restore(self, logits: Tensor) -> Tensor:
        """Removes the padding of maps over the square and resizes them to the image (bilinear).

        Args:
            logits: Floating point `[..., size, size]`.

        Returns:
            `[..., height, width]` in the same dtype (16-bit types are resized in float32). Differentiable.
        """
        actual = _describe(logits)
        if not isinstance(logits, Tensor) or not logits.is_floating_point():
            raise TypeError(f"logits must be a floating-point tensor, but it is {actual}.")
        if logits.ndim < 2 or logits.shape[-2:] != (self.size, self.size):
            raise ValueError(f"logits must be [..., {self.size}, {self.size}], but it is {actual}.")
        leading = logits.shape[:-2]
        inside = self.inside(logits).reshape(-1, 1, self.scaled_height, self.scaled_width)
        wide = inside if inside.dtype in (torch.float32, torch.float64) else inside.float()
        restored = _resize(wide, self.height, self.width)
        return restored.to(logits.dtype).reshape(*leading, self.height, self.width)

    def _scaled(self, side: int) -> int:
        longer = max(self.height, self.width)
        # Integer arithmetic: a product of floats can be rounded to the wrong side of a half.
        return max(1, (2 * side * self.size + longer) // (2 * longer))

    def inside(self, square: Tensor) -> Tensor:
        """A view `[..., scaled_height, scaled_width]` of maps over the square, without the padding."""
        rows = slice(self.top, self.top + self.scaled_height)
        columns = slice(self.left, self.left + self.scaled_width)
        return square[..., rows, columns]

    def _pad(self, scaled: Tensor) -> Tensor:
        square = scaled.new_zeros(*scaled.shape[:-2], self.size, self.size)
        self.inside(square).copy_(scaled)
        return square


def _resize(values: Tensor, height: int, width: int) -> Tensor:
    if width == 1 and height > 1:
        # PyTorch 2.15 resizes wrongly to a single column on the CPU: every row equals the first.
        return _resize(values.mT, width, height).mT
    # Without antialiasing, bilinear interpolation skips pixels when a map shrinks.
    return functional.interpolate(values, (height, width), mode="bilinear", antialias=True)


def _check(name: str, value: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if not isinstance(value, Tensor) or value.dtype != dtype:
        raise TypeError(f"{name} must be a {dtype} tensor, but it is {_describe(value)}.")
    if value.shape != shape:
        raise ValueError(f"{name} must be {list(shape)}, but it is {_describe(value)}.")


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor {list(value.shape)}"
    return f"a {type(value).__name__}"
