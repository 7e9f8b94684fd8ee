"""Cross-modal self-attention of the published CMSA code, which differs from Eq. 1-4 of the paper.

A token is f_pn = [v_p / |v_p|, e_n / |e_n|, s_p] (Eq. 1). Query, key and value are rectified linear maps with
bias; keys and values are max-pooled 2x2x2 over words, rows and columns; the softmax runs over all pooled tokens
without a scale; another rectified map of the attended value is added to the token; the result is the mean over
real words.

The multimodal feature F (places x words x channels) is not materialised. A linear map of a token is A_p + B_n, so
at a level without a squeeze the maximum of ReLU(A_p + B_n) over a window is exactly ReLU(max A_p + max B_n), and
only pooled keys and values are computed. Squeezed levels compute ReLU(A_p + B_n), which has few channels.

Pooling follows "same" of TensorFlow: the last window of an odd length holds one element. As in the published code,
padded words are removed first, so windows pair the real words in order; `pack_words` moves them to the front.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels.joint_attention.api import unchecked_joint_attention, unchecked_joint_attention_tail
from ..kernels.separable_attention.numerics import word_weights
from .level import Level
from .tokens import (
    COORDINATE_CHANNELS,
    coordinate_rows,
    gather_images,
    pack_words,
    unit_places,
    unit_words,
)


class _Tokens(NamedTuple):
    """The parts of the tokens f_pn, with words packed to the front."""

    visual: Tensor  # [B_images, P, Cv], of length 1
    words: Tensor  # [B, N, Cl], of length 1; zero on padding
    spatial: Tensor  # [P, 8]
    word_mask: Tensor | None  # bool [B, N]
    image_index: Tensor | None  # int64 [B]
    height: int
    width: int

    def linear(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """A_p [B_images, P, out] and B_n [B, N, out] of weight f_pn + bias = A_p + B_n."""
        visual_part, word_part, spatial_part = weight.split(
            [self.visual.shape[2], self.words.shape[2], COORDINATE_CHANNELS], dim=1
        )
        places = F.linear(self.visual, visual_part) + F.linear(self.spatial, spatial_part)
        return places, F.linear(self.words, word_part, bias)

    def gather(self, places: Tensor) -> Tensor:
        """[B_images, ...] -> [B, ...]."""
        return gather_images(places, self.image_index)

    def mean(self, features: Tensor) -> Tensor:
        """[B, ..., N, C] -> [B, ..., C], the mean over real words; features must be finite on padding."""
        if self.word_mask is None:
            return features.mean(-2)
        weight = word_weights(self.word_mask, features).to(features.dtype)
        return torch.einsum("b...nc,bn->b...c", features, weight)


class ReleasedLevel(Level, ABC):
    """Base class of `PooledCMSA` and `SqueezedCMSA`: initial weights, arguments and the attention."""

    def reset_parameters(self) -> None:
        """Xavier-uniform weights and zero biases, as in the published code."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        visual: Tensor,
        words: Tensor,
        word_mask: Tensor | None = None,
        *,
        image_index: Tensor | None = None,
    ) -> Tensor:
        """Fuse an expression into the visual features of its image.

        Arguments and errors are those of `CMSA.forward`; padded words are removed.

        Returns:
            [B, out_channels, H, W].
        """
        self.check_inputs(visual, words, word_mask, image_index)
        return self.unchecked_forward(visual, words, word_mask, image_index)

    def unchecked_forward(
        self, visual: Tensor, words: Tensor, word_mask: Tensor | None, image_index: Tensor | None
    ) -> Tensor:
        """`forward` without argument checks."""
        height, width = visual.shape[2:]
        words, word_mask = pack_words(words, word_mask)
        tokens = _Tokens(
            unit_places(visual),
            unit_words(words),
            coordinate_rows(visual),
            word_mask,
            image_index,
            height,
            width,
        )
        return self._fuse(tokens).mT.unflatten(2, (height, width))

    @abstractmethod
    def _fuse(self, tokens: _Tokens) -> Tensor:
        """[B, P, out_channels]."""

    def _weights(self) -> tuple[Tensor, Tensor]:
        """Weights and biases of query, key and value, concatenated for a single product."""
        parts = (self.query, self.key, self.value)
        return torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])

    def _attend(self, tokens: _Tokens, query: Tensor, pooled: Tensor) -> Tensor:
        """[B, P, N, d] queries and pooled keys and values [B, P', N', 2d] -> [B, P, out_channels]."""
        key, value = pooled.flatten(1, 2).chunk(2, dim=2)
        key_mask = None
        if tokens.word_mask is not None:
            # A window of packed words has a real one if its first is real.
            key_mask = tokens.word_mask[:, ::2].repeat(1, pooled.shape[1])
        attended = unchecked_joint_attention(query.flatten(1, 2), key, value, key_mask, backend=self.backend)
        return unchecked_joint_attention_tail(
            attended.unflatten(1, query.shape[1:3]),
            self.output.weight,
            self.output.bias,
            tokens.word_mask,
            relu=True,
            backend=self.backend,
        )


