"""Conventions: how published evaluations compare a predicted mask with the true one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..data.transforms import Letterbox
from .metrics import SegmentationMetrics

_LAVT_SIDE = 480

Threshold = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Convention:
    """The rules of one evaluation, from a network's probabilities and a true mask to pixel counts.

    Every convention evaluates every expression of a split. (During training, CRIS validates on the first
    expression of each object and LAVT on a random one; both test on all.) The true mask is the union of an
    object's parts. (LAVT's reader drops pixels where parts overlap.)
    """

    name: str  # its key in `CONVENTIONS`
    where: str  # at which size masks are compared, and how the prediction gets there; for the table
    threshold: float = 0.5  # probability at which a pixel is predicted
    strict_threshold: bool = True  # a pixel is predicted only above the threshold, not at it
    precision_strict: bool = False  # precision counts only expressions whose IoU is above its threshold, not at it
    empty_union_iou: Literal[0, 1] = 1  # IoU of two empty masks, 1 or 0
    union_offset: float = 0.0  # pixels added to the union in an expression's IoU
    # Where a dense CRF runs: at the image's own size, or over the network's square with its padding.
    refine_at: Literal["image", "square"] = "image"
    headline: Literal["overall_iou", "mean_iou"] = "overall_iou"  # the metric its papers call the IoU
    side: int | None = None  # masks are compared at side x side, both stretched; None: at the image's own size
    source: str  # the repository with these rules
    _from_square: Callable[[Tensor, Letterbox, Threshold], Tensor] = field(repr=False)

    def prediction(self, probability: Tensor, letterbox: Letterbox) -> Tensor:
        """The predicted mask from probabilities over the network's square.

        Args:
            probability: Floating-point `[S, S]` in [0, 1].
            letterbox: How the image lies in the square, whose side is S.

        Returns:
            bool at the convention's size, `[H, W]` of the image or `[480, 480]`, on the same device.

        Raises:
            TypeError: `probability` is not a floating-point tensor.
            ValueError: It has another shape, or values outside [0, 1].
        """
        values = _checked(probability, (letterbox.size, letterbox.size))
        return self._from_square(values, letterbox, self._above_threshold)

    def prediction_at_own_size(self, probability: Tensor) -> Tensor:
        """The predicted mask from probabilities at the image's own size, for instance after a dense CRF.

        Args:
            probability: Floating-point `[H, W]` in [0, 1]; for lavt it is first stretched to 480x480.

        Returns:
            bool at the convention's size, `[H, W]` or `[480, 480]`, on the same device.

        Raises:
            TypeError, ValueError: As for `prediction`; any height and width are valid.
        """
        values = _checked(probability, None)
        return self._above_threshold(values if self.side is None else _stretch(values, self.side))

    def truth(self, mask: Tensor) -> Tensor:
        """The true mask that a prediction is compared with.

        Args:
            mask: bool `[H, W]`, at the image's own size.

        Returns:
            bool at the convention's size: `mask` itself, or for lavt `[480, 480]`, the nearest pixels as
            Pillow selects them (for a mask 640 wide they differ from exact arithmetic by rounding).

        Raises:
            TypeError: `mask` is not a bool tensor.
            ValueError: It is not `[H, W]` or has no pixel.
        """
        _check("mask", mask, "bool", isinstance(mask, Tensor) and mask.dtype == torch.bool)
        if self.side is None:
            return mask
        image = Image.fromarray(mask.to("cpu", torch.uint8).numpy())
        stretched = image.resize((self.side, self.side), Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(stretched)).bool().to(mask.device)

    def metrics(self) -> SegmentationMetrics:
        """Empty metrics with the convention's rules."""
        return SegmentationMetrics(
            empty_union_iou=self.empty_union_iou, strict=self.precision_strict, union_offset=self.union_offset
        )

    def _above_threshold(self, probability: Tensor) -> Tensor:
        if self.strict_threshold:
            return probability > self.threshold
        return probability >= self.threshold


def _native(probability: Tensor, letterbox: Letterbox, threshold: Threshold) -> Tensor:
    return threshold(letterbox.restore(probability))


def _cmsa(probability: Tensor, letterbox: Letterbox, threshold: Threshold) -> Tensor:
    """Apply the threshold, enlarge the square with its padding to cover the image, keep non-zero pixels.

    A bilinearly enlarged pixel is non-zero if any neighbour with a non-zero weight is. This is computed in
    integers, because a weight that should be zero seldom is in floating point.
    The square is padded with zeros, and is not smoothed where it is larger than the image, as in scikit-image
    before 0.15; later versions mirror at the border, which changes a few pixels there.
    """
    mask, side = threshold(probability), max(letterbox.height, letterbox.width)
    mask = _any_neighbour(mask, letterbox.height, side)
    return _any_neighbour(mask.mT, letterbox.width, side).mT


def _any_neighbour(mask: Tensor, length: int, enlarged: int) -> Tensor:
    """The middle `length` of `enlarged` rows interpolated from the mask's rows: True where a source row is."""
    size = mask.shape[0]
    places = torch.arange(length, device=mask.device) + (enlarged - length) // 2
    # A row's centre among the mask's rows, in units of 1 / (2 * enlarged) of a row.
    centres = (2 * places + 1) * size - enlarged
    below = centres.div(2 * enlarged, rounding_mode="floor")
    above = -(-centres).div(2 * enlarged, rounding_mode="floor")
    return mask[below.clamp(0, size - 1)] | mask[above.clamp(0, size - 1)]


