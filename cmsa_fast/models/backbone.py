"""Backbones by name, as every model's options choose them."""

from collections.abc import Sequence
from pathlib import Path

from ..nn import DilatedResNet, NarrowBackbone


def build_backbone(
    name: str,
    *,
    weights: str | Path | None,
    freeze_batch_norm: bool,
    narrow_widths: Sequence[int],
) -> NarrowBackbone | DilatedResNet:
    """
    Args:
        name: "resnet18", "resnet34", "resnet50", "resnet101" or "narrow".
        weights: "imagenet", "voc-labels", a file's path, or None for a random start; see `DilatedResNet`.
        freeze_batch_norm: see `DilatedResNet`.
        narrow_widths: see `NarrowBackbone`; used by "narrow" alone.

    Raises:
        ValueError: an option is unknown or out of range, or weights are named for the narrow backbone.
        FileNotFoundError: weights name a file that is not there or cannot be downloaded.
    """
    if name != "narrow":
        return DilatedResNet(name, weights=weights, freeze_batch_norm=freeze_batch_norm)
    if weights is not None:
        raise ValueError(
            'backbone_weights must be None for backbone="narrow", which nobody has pretrained; '
            f"got {str(weights)!r}."
        )
    return NarrowBackbone(narrow_widths)
