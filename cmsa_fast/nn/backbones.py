"""Backbones with three levels at one eighth of the resolution: Res3, Res4 and Res5."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .pretrained import load_backbone_weights
from .validation import check_dtype_and_device

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
# Dilations of the first units of layer3 and layer4; the other units have 2 and 4.
_FIRST_DILATIONS = {"torchvision": (1, 2), "deeplab": (2, 4)}

Norm = Callable[[int], nn.Module]


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation in groups of 8 channels."""
    return nn.GroupNorm(channels // 8, channels)


_NARROW: dict[str, tuple[tuple[int, ...], Norm]] = {
    "narrow": ((24, 48, 64, 96, 128), group_norm),
    "compact": ((32, 48, 64, 96, 128), nn.BatchNorm2d),
}

# Statistics of ImageNet for RGB in [0, 1]; torchvision's weights expect them.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def build_backbone(
    name: str,
    *,
    weights: str | Path | None = None,
    dilation: str = "torchvision",
    frozen: bool = False,
    freeze_batch_norm: bool = True,
    narrow_widths: Sequence[int] | None = None,
) -> "Backbone":
    """Build a backbone by name.

    Args:
        name: "resnet18", "resnet34", "resnet50", "resnet101" (the depth of the paper), or one of the small
            `NarrowBackbone`s: "narrow" with group normalisation, "compact" with batch normalisation.
        weights: "imagenet", "voc-labels", the path of a file, or None for random weights; see
            `cmsa_fast.nn.pretrained.load_backbone_weights`. The small backbones have no published weights.
        dilation: See `DilatedResNet`.
        frozen: Whether to exclude the backbone from training; see `Backbone.freeze`.
        freeze_batch_norm: See `DilatedResNet`.
        narrow_widths: Widths of a `NarrowBackbone`. None: those of its name.

    Raises:
        ValueError: An option is unknown or out of range, or weights are given for a small backbone.
        FileNotFoundError: weights name a file that is missing or cannot be downloaded.
    """
    backbone: Backbone
    if name not in _NARROW:
        backbone = DilatedResNet(name, weights=weights, dilation=dilation, freeze_batch_norm=freeze_batch_norm)
    elif weights is not None:
        raise ValueError(
            f'backbone_weights must be None for backbone="{name}", which has no published weights; '
            f"got {str(weights)!r}."
        )
    else:
        widths, norm = _NARROW[name]
        backbone = NarrowBackbone(narrow_widths or widths, norm=norm)
    return backbone.freeze() if frozen else backbone


class Backbone(nn.Module, ABC):
    """Base class: normalises images. Subclasses set `channels` and implement `levels`.

    Attributes:
        channels: Channels of Res3, Res4 and Res5.
        frozen: Whether `freeze` was called.
    """

    channels: tuple[int, int, int]
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1), persistent=False)
        self.frozen = False

    def freeze(self) -> Self:
        """Exclude the backbone from training: no gradient for its parameters, eval mode even under `train()`."""
        self.frozen = True
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and not self.frozen)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the three levels.

        Args:
            images: [B, 3, H, W], RGB in [0, 1].

        Returns:
            Res3, Res4 and Res5, [B, channels[i], ceil(H/8), ceil(W/8)] each.

        Raises:
            TypeError: images is not floating point, or not in the dtype of the backbone.
            ValueError: images has another shape or is on another device.
        """
        if not images.is_floating_point():
            raise TypeError(f"images must be floating point in [0, 1]; got {images.dtype}.")
        check_dtype_and_device("images", images, "the backbone", self.mean)
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
            raise ValueError(f"images must have shape [batch, 3, height, width]; got {list(images.shape)}.")
        return self.levels((images - self.mean) / self.std)

    @abstractmethod
    def levels(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The three levels of normalised images."""