def _lavt(probability: Tensor, letterbox: Letterbox, threshold: Threshold) -> Tensor:
    return threshold(_stretch(letterbox.inside(probability), _LAVT_SIDE))


def _stretch(values: Tensor, side: int) -> Tensor:
    return functional.interpolate(values[None, None], (side, side), mode="bilinear", antialias=True)[0, 0]


def _cris(probability: Tensor, letterbox: Letterbox, threshold: Threshold) -> Tensor:
    """Warp the square bicubically onto the image, with zeros beyond the square.

    The image's edges fall on the edges of its place in the square, as in the network's input. CRIS maps pixel
    indices instead of pixel centres, to the square and back, and OpenCV uses steps of 1/32 pixel.
    """
    size = letterbox.size
    height, width = letterbox.scaled_height, letterbox.scaled_width
    # Maps [-1, 1] over the image to its place in [-1, 1] over the square.
    place = [
        [width / size, 0.0, (2 * letterbox.left + width) / size - 1],
        [0.0, height / size, (2 * letterbox.top + height) / size - 1],
    ]
    warp = torch.tensor([place], dtype=probability.dtype, device=probability.device)
    grid = functional.affine_grid(warp, [1, 1, letterbox.height, letterbox.width], align_corners=False)
    warped = functional.grid_sample(
        probability[None, None], grid, mode="bicubic", padding_mode="zeros", align_corners=False
    )
    return threshold(warped[0, 0])


def _checked(probability: Tensor, shape: tuple[int, int] | None) -> Tensor:
    floating = isinstance(probability, Tensor) and probability.is_floating_point()
    _check("probability", probability, "floating-point", floating)
    if shape is not None and probability.shape != shape:
        raise ValueError(f"probability must be {list(shape)}; got {list(probability.shape)}.")
    values = probability.detach()
    low, high = (float(value) for value in values.aminmax())
    # A resize can leave [0, 1] by rounding; logits are further off. NaN fails the comparison.
    if not -1e-3 <= low <= high <= 1 + 1e-3:
        raise ValueError(
            f"probability must be in [0, 1], but it is from {low} to {high}; logits need a sigmoid first."
        )
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def _check(name: str, value: Tensor, kind: str, has_kind: bool) -> None:
    if not has_kind:
        given = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a {kind} tensor; got {given}.")
    if value.ndim != 2 or 0 in value.shape:
        raise ValueError(f"{name} must be [H, W] with at least one pixel; got {list(value.shape)}.")


CONVENTIONS: dict[str, Convention] = {
    convention.name: convention
    for convention in (
        Convention(
            name="native", where="own size; resized bilinearly, cut", source="this library", _from_square=_native
        ),
        Convention(
            name="cmsa",
            where="own size; cut, resized, any non-0",
            strict_threshold=False,
            refine_at="square",
            source="lwye/CMSA-Net",
            _from_square=_cmsa,
        ),
        Convention(
            name="lavt",
            where="480x480, both stretched; cut",
            empty_union_iou=0,
            source="yz93/LAVT-RIS",
            _from_square=_lavt,
            side=_LAVT_SIDE,
        ),
        Convention(
            name="cris",
            where="own size; warped bicubically, cut",
            threshold=0.35,
            precision_strict=True,
            empty_union_iou=0,
            union_offset=1e-6,
            headline="mean_iou",
            source="DerrickWang005/CRIS.pytorch",
            _from_square=_cris,
        ),
    )
}
"""The conventions by name; "native" is the default."""

_NOTES = """\
I and U are the pixels in the intersection and the union of an expression's predicted and true mask.
"cut" means compared with the threshold in the column "pixel".
  overall_iou  sum of I / sum of U over all expressions
  mean_iou     mean over all expressions of the IoU in the table
  precision@t  share of the expressions that pass, for t = 0.5, 0.6, 0.7, 0.8, 0.9
All metrics are computed under every convention; the headline is what its papers call the IoU.
All conventions evaluate every expression; CRIS, during training, only an object's first one.

native  The default: outlines are not moved, and pixels are the image's own.
cmsa    Thickens every outline by up to a pixel of the square. The repository divides by zero for
        U = 0; the IoU of 1 is this library's choice. RMI and text_objseg use these rules, too.
lavt    Stretches the prediction, without its padding, bilinearly; the truth by nearest pixels.
cris    The repository rounds thresholds to float32, so that most IoUs of exactly 0.7 or 0.9 pass.
        It maps pixel indices to the square and back; this library maps pixel centres."""


def conventions_table() -> str:
    """The rules of each convention, with the formulas, as plain text of at most 100 columns."""
    rows = [("", "masks compared at", "pixel", "IoU", "passes", "U = 0", "CRF on", "headline")]
    for one in CONVENTIONS.values():
        rows.append(
            (
                one.name,
                one.where,
                f"p {'>' if one.strict_threshold else '>='} {one.threshold:g}",
                f"I/(U+{one.union_offset:g})".replace("e-0", "e-") if one.union_offset else "I/U",
                f"IoU {'>' if one.precision_strict else '>='} t",
                f"IoU {one.empty_union_iou}",
                one.refine_at,
                one.headline.removesuffix("_iou"),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    sources = [f"  {one.name:<{widths[0]}}  {one.source}" for one in CONVENTIONS.values()]
    return "\n".join([*lines, "", _NOTES, "", "Sources:", *sources])
