"""The network of the code published with Ye et al. (CVPR 2019), which differs from the paper."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels.validation import check_images, check_word_mask
from ..nn import ChannelGatedFusion, PooledCMSA, SqueezedCMSA, WordEmbedding
from ..nn.backbones import build_backbone
from ..nn.released_cmsa import ReleasedLevel
from .base import Explanation, ImageFeatures, ReferringModel, TextFeatures


class ReleasedCMSAModel(ReferringModel):
    """The forward pass of the published code; `CMSAModel` implements Eq. 1-6 of the paper instead.

    A linear 1x1 convolution reduces Res5 from 2048 to 1000 channels, and it is attended at width 512. The tokens
    of Res4 and Res3 are squeezed to 256 and 128 channels by a rectified convolution and attended at widths 128 and
    64. Query, key, value and output are rectified and have biases; keys and values are max-pooled 2x2x2 over
    words, rows and columns (`PooledCMSA`, `SqueezedCMSA`). `ChannelGatedFusion` combines the levels, and a 3x3
    convolution gives the mask.

    Differences to the published code: the backbone is torchvision's ResNet instead of Caffe's (see
    `backbone_dilation`), trained unless `freeze_backbone` is set; logits are enlarged with half-pixel centres
    (`align_corners=False`), where TensorFlow 1 moved masks by half a cell (3.5 pixels at a stride of 8) up and to
    the left, which only matters to weights trained that way; the bias of the mask starts at -2 instead of 0.

    `explain` has no word attention, because a pooled key stands for two words.
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
        res5_channels: int | None = None,
        attention_channels: int = 512,
        squeezed_channels: Sequence[int] | None = None,
        fused_channels: int = 500,
        backend: str = "auto",
    ) -> None:
        """
        Args:
            vocabulary_size: Number of word ids.
            backbone: Name of the backbone. For it and the options up to narrow_widths see `build_backbone`.
            word_channels: Cl (1000).
            res5_channels: Channels that Res5 is reduced to. None: word_channels (1000).
            attention_channels: Width of query, key and value at Res5 (512).
            squeezed_channels: Channels of the tokens at Res3 and Res4, which attend at half that width. None: a
                quarter and a half of attention_channels (128 and 256).
            fused_channels: Channels of each level in the fusion (500).
            backend: Of the attention; see `cmsa_fast.kernels.joint_attention`.

        Raises:
            ValueError: An option is unknown or out of range.
            FileNotFoundError: backbone_weights name a file that is missing or cannot be downloaded.
        """
        super().__init__()
        if squeezed_channels is None:
            if attention_channels < 8:
                raise ValueError(
                    "attention_channels must be at least 8, because Res3 attends at an eighth of it, unless "
                    f"squeezed_channels is given; got {attention_channels}."
                )
            squeezed_channels = (attention_channels // 4, attention_channels // 2)
        if len(squeezed_channels) != 2 or min(squeezed_channels) < 2:
            raise ValueError(
                "squeezed_channels must be two numbers of at least 2, for Res3 and Res4; "
                f"got {list(squeezed_channels)}."
            )
        res5_channels = word_channels if res5_channels is None else res5_channels
        if res5_channels < 1:
            raise ValueError(f"res5_channels must be at least 1; got {res5_channels}.")
        self.backbone = build_backbone(
            backbone,
            weights=backbone_weights,
            dilation=backbone_dilation,
            frozen=freeze_backbone,
            freeze_batch_norm=freeze_batch_norm,
            narrow_widths=narrow_widths,
        )
        res3, res4, res5 = self.backbone.channels
        self.words = WordEmbedding(vocabulary_size, word_channels)
        self.squeeze = nn.Conv2d(res5, res5_channels, 1)
        attend3, attend4 = (
            SqueezedCMSA(visual, word_channels, squeezed, squeezed // 2, backend=backend)
            for visual, squeezed in zip((res3, res4), squeezed_channels, strict=True)
        )
        attend5 = PooledCMSA(res5_channels, word_channels, attention_channels, backend=backend)
        self.attention = nn.ModuleList([attend3, attend4, attend5])
        self.fusion = ChannelGatedFusion(
            [level.out_channels for level in (attend3, attend4, attend5)], fused_channels
        )
        self.mask = nn.Conv2d(fused_channels, 1, 3, padding=1)
        for convolution in (self.squeeze, self.mask):  # Xavier-uniform as in the published code
            nn.init.xavier_uniform_(convolution.weight)
            nn.init.zeros_(cast(Tensor, convolution.bias))
        # Objects cover about an eighth of an image: start there instead of at one half.
        nn.init.constant_(cast(Tensor, self.mask.bias), -2.0)

    def no_weight_decay(self) -> tuple[str, ...]:
        return ("attention", "fusion")

    def encode_image(self, images: Tensor) -> ImageFeatures:
        res3, res4, res5 = self.backbone(images)
        return ImageFeatures((res3, res4, self.squeeze(res5)), (images.shape[2], images.shape[3]))

    def encode_text(self, words: Tensor, word_mask: Tensor | None = None) -> TextFeatures:
        vectors = self.words(words)
        if word_mask is not None:
            check_word_mask(word_mask, words.shape, "words", words.device)
        return TextFeatures(vectors, word_mask)

    def decode(self, features: ImageFeatures, text: TextFeatures, image_index: Tensor | None = None) -> Tensor:
        return self.explain(features, text, image_index).logits

    def explain(
        self, features: ImageFeatures, text: TextFeatures, image_index: Tensor | None = None
    ) -> Explanation:
        words, word_mask = text
        check_images("features", len(features.levels[0]), "words", len(words), image_index, words.device)
        for attention in self.attention:
            cast(ReleasedLevel, attention).check_linear_maps()
        levels = [
            cast(ReleasedLevel, attention).unchecked_forward(level, words, word_mask, image_index)
            for attention, level in zip(self.attention, features.levels, strict=True)
        ]
        fused = self.fusion.unchecked_forward(levels)
        logits = F.interpolate(self.mask(fused), size=features.size, mode="bilinear", align_corners=False)
        return Explanation(logits, last_features=fused)
