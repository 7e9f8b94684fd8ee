"""Cross-modal self-attention (Ye et al., CVPR 2019, Eq. 1-4) as a module."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels import BACKENDS, cross_modal_attention, received_word_attention
from .coordinates import COORDINATE_CHANNELS, spatial_coordinates

# The floor under a vector's length (the published code's 1e-12 under its square): zero stays zero.
_LENGTH_FLOOR = 1e-6

# Squared length of a token [unit visual, unit word, coordinates]: 1 + 1 + six coordinates of mean square 1/3.
_TOKEN_SQUARE = 4.0


class _Parts(NamedTuple):
    query: Tensor
    key: Tensor
    value: Tensor


class CMSA(nn.Module):
    """Every (place, word) token of a picture and a sentence attends to every other.

    Eq. 1: f_pn = [v_p / |v_p|, e_n / |e_n|, s_p]. Eq. 2-3: softmax attention of f_pn over all f_p'n', without
    a scale. Eq. 4: the mean over words of W_vhat vhat_pn + f_pn. The multimodal feature F (places x words x
    channels) is never built: a linear map of a concatenation is a sum of a place part and a word part.

    The parameters are the paper's matrices, whole, without bias, their columns ordered visual | word |
    coordinate. The paper calls the row side of its Eq. 3 k and the attended side q; here they have the names
    that everyone else gives them.

    Attributes:
        query.weight: [d, Cv+Cl+8], the paper's W_k.
        key.weight: [d, Cv+Cl+8], the paper's W_q.
        value.weight: [d, Cv+Cl+8], the paper's W_v.
        output.weight: [Cv+Cl+8, d], the paper's W_vhat.
    """

    def __init__(
        self,
        visual_channels: int,
        word_channels: int,
        attention_channels: int = 512,
        *,
        backend: str = "auto",
    ) -> None:
        """
        Args:
            visual_channels: Cv, channels of the visual features.
            word_channels: Cl, channels of the word features.
            attention_channels: d, the width of query, key and value (512 in the paper).
            backend: passed to `cmsa_fast.kernels.cross_modal_attention`.

        Raises:
            ValueError: a number of channels is below 1, or backend is unknown.
        """
        super().__init__()
        sizes = {
            "visual_channels": visual_channels,
            "word_channels": word_channels,
            "attention_channels": attention_channels,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1; got {size}.")
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}.")
        self.visual_channels = visual_channels
        self.word_channels = word_channels
        self.attention_channels = attention_channels
        self.backend = backend
        self.out_channels = visual_channels + word_channels + COORDINATE_CHANNELS
        self.query = nn.Linear(self.out_channels, attention_channels, bias=False)
        self.key = nn.Linear(self.out_channels, attention_channels, bias=False)
        self.value = nn.Linear(self.out_channels, attention_channels, bias=False)
        self.output = nn.Linear(attention_channels, self.out_channels, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights so that logits start with a standard deviation of about 1.

        Tokens have a squared length of about 4 whatever their width, so weights scaled by the fan-in would
        leave every logit near 0, the softmax uniform and its gradient without direction. Values start with unit
        variance, and the output with the squared length of the residual.
        """
        logit = (self.attention_channels * _TOKEN_SQUARE**2) ** -0.25
        nn.init.normal_(self.query.weight, std=logit)
        nn.init.normal_(self.key.weight, std=logit)
        nn.init.normal_(self.value.weight, std=_TOKEN_SQUARE**-0.5)
        output = (_TOKEN_SQUARE / (self.out_channels * self.attention_channels)) ** 0.5
        nn.init.normal_(self.output.weight, std=output)

    def forward(
        self,
        visual: Tensor,
        words: Tensor,
        word_mask: Tensor | None = None,
        *,
        image_index: Tensor | None = None,
        return_word_attention: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Fuse a sentence into the visual features of its picture.

        Args:
            visual: [B, Cv, H, W], or [B_images, Cv, H, W] with image_index.
            words: [B, N, Cl].
            word_mask: bool [B, N], True where a word is real; what stands in padding has no influence. None:
                all are real.
            image_index: int64 [B], which picture each sentence belongs to. None: sentence b to picture b.
            return_word_attention: also return how much attention each word receives.

        Returns:
            [B, Cv+Cl+8, H, W]; with return_word_attention also [B, N]: the mean over places and words of the
            attention weights that arrive at each word, summing to 1 over real words, 0 on padding.

        Raises:
            TypeError, ValueError: shapes, dtypes or devices do not fit, or a sentence has no real word.
        """
        self._check(visual, words, word_mask, image_index)
        height, width = visual.shape[2:]
        if word_mask is not None:
            words = words.masked_fill(~word_mask[..., None], 0)
        unit_visual = F.normalize(visual.flatten(2).mT, dim=2, eps=_LENGTH_FLOOR)  # [B', P, Cv]
        unit_words = F.normalize(words, dim=2, eps=_LENGTH_FLOOR)  # [B, N, Cl]
        spatial = spatial_coordinates(height, width, dtype=visual.dtype, device=visual.device)
        spatial = spatial.flatten(1).T  # [P, 8]

        places, sentence = self._project(unit_visual, unit_words, spatial)
        attended = cross_modal_attention(
            places.query,
            places.key,
            places.value,
            sentence.query,
            sentence.key,
            sentence.value,
            word_mask,
            image_index=image_index,
            backend=self.backend,
        )
        residual = torch.cat(
            [
                unit_visual if image_index is None else unit_visual.index_select(0, image_index),
                _mean_word(unit_words, word_mask)[:, None].expand(-1, height * width, -1),
                spatial.expand(len(words), -1, -1),
            ],
            dim=2,
        )
        fused = (self.output(attended) + residual).mT.unflatten(2, (height, width))
        if not return_word_attention:
            return fused
        received = received_word_attention(
            places.query, sentence.query, sentence.key, word_mask, image_index=image_index
        )
        return fused, received

    def extra_repr(self) -> str:
        return (
            f"visual_channels={self.visual_channels}, word_channels={self.word_channels}, "
            f"attention_channels={self.attention_channels}, backend={self.backend!r}"
        )

    def _project(
        self, unit_visual: Tensor, unit_words: Tensor, spatial: Tensor
    ) -> tuple[_Parts, _Parts]:
        """Query, key and value of the places [B', P, d] and of the words [B, N, d], one product for each."""
        weight = torch.cat([self.query.weight, self.key.weight, self.value.weight])  # [3d, C]
        of_visual, of_words, of_spatial = weight.split(
            [self.visual_channels, self.word_channels, COORDINATE_CHANNELS], dim=1
        )
        places = F.linear(unit_visual, of_visual) + F.linear(spatial, of_spatial)
        words = F.linear(unit_words, of_words)
        return _Parts(*places.chunk(3, dim=2)), _Parts(*words.chunk(3, dim=2))

    def _check(
        self, visual: Tensor, words: Tensor, word_mask: Tensor | None, image_index: Tensor | None
    ) -> None:
        for name, part in {"visual": visual, "words": words}.items():
            if not isinstance(part, Tensor):
                raise TypeError(f"{name} must be a tensor; got {type(part).__name__}.")
        if visual.ndim != 4 or visual.shape[1] != self.visual_channels or 0 in visual.shape[2:]:
            raise ValueError(
                f"visual must have shape [batch, {self.visual_channels}, height, width] with at least "
                f"one place; got {list(visual.shape)}."
            )
        if words.ndim != 3 or words.shape[2] != self.word_channels or words.shape[1] == 0:
            raise ValueError(
                f"words must have shape [batch, words, {self.word_channels}] with at least one word; "
                f"got {list(words.shape)}."
            )
        if visual.dtype != words.dtype:
            raise TypeError(f"words must have visual's dtype, {visual.dtype}; got {words.dtype}.")
        if image_index is None and len(visual) != len(words):
            raise ValueError(
                f"words must have visual's batch of {len(visual)}, unless image_index says which picture "
                f"each sentence belongs to; got {len(words)}."
            )
        if word_mask is None:
            return
        if not isinstance(word_mask, Tensor) or word_mask.dtype != torch.bool:
            found = word_mask.dtype if isinstance(word_mask, Tensor) else type(word_mask).__name__
            raise TypeError(f"word_mask must be a bool tensor; got {found}.")
        if word_mask.shape != words.shape[:2]:
            raise ValueError(
                f"word_mask must have shape [batch, words] = {list(words.shape[:2])}; "
                f"got {list(word_mask.shape)}."
            )


def _mean_word(unit_words: Tensor, word_mask: Tensor | None) -> Tensor:
    """[B, N, Cl] -> [B, Cl], the mean over real words; padded ones are zero already."""
    if word_mask is None:
        return unit_words.mean(1)
    return unit_words.sum(1) / word_mask.sum(1, keepdim=True).to(unit_words.dtype)
