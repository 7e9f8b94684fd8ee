"""The network of Ye et al. (CVPR 2019): backbone, CMSA at three levels, gated fusion, mask."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels.validation import check_images, check_word_mask
from ..nn import CMSA, GatedFusion, WordEmbedding
from ..nn.backbones import build_backbone
from ..nn.validation import check_unmodified
from .base import Explanation, ImageFeatures, ReferringModel, TextFeatures


class CMSAModel(ReferringModel):
    """Eq. 1-6: CMSA fuses the words into Res3, Res4 and Res5, gated fusion combines the three levels.

    The defaults are the sizes of the paper. `CMSA` and `GatedFusion` document where the paper contradicts itself
    or leaves a choice.
    """

    def __init__(
        self,
        vocabulary_size: int,
        *,
        backbone: str = "resnet101",
        backbone_weights: str | Path | None = None,
        backbone_dilation: str = "torchvision",
        freeze_backbone: bool = False,
        freeze_batch_norm: bool = True,
        narrow_widths: Sequence[int] | None = None,
        word_channels: int = 1000,
        attention_channels: int = 512,
        fused_channels: int = 500,
        mask_scale: int = 1,
        backend: str = "auto",
    ) -> None:
        """
        Args:
            vocabulary_size: Number of word ids.
            backbone: Name of the backbone. For it and the options up to narrow_widths see `build_backbone`.
            word_channels: Cl (1000 in the paper).
            attention_channels: d, the width of query, key and value (512).
            fused_channels: Channels of each level in the fusion (500).
            mask_scale: r, for r x r logits per place (1 in Eq. 6); the mask convolution then has r * r channels
                (sub-pixel convolution, Shi et al., CVPR 2016).
            backend: Of the attention; see `cmsa_fast.kernels.cross_modal_attention`.

        Raises:
            ValueError: An option is unknown or out of range.
            FileNotFoundError: backbone_weights name a file that is missing or cannot be downloaded.
        """
        super().__init__()
        if mask_scale < 1:
            raise ValueError(f"mask_scale must be at least 1; got {mask_scale}.")
        self.backbone = build_backbone(
            backbone,
            weights=backbone_weights,
            dilation=backbone_dilation,
            frozen=freeze_backbone,
            freeze_batch_norm=freeze_batch_norm,
            narrow_widths=narrow_widths,
        )
        self.words = WordEmbedding(vocabulary_size, word_channels)
        self.attention = nn.ModuleList(
            CMSA(channels, word_channels, attention_channels, backend=backend)
            for channels in self.backbone.channels
        )
        self.fusion = GatedFusion([cast(CMSA, level).out_channels for level in self.attention], fused_channels)
        self.mask_scale = mask_scale
        # Eq. 6, before its sigmoid.
        self.mask = nn.Conv2d(fused_channels, mask_scale**2, 3, padding=1)
        # Objects cover about an eighth of an image: start there instead of at one half.
        nn.init.constant_(cast(Tensor, self.mask.bias), -2.0)

    def no_weight_decay(self) -> tuple[str, ...]:
        return ("attention", "fusion")

    def encode_image(self, images: Tensor) -> ImageFeatures:
        return ImageFeatures(self.backbone(images), (images.shape[2], images.shape[3]))

    def encode_text(self, words: Tensor, word_mask: Tensor | None = None) -> TextFeatures:
        vectors = self.words(words)
        if word_mask is not None:
            check_word_mask(word_mask, words.shape, "words", words.device)
        return TextFeatures(vectors, word_mask)

    def decode(self, features: ImageFeatures, text: TextFeatures, image_index: Tensor | None = None) -> Tensor:
        levels = self._project(features, text, image_index, return_word_attention=False)
        return self.read_out(levels, features.size).logits

    def explain(
        self, features: ImageFeatures, text: TextFeatures, image_index: Tensor | None = None
    ) -> Explanation:
        """See `ReferringModel`. The levels are Res3, Res4 and Res5 (the paper's Fig. 4 shows such attention)."""
        levels = self._project(features, text, image_index, return_word_attention=True)
        return self.read_out(levels, features.size)

    def place_attention(
        self, features: ImageFeatures, text: TextFeatures, image_index: Tensor | None = None
    ) -> Tensor:
        words, word_mask = text
        check_images("features", len(features.levels[0]), "words", len(words), image_index, words.device)
        received = [
            cast(CMSA, attention).place_attention(level, words, word_mask, image_index=image_index)
            for attention, level in zip(self.attention, features.levels, strict=True)
        ]
        return torch.stack(received, dim=1)

    def read_out(self, levels: Sequence[tuple[Tensor, Tensor | None]], size: tuple[int, int]) -> Explanation:
        """Fuse the levels and compute the logits.

        Args:
            levels: Each projected, [B, fused_channels, H/8, W/8], with its word attention [B, N] or None.
            size: Height and width of the logits.
        """
        projected, received = zip(*levels, strict=True)
        fused = self.fusion.unchecked_fuse(projected)
        logits = F.pixel_shuffle(self.mask(fused), self.mask_scale)
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        words = None if received[0] is None else torch.stack(received, dim=1)
        return Explanation(logits, words, fused)

    def _project(
        self,
        features: ImageFeatures,
        text: TextFeatures,
        image_index: Tensor | None,
        return_word_attention: bool,
    ) -> list[tuple[Tensor, Tensor | None]]:
        words, word_mask = text
        check_images("features", len(features.levels[0]), "words", len(words), image_index, words.device)
        for attention, convolution in zip(self.attention, self.fusion.project, strict=True):
            cast(CMSA, attention).check_linear_maps()
            check_unmodified("fusion.project", convolution, nn.Conv2d)
        return [
            cast(CMSA, attention).unchecked_project(
                level,
                words,
                word_mask,
                cast(nn.Conv2d, convolution).weight,
                cast(nn.Conv2d, convolution).bias,
                image_index,
                return_word_attention,
            )
            for attention, convolution, level in zip(
                self.attention, self.fusion.project, features.levels, strict=True
            )
        ]
