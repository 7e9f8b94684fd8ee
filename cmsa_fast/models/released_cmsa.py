"""The network that the code published with Ye et al. (CVPR 2019) trains; it is not the paper's."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from ..nn import ChannelGatedFusion, PooledCMSA, SqueezedCMSA, WordEmbedding
from .backbone import build_backbone
from .base import ImageFeatures


class ReleasedCMSAModel(nn.Module):
    """The published code's forward pass, where `CMSAModel` is the paper's Eq. 1-6.

    Res5 is brought from 2048 to 1000 channels by a linear 1x1 convolution and attended at width 512; the tokens of
    Res4 and Res3 are squeezed to 256 and 128 by a rectified one and attended at 128 and 64. Query, key, value and
    output are rectified and have biases; keys and values are max-pooled 2x2x2 over words, rows and columns; see
    `PooledCMSA` and `SqueezedCMSA`. `ChannelGatedFusion` joins the levels, and a 3x3 convolution gives the mask.

    Two things differ from the published code. The backbone is torchvision's ResNet, which the caller may freeze,
    not Caffe's. Logits are enlarged with half-pixel centres (`align_corners=False`); TensorFlow 1 resized without
    them, which moves masks by half a cell (3.5 pixels at a stride of 8) up and to the left, and matters only to
    weights trained that way.

    The model has no `word_attention`: pooled keys stand for two words each, so no word has a share of its own.
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
        res5_channels: int | None = None,
        attention_channels: int = 512,
        squeezed_channels: Sequence[int] | None = None,
        fused_channels: int = 500,
        backend: str = "auto",
    ) -> None:
        """
        Args:
            vocabulary_size: number of word ids.
            backbone: "resnet18", "resnet34", "resnet50", "resnet101" (the published code's depth) or "narrow".
            backbone_weights: "imagenet", "voc-labels", a file's path, or None for a random start; see
                `DilatedResNet`.
            freeze_batch_norm: see `DilatedResNet`.
            narrow_widths: see `NarrowBackbone`; used by backbone="narrow" alone.
            word_channels: Cl (1000).
            res5_channels: channels Res5 is brought to before it meets the words. None: word_channels (1000).
            attention_channels: width of query, key and value at Res5 (512).
            squeezed_channels: channels of the tokens at Res3 and Res4, which attend at half that width. None: a
                quarter and a half of attention_channels (128 and 256).
            fused_channels: channels of each level in the fusion (500).
            backend: of the attention; see `cmsa_fast.kernels.joint_attention`.

        Raises:
            ValueError: an option is unknown or out of range, or weights are named for the narrow backbone.
            FileNotFoundError: backbone_weights name a file that is not there or cannot be downloaded.
        """
        super().__init__()
        if squeezed_channels is None:
            if attention_channels < 8:
                raise ValueError(
                    "attention_channels must be at least 8, because Res3 attends at an eighth of it, unless "
                    f"squeezed_channels say otherwise; got {attention_channels}."
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
            freeze_batch_norm=freeze_batch_norm,
            narrow_widths=narrow_widths,
        )
        res3, res4, res5 = self.backbone.channels
        self.words = WordEmbedding(vocabulary_size, word_channels)
        self.squeeze = nn.Conv2d(res5, res5_channels, 1)
        of_res3, of_res4 = (
            SqueezedCMSA(visual, word_channels, squeezed, squeezed // 2, backend=backend)
            for visual, squeezed in zip((res3, res4), squeezed_channels, strict=True)
        )
        of_res5 = PooledCMSA(res5_channels, word_channels, attention_channels, backend=backend)
        self.attention = nn.ModuleList([of_res3, of_res4, of_res5])
        self.fusion = ChannelGatedFusion(
            [level.out_channels for level in (of_res3, of_res4, of_res5)], fused_channels
        )
        self.mask = nn.Conv2d(fused_channels, 1, 3, padding=1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw what is not drawn by the parts: Xavier-uniform convolutions, as the published code starts."""
        for convolution in (self.squeeze, self.mask):
            nn.init.xavier_uniform_(convolution.weight)
            if convolution.bias is not None:
                nn.init.zeros_(convolution.bias)
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
            Res3, Res4 and the squeezed Res5, and the images' size.
        """
        res3, res4, res5 = self.backbone(images)
        return ImageFeatures((res3, res4, self.squeeze(res5)), (images.shape[2], images.shape[3]))

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
        levels = [
            attention(level, vectors, word_mask, image_index=image_index)
            for attention, level in zip(self.attention, features.levels, strict=True)
        ]
        logits = self.mask(self.fusion(levels))
        return F.interpolate(logits, size=features.size, mode="bilinear", align_corners=False)

    def forward(
        self,
        images: Tensor,
        words: Tensor,
        word_mask: Tensor | None = None,
        image_index: Tensor | None = None,
    ) -> Tensor:
        """`encode_image` and `segment` in a row: [B, 1, H, W] logits."""
        return self.segment(self.encode_image(images), words, word_mask, image_index)