class DilatedResNet(Backbone):
    """torchvision's ResNet at output stride 8: dilations 2 and 4 replace the strides of Res4 and Res5.

    This is the backbone of DeepLab (Chen et al., TPAMI 2018) without its atrous pyramid, which CMSA does not use.
    """

    def __init__(
        self,
        architecture: str = "resnet101",
        *,
        weights: str | Path | None = None,
        dilation: str = "torchvision",
        freeze_batch_norm: bool = True,
    ) -> None:
        """
        Args:
            architecture: "resnet18", "resnet34", "resnet50" or "resnet101".
            weights: "imagenet", "voc-labels", the path of a file, or None for random weights; see
                `cmsa_fast.nn.pretrained.load_backbone_weights`.
            dilation: Dilations of the first units of Res4 and Res5. "torchvision": 1 and 2, as in torchvision's
                dilated ResNets and for their weights. "deeplab": 2 and 4, as in the units that follow; use it with
                weights converted from DeepLab's Caffe or TensorFlow models, which the published CMSA code uses.
            freeze_batch_norm: Keep statistics and scale of batch normalisation fixed, as in the published code,
                whose batch of one image has no useful statistics. With random weights they stay at 0 and 1.

        Raises:
            ValueError: architecture or dilation is unknown, or weights do not fit the architecture.
            FileNotFoundError: weights name a file that is missing or cannot be downloaded.
        """
        super().__init__()
        if architecture not in RESNETS:
            raise ValueError(f"architecture must be one of {', '.join(RESNETS)}; got {architecture!r}.")
        if dilation not in _FIRST_DILATIONS:
            raise ValueError(f"dilation must be one of {', '.join(_FIRST_DILATIONS)}; got {dilation!r}.")
        from torchvision.models import get_model
        from torchvision.ops import FrozenBatchNorm2d

        norm = FrozenBatchNorm2d if freeze_batch_norm else nn.BatchNorm2d
        body = get_model(architecture, weights=None, norm_layer=norm)
        del body.fc, body.avgpool
        first3, first4 = _FIRST_DILATIONS[dilation]
        _dilate(body.layer3, first=first3, rest=2)
        _dilate(body.layer4, first=first4, rest=4)
        if weights is not None:
            state = load_backbone_weights(architecture, weights)
            try:
                body.load_state_dict(state)
            except RuntimeError as error:
                raise ValueError(f"weights={str(weights)!r} do not fit {architecture}: {error}") from error
        self.body = body
        last = 512 if architecture in ("resnet18", "resnet34") else 2048
        self.channels = (last // 4, last // 2, last)

    def levels(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        body = self.body
        x = body.maxpool(body.relu(body.bn1(body.conv1(images))))
        res3 = body.layer2(body.layer1(x))
        res4 = body.layer3(res3)
        return res3, res4, body.layer4(res4)


def _dilate(layer: nn.Sequential, *, first: int, rest: int) -> None:
    """Replace the stride of a layer by dilation, in place; parameters keep their names and shapes.

    torchvision can do this for its Bottleneck, but its BasicBlock (ResNet-18 and 34) refuses dilation. The 3x3
    convolutions up to the one that had the stride get the dilation `first`, the others `rest`.
    """
    dilation = first
    for module in layer.modules():
        if not isinstance(module, nn.Conv2d):
            continue
        if module.kernel_size == (3, 3):
            module.dilation = module.padding = (dilation, dilation)
            if module.stride == (2, 2):
                dilation = rest
        module.stride = (1, 1)


class NarrowBackbone(Backbone):
    """A small residual network with the same three levels, for images of about 100 pixels on a CPU.

    Group normalisation (Wu and He, ECCV 2018) depends on neither the batch nor gathered statistics; with batch
    normalisation the network learns faster from batches of a few images. Each level ends in a 1x1 convolution
    without ReLU: CMSA normalises features to unit length, and the directions of rectified features all lie in one
    orthant, close to each other.
    """

    def __init__(
        self,
        widths: Sequence[int] = (24, 48, 64, 96, 128),
        *,
        blocks: int = 2,
        norm: Norm = group_norm,
    ) -> None:
        """
        Args:
            widths: Channels of the stem, of Res2 (stride 4), and of Res3, Res4 and Res5 (stride 8); each
                divisible by 8, the size of a group.
            blocks: Residual blocks in each of Res3, Res4 and Res5; Res2 has one.
            norm: Returns a normalisation layer for a number of channels.

        Raises:
            ValueError: widths are not five multiples of 8, or blocks is below 1.
        """
        super().__init__()
        if len(widths) != 5 or any(width < 8 or width % 8 for width in widths):
            raise ValueError(f"widths must be five multiples of 8; got {list(widths)}.")
        if blocks < 1:
            raise ValueError(f"blocks must be at least 1; got {blocks}.")
        stem, res2, res3, res4, res5 = widths
        self.stem = nn.Sequential(nn.Conv2d(3, stem, 3, stride=2, padding=1, bias=False), norm(stem), nn.ReLU())
        self.res2 = _residual_layer(stem, res2, norm, blocks=1, stride=2)
        self.res3 = _residual_layer(res2, res3, norm, blocks=blocks, stride=2)
        self.res4 = _residual_layer(res3, res4, norm, blocks=blocks, dilation=2)
        self.res5 = _residual_layer(res4, res5, norm, blocks=blocks, dilation=4)
        self.channels = (res3, res4, res5)
        self.outputs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 1, bias=False), norm(width)) for width in self.channels
        )

    def levels(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        res3 = self.res3(self.res2(self.stem(images)))
        res4 = self.res4(res3)
        output3, output4, output5 = self.outputs
        return output3(res3), output4(res4), output5(self.res5(res4))


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al., CVPR 2016)."""

    def __init__(self, in_channels: int, channels: int, norm: Norm, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(
            in_channels, channels, 3, stride=stride, padding=dilation, dilation=dilation, bias=False
        )
        self.norm1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.norm2 = norm(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False),
                norm(channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def _residual_layer(
    in_channels: int,
    channels: int,
    norm: Norm,
    *,
    blocks: int,
    stride: int = 1,
    dilation: int = 1,
) -> nn.Sequential:
    first = _ResidualBlock(in_channels, channels, norm, stride, dilation)
    rest = [_ResidualBlock(channels, channels, norm, 1, dilation) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)
