"""Cross-modal self-attention as the published CMSA code does it, which differs from the paper's Eq. 1-4.

A token is Eq. 1's f_pn = [v_p / |v_p|, e_n / |e_n|, s_p]. Its query, key and value are rectified linear maps with
bias, keys and values are max-pooled 2x2x2 over words, rows and columns, the softmax runs over all pooled tokens
without a scale, and the attended value returns through another rectified map, plus the token itself; the mean
over true words is the result.

The multimodal feature F (places x words x channels) is never built. A linear map of a token is A_p + B_n, so at
a level without a squeeze the maximum of ReLU(A_p + B_n) over a window is exactly ReLU(max A_p + max B_n), and
keys and values exist only pooled. Squeezed levels build ReLU(A_p + B_n), which is narrow.

Padded words are removed before everything, as in the published code: windows pair the true words in order.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels import BACKENDS, joint_attention, joint_attention_tail
from .coordinates import COORDINATE_CHANNELS, spatial_coordinates
from .pooled_tokens import pack_words, pool_places, pool_words, pooled_word_mask
from .validation import check_inputs

# The floor under a vector's length (the published code's 1e-12 under its square): zero stays zero.
_LENGTH_FLOOR = 1e-6


class _Tokens(NamedTuple):
    """The parts of the tokens f_pn of expressions, words packed to the front."""

    visual: Tensor  # [B_images, P, Cv], of length 1
    words: Tensor  # [B, N, Cl], of length 1; zero on padding
    spatial: Tensor  # [P, 8]
    word_mask: Tensor | None  # bool [B, N]
    image_index: Tensor | None  # int64 [B]
    height: int
    width: int

    def linear(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """A_p [B_images, P, out] and B_n [B, N, out] of weight f_pn + bias = A_p + B_n."""
        of_visual, of_words, of_spatial = weight.split(
            [self.visual.shape[2], self.words.shape[2], COORDINATE_CHANNELS], dim=1
        )
        places = F.linear(self.visual, of_visual) + F.linear(self.spatial, of_spatial)
        return places, F.linear(self.words, of_words, bias)

    def of_expressions(self, places: Tensor) -> Tensor:
        """[B_images, ...] -> [B, ...]."""
        if self.image_index is None:
            return places
        # Which of the two has a gradient without atomics depends on the device.
        if places.is_cuda:
            return places[self.image_index]
        return places.index_select(0, self.image_index)

    def mean(self, features: Tensor) -> Tensor:
        """[B, ..., N, C] -> [B, ..., C], the mean over true words; features must be finite on padding."""
        if self.word_mask is None:
            return features.mean(-2)
        weight = self.word_mask.to(features.dtype)
        weight = weight / weight.sum(1, keepdim=True)
        return torch.einsum("b...nc,bn->b...c", features, weight)


class _PooledAttention(nn.Module):
    """What both kinds of level share: arguments, parameters of the attention, and the attention itself."""

    def __init__(
        self,
        visual_channels: int,
        word_channels: int,
        token_channels: int,
        attention_channels: int,
        backend: str,
    ) -> None:
        super().__init__()
        sizes = {
            "visual_channels": visual_channels,
            "word_channels": word_channels,
            "squeezed_channels": token_channels,
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
        self.out_channels = token_channels
        self.backend = backend
        self.query = nn.Linear(token_channels, attention_channels)
        self.key = nn.Linear(token_channels, attention_channels)
        self.value = nn.Linear(token_channels, attention_channels)
        self.output = nn.Linear(attention_channels, token_channels)

    def reset_parameters(self) -> None:
        """Xavier-uniform weights and zero biases, as the published code starts."""
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

        Args:
            visual: [B, Cv, H, W], or [B_images, Cv, H, W] with image_index.
            words: [B, N, Cl].
            word_mask: bool [B, N], True where a word is real; padded words are removed, and what stands in them
                has no influence. None: all are real.
            image_index: int64 [B], which image each expression belongs to. None: expression b to image b.

        Returns:
            [B, out_channels, H, W].

        Raises:
            TypeError, ValueError: shapes, dtypes or devices do not fit, or an expression has no real word.
        """
        check_inputs(
            visual,
            words,
            word_mask,
            image_index,
            visual_channels=self.visual_channels,
            word_channels=self.word_channels,
        )
        height, width = visual.shape[2:]
        words, word_mask = pack_words(words, word_mask)
        spatial = spatial_coordinates(height, width, dtype=visual.dtype, device=visual.device)
        tokens = _Tokens(
            F.normalize(visual.flatten(2).mT, dim=2, eps=_LENGTH_FLOOR),
            F.normalize(words, dim=2, eps=_LENGTH_FLOOR),
            spatial.flatten(1).T,
            word_mask,
            image_index,
            height,
            width,
        )
        return self._fuse(tokens).mT.unflatten(2, (height, width))

    def extra_repr(self) -> str:
        return (
            f"visual_channels={self.visual_channels}, word_channels={self.word_channels}, "
            f"attention_channels={self.attention_channels}, backend={self.backend!r}"
        )

    def _fuse(self, tokens: _Tokens) -> Tensor:
        """[B, P, out_channels]."""
        raise NotImplementedError

    def _weights(self) -> tuple[Tensor, Tensor]:
        """Those of query, key and value under each other, so that one product does for the three."""
        parts = (self.query, self.key, self.value)
        return torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])

    def _attend(self, tokens: _Tokens, query: Tensor, pooled: Tensor) -> Tensor:
        """The mean over true words of what each token attends to, brought back to the tokens' width.

        Args:
            tokens: whose mask tells the true words.
            query: [B, P, N, d].
            pooled: [B, P', N', 2d], keys and values.

        Returns:
            [B, P, out_channels].
        """
        key, value = pooled.flatten(1, 2).chunk(2, dim=2)
        windows = pooled_word_mask(tokens.word_mask)
        key_mask = None
        if windows is not None:
            key_mask = windows[:, None].expand(-1, pooled.shape[1], -1).flatten(1)
        attended = joint_attention(query.flatten(1, 2), key, value, key_mask, backend=self.backend)
        return joint_attention_tail(
            attended.unflatten(1, query.shape[1:3]),
            self.output.weight,
            self.output.bias,
            tokens.word_mask,
            relu=True,
            backend=self.backend,
        )