class PooledCMSA(ReleasedLevel):
    """Level of the published code without a squeeze (Res5): query, key and value are maps of the tokens.

    Attributes:
        query, key, value: d x (Cv+Cl+8) and d; columns ordered visual | word | coordinate.
        output: (Cv+Cl+8) x d and Cv+Cl+8.
        out_channels: Cv+Cl+8.
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
            visual_channels: Cv (1000 in the published code, which first reduces Res5 from 2048 channels).
            word_channels: Cl (1000).
            attention_channels: d, the width of query, key and value (512).
            backend: See `cmsa_fast.kernels.joint_attention`.

        Raises:
            ValueError: A number of channels is below 1, or backend is unknown.
        """
        channels = visual_channels + word_channels + COORDINATE_CHANNELS
        super().__init__(visual_channels, word_channels, channels, attention_channels, backend)
        self.reset_parameters()

    def _fuse(self, tokens: _Tokens) -> Tensor:
        width = self.attention_channels
        places, words = tokens.linear(*self._weights())
        query = tokens.gather(places[..., :width])[:, :, None] + words[:, None, :, :width]
        # The maximum of a sum of parts is the sum of their maxima, and ReLU is monotone.
        places = tokens.gather(_pool_places(places[..., width:], tokens.height, tokens.width))
        words = _pool_words(words[..., width:], tokens.word_mask)
        pooled = (places[:, :, None] + words[:, None]).relu_()
        return self._attend(tokens, query.relu_(), pooled) + self._mean_token(tokens)

    def _mean_token(self, tokens: _Tokens) -> Tensor:
        """[B, P, C], the mean of f_pn over real words; only its word part depends on n."""
        words = tokens.mean(tokens.words)
        places = len(tokens.spatial)
        return torch.cat(
            [
                tokens.gather(tokens.visual),
                words[:, None].expand(-1, places, -1),
                tokens.spatial.expand(len(words), -1, -1),
            ],
            dim=2,
        )


class SqueezedCMSA(ReleasedLevel):
    """Level of the published code with a squeeze (Res4 and Res3): the tokens are g_pn = ReLU(W f_pn + b).

    Attributes:
        squeeze: S x (Cv+Cl+8) and S; columns ordered visual | word | coordinate.
        query, key, value: d x S and d.
        output: S x d and S.
        out_channels: S.
    """

    def __init__(
        self,
        visual_channels: int,
        word_channels: int,
        squeezed_channels: int,
        attention_channels: int,
        *,
        backend: str = "auto",
    ) -> None:
        """
        Args:
            visual_channels: Cv (1024 at Res4, 512 at Res3 in the published code).
            word_channels: Cl (1000).
            squeezed_channels: S (256 at Res4, 128 at Res3).
            attention_channels: d, the width of query, key and value (128 at Res4, 64 at Res3).
            backend: See `cmsa_fast.kernels.joint_attention`.

        Raises:
            ValueError: A number of channels is below 1, or backend is unknown.
        """
        super().__init__(visual_channels, word_channels, squeezed_channels, attention_channels, backend)
        self.squeeze = nn.Linear(visual_channels + word_channels + COORDINATE_CHANNELS, squeezed_channels)
        self.reset_parameters()

    def _fuse(self, tokens: _Tokens) -> Tensor:
        width = self.attention_channels
        places, words = tokens.linear(self.squeeze.weight, self.squeeze.bias)
        squeezed = tokens.gather(places)[:, :, None] + words[:, None]  # [B, P, N, S]
        squeezed = squeezed.relu_()
        projected = F.linear(squeezed, *self._weights())
        pooled = _pool_places(projected[..., width:], tokens.height, tokens.width)
        pooled = _pool_words(pooled, tokens.word_mask).relu()
        return self._attend(tokens, projected[..., :width].relu(), pooled) + tokens.mean(squeezed)


def _pool_places(features: Tensor, height: int, width: int) -> Tensor:
    """[B, H*W, ...] -> [B, ceil(H/2)*ceil(W/2), ...], the maximum of each 2x2 window."""
    grid = features.unflatten(1, (height, width))
    return _pairwise_maximum(_pairwise_maximum(grid, 2), 1).flatten(1, 2)


def _pool_words(features: Tensor, word_mask: Tensor | None) -> Tensor:
    """[B, ..., N, C] of packed words -> [B, ..., ceil(N/2), C]; -inf where a window has no real word."""
    if word_mask is not None:
        batch, words = word_mask.shape
        padded = ~word_mask.view(batch, *[1] * (features.ndim - 3), words, 1)
        features = features.masked_fill(padded, -torch.inf)
    # The last word is its own successor: without a branch on an odd number of words, one graph serves all numbers.
    successors = torch.cat([features[..., 1:, :], features[..., -1:, :]], -2)
    return torch.maximum(features[..., ::2, :], successors[..., ::2, :])


def _pairwise_maximum(features: Tensor, dim: int) -> Tensor:
    """Maximum of each two neighbours; unlike that of max_pool3d, its gradient needs no atomics on CUDA."""
    size = features.shape[dim]
    grouped = features.narrow(dim, 0, size - size % 2).unflatten(dim, (size // 2, 2))
    largest = torch.maximum(grouped.select(dim + 1, 0), grouped.select(dim + 1, 1))
    return largest if size % 2 == 0 else torch.cat([largest, features.narrow(dim, size - 1, 1)], dim)
