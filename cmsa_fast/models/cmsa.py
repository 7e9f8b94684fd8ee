"""The network of Ye et al. (CVPR 2019): backbone, CMSA at three levels, gated fusion, mask."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..nn import CMSA, DilatedResNet, GatedFusion, NarrowBackbone, WordEmbedding
from .base import ImageFeatures
from .folded_cmsa import FoldedCMSAModel


class CMSAModel(nn.Module):
    """Eq. 1-6: an expression's words meet Res3, Res4 and Res5 by CMSA, and gated fusion joins the three.

    The defaults are the paper's sizes. Where it contradicts itself or leaves a choice: `CMSA` and
    `GatedFusion` say what was done.
    """

    def __init__(
        self,
        vocabulary_size: int,
        *,
        backbone: str = "resnet101",
        backbone_weights: str | Path | None = None,
        freeze_batch_norm: bool = True,
        narrow_widths: Sequence[int] = (24, 48, 64, 96, 128),
        word_channels: int = 1000,
        attention_channels: int = 512,
        fused_channels: int = 500,
        backend: str = "auto",
    ) -> None:
        """
        Args:
            vocabulary_size: number of word ids.
            backbone: "resnet18", "resnet34", "resnet50", "resnet101" (the paper's) or "narrow".
            backbone_weights: "imagenet", "voc-labels", a file's path, or None for a random start; see
                `DilatedResNet`.
            freeze_batch_norm: see `DilatedResNet`.
            narrow_widths: see `NarrowBackbone`; used by backbone="narrow" alone.
            word_channels: Cl (1000 in the paper).
            attention_channels: d, the width of query, key and value (512).
            fused_channels: channels of each level in the fusion (500).
            backend: of the attention; see `cmsa_fast.kernels.cross_modal_attention`.

        Raises:
            ValueError: an option is unknown or out of range, or weights are named for the narrow backbone.
            FileNotFoundError: backbone_weights name a file that is not there or cannot be downloaded.
        """
        super().__init__()
        self.backbone: NarrowBackbone | DilatedResNet
        if backbone == "narrow":
            if backbone_weights is not None:
                raise ValueError(
                    'backbone_weights must be None for backbone="narrow", which nobody has pretrained; '
                    f"got {str(backbone_weights)!r}."
                )
            self.backbone = NarrowBackbone(narrow_widths)
        else:
            self.backbone = DilatedResNet(
                backbone, weights=backbone_weights, freeze_batch_norm=freeze_batch_norm
            )
        self.words = WordEmbedding(vocabulary_size, word_channels)
        self.attention = nn.ModuleList(
            CMSA(channels, word_channels, attention_channels, backend=backend)
            for channels in self.backbone.channels
        )
        self.fusion = GatedFusion(
            [cast(CMSA, level).out_channels for level in self.attention], fused_channels
        )
        self.mask = nn.Conv2d(fused_channels, 1, 3, padding=1)  # Eq. 6, before its sigmoid
        if self.mask.bias is not None:
            # Objects cover about an eighth of an image: start from there, not from one half.
            nn.init.constant_(self.mask.bias, -2.0)

    def no_weight_decay(self) -> tuple[str, ...]:
        """Submodules without weight decay in training, besides biases, norms and embeddings."""
        return ("attention", "fusion")

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """
        Args:
            images: [B_images, 3, H, W], RGB in [0, 1].

        Returns:
            Res3, Res4 and Res5 and the images' size.
        """
        return ImageFeatures(self.backbone(images), (images.shape[2], images.shape[3]))

    def segment(
        self,
        features: ImageFeatures,
        words: Tensor,
        word_mask: Tensor | None = None,
        image_index: Tensor | None = None,
    ) -> Tensor:
        """Logits of the mask that each expression names.

        Args:
            features: from `encode_image`.
            words: int64 [B, N], word ids.
            word_mask: bool [B, N], True where a word is real. None: all are.
            image_index: int64 [B], which image each expression belongs to. None: expression b to image b.

        Returns:
            [B, 1, H, W] at the images' size, bilinear from one eighth of it.
        """
        vectors = self.words(words)
        projected = [
            cast(CMSA, attention).project(
                level,
                vectors,
                word_mask,
                weight=cast(nn.Conv2d, convolution).weight,
                bias=cast(nn.Conv2d, convolution).bias,
                image_index=image_index,
            )
            for attention, convolution, level in zip(
                self.attention, self.fusion.project, features.levels, strict=True
            )
        ]
        logits = self.mask(self.fusion.fuse(projected))
        return F.interpolate(logits, size=features.size, mode="bilinear", align_corners=False)

    def word_attention(
        self,
        features: ImageFeatures,
        words: Tensor,
        word_mask: Tensor | None = None,
        image_index: Tensor | None = None,
    ) -> Tensor:
        """How much attention each word receives at Res3, Res4 and Res5 (the paper's Fig. 4).

        Arguments as in `segment`.

        Returns:
            [B, 3, N]; sums to 1 over the real words of each level, 0 on padding.
        """
        vectors = self.words(words)
        received = [
            attention(
                level, vectors, word_mask, image_index=image_index, return_word_attention=True
            )[1]
            for attention, level in zip(self.attention, features.levels, strict=True)
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

    def fold(self) -> FoldedCMSAModel:
        """This model for inference, faster: see `FoldedCMSAModel`.

        Example:
            with torch.no_grad():
                logits = model.eval().fold()(images, words)

        Raises:
            RuntimeError: the model is in training mode.
        """
        return FoldedCMSAModel(self)