class PooledCMSA(_PooledAttention):
    """The published code's level without a squeeze (its Res5): query, key and value straight from the tokens.

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
            visual_channels: Cv (1000 in the published code, which first brings Res5 from 2048 to it).
            word_channels: Cl (1000).
            attention_channels: d, the width of query, key and value (512).
            backend: passed to `cmsa_fast.kernels.joint_attention`.

        Raises:
            ValueError: a number of channels is below 1, or backend is unknown.
        """
        channels = visual_channels + word_channels + COORDINATE_CHANNELS
        super().__init__(visual_channels, word_channels, channels, attention_channels, backend)
        self.reset_parameters()

    def _fuse(self, tokens: _Tokens) -> Tensor:
        width = self.attention_channels
        places, words = tokens.linear(*self._weights())
        query = tokens.of_expressions(places[..., :width])[:, :, None] + words[:, None, :, :width]
        # Pooling the sum of parts is summing the pooled parts, and ReLU keeps the order.
        places = tokens.of_expressions(
            pool_places(places[..., width:], tokens.height, tokens.width)
        )
        words = pool_words(words[..., width:], tokens.word_mask)
        pooled = (places[:, :, None] + words[:, None]).relu_()
        return self._attend(tokens, query.relu_(), pooled) + self._mean_token(tokens)

    def _mean_token(self, tokens: _Tokens) -> Tensor:
        """[B, P, C], the mean of f_pn over true words: only its word part depends on n."""
        words = tokens.mean(tokens.words)
        places = len(tokens.spatial)
        return torch.cat(
            [
                tokens.of_expressions(tokens.visual),
                words[:, None].expand(-1, places, -1),
                tokens.spatial.expand(len(words), -1, -1),
            ],
            dim=2,
        )


class SqueezedCMSA(_PooledAttention):
    """The published code's level behind a squeeze (its Res4 and Res3): g_pn = ReLU(W f_pn + b) are the tokens.

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
            backend: passed to `cmsa_fast.kernels.joint_attention`.

        Raises:
            ValueError: a number of channels is below 1, or backend is unknown.
        """
        super().__init__(
            visual_channels, word_channels, squeezed_channels, attention_channels, backend
        )
        self.squeeze = nn.Linear(
            visual_channels + word_channels + COORDINATE_CHANNELS, squeezed_channels
        )
        self.reset_parameters()

    def _fuse(self, tokens: _Tokens) -> Tensor:
        width = self.attention_channels
        places, words = tokens.linear(self.squeeze.weight, self.squeeze.bias)
        squeezed = tokens.of_expressions(places)[:, :, None] + words[:, None]  # [B, P, N, S]
        squeezed = squeezed.relu_()
        projected = F.linear(squeezed, *self._weights())
        pooled = pool_places(projected[..., width:], tokens.height, tokens.width)
        pooled = pool_words(pooled, tokens.word_mask).relu()
        return self._attend(tokens, projected[..., :width].relu(), pooled) + tokens.mean(squeezed)
