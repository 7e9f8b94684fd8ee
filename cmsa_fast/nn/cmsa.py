"""Cross-modal self-attention (Ye et al., CVPR 2019, Eq. 1-4) as a module."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels.separable_attention.api import (
    unchecked_cross_modal_attention,
    unchecked_received_place_attention,
    unchecked_received_word_attention,
)
from ..kernels.separable_attention.numerics import word_weights
from ..kernels.separable_attention.projection import unchecked_level_tail
from .level import Level
from .tokens import (
    COORDINATE_CHANNELS,
    coordinate_rows,
    gather_images,
    mean_word,
    unit_vectors,
)
from .validation import check_convolution

# Squared length of a token: unit visual and word vectors, and six coordinates with a mean square of 1/3.
_TOKEN_SQUARE = 4.0


class _Projections(NamedTuple):
    query: Tensor
    key: Tensor
    value: Tensor


class _Tokens(NamedTuple):
    """The parts of the tokens f_pn."""

    visual: Tensor  # [B_images, P, Cv], of length 1
    words: Tensor  # [B, N, Cl], of length 1; zero on padding
    spatial: Tensor  # [P, 8]
    weight: Tensor  # [B, N], 1 / (number of real words) on real words, 0 on padding


class CMSA(Level):
    """Self-attention of every (place, word) token of an image and an expression to every other.

    Eq. 1: f_pn = [v_p / |v_p|, e_n / |e_n|, s_p]. Eq. 2-3: softmax attention of f_pn over all f_p'n', without a
    scale. Eq. 4: the mean over words of W_vhat vhat_pn + f_pn. The multimodal feature F (places x words x
    channels) is not materialised: a linear map of a concatenation is the sum of a place part and a word part.

    The parameters are the matrices of the paper, without bias, with columns in the order visual | word |
    coordinate. The paper calls the rows of the logits in Eq. 3 k and the columns q; the names here are the
    common ones.

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
            backend: See `cmsa_fast.kernels.cross_modal_attention`.

        Raises:
            ValueError: A number of channels is below 1, or backend is unknown.
        """
        channels = visual_channels + word_channels + COORDINATE_CHANNELS
        super().__init__(visual_channels, word_channels, channels, attention_channels, backend, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the weights so that logits have a standard deviation of about 1.

        Tokens have a squared length of about 4 at any width, so weights scaled by the fan-in would leave every
        logit near 0 and the softmax uniform. Values have unit variance, and the output has the squared length of
        the residual.
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
        """Fuse an expression into the visual features of its image.

        Args:
            visual: [B, Cv, H, W], or [B_images, Cv, H, W] with image_index.
            words: [B, N, Cl].
            word_mask: bool [B, N], True where a word is real; the values of padded words have no influence. None:
                all are real.
            image_index: int64 [B], the image of each expression. None: expression b belongs to image b.
            return_word_attention: Whether to also return the attention received by each word.

        Returns:
            [B, Cv+Cl+8, H, W]; with return_word_attention also [B, N]: the attention weights that each word
            receives, averaged over places and words; they sum to 1 over real words and are 0 on padding. Both are
            differentiable.

        Raises:
            TypeError, ValueError: Shapes, dtypes or devices do not fit, an expression has no real word, or query,
                key, value or output is not a plain nn.Linear: its weight is read without a call.
        """
        self.check_inputs(visual, words, word_mask, image_index)
        tokens = _tokens(visual, words, word_mask)
        places, expression = self._project(tokens)
        attended = unchecked_cross_modal_attention(
            *places, *expression, tokens.weight, image_index=image_index, backend=self.backend
        )
        fused = unchecked_level_tail(
            attended,
            self.output.weight,
            tokens.visual,
            mean_word(tokens.words, tokens.weight),
            tokens.spatial.T,
            image_index=image_index,
            backend=self.backend,
        ).unflatten(2, visual.shape[2:])
        if not return_word_attention:
            return fused
        received = unchecked_received_word_attention(
            places.query, expression.query, expression.key, tokens.weight, image_index
        )
        return fused, received

    def project(
        self,
        visual: Tensor,
        words: Tensor,
        word_mask: Tensor | None = None,
        *,
        weight: Tensor,
        bias: Tensor | None = None,
        image_index: Tensor | None = None,
    ) -> Tensor:
        """`forward` followed by a 1x1 convolution, computed exactly without materialising the result of `forward`.

        Equal to `F.conv2d(self(visual, words, word_mask, image_index=image_index), weight, bias)`. Both maps are
        linear, so the weight of the convolution is pre-multiplied with `output.weight`, and its residual is
        computed once per image (visual features), per expression (mean word) and per size (coordinates).

        Args:
            visual: As in `forward`, like words, word_mask and image_index.
            weight: [E, Cv+Cl+8, 1, 1], of the convolution.
            bias: [E], or None.

        Returns:
            [B, E, H, W].

        Raises:
            TypeError, ValueError: As in `forward`; or weight or bias does not fit.
        """
        self.check_inputs(visual, words, word_mask, image_index)
        check_convolution(weight, bias, self.out_channels, "output.weight", self.output.weight)
        return self.unchecked_project(visual, words, word_mask, weight, bias, image_index, False)[0]

    def unchecked_project(
        self,
        visual: Tensor,
        words: Tensor,
        word_mask: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        image_index: Tensor | None,
        return_word_attention: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """`project` without argument checks, and the word attention of `forward` or None."""
        tokens = _tokens(visual, words, word_mask)
        weight = weight.flatten(1)  # [E, C]
        visual_part, word_part, spatial_part = self._split(weight)
        images = len(visual)
        residual = torch.baddbmm(
            F.linear(spatial_part, tokens.spatial).expand(images, -1, -1),
            visual_part.expand(images, -1, -1),
            tokens.visual.mT,
        )  # [B_images, E, P]
        mean_part = F.linear(mean_word(tokens.words, tokens.weight), word_part, bias)
        residual = gather_images(residual, image_index) + mean_part[..., None]

        places, expression = self._project(tokens)
        attended = unchecked_cross_modal_attention(
            *places, *expression, tokens.weight, image_index=image_index, backend=self.backend
        )
        output = (weight @ self.output.weight).expand(len(words), -1, -1)  # [B, E, d]
        projected = torch.baddbmm(residual, output, attended.mT).unflatten(2, visual.shape[2:])
        if not return_word_attention:
            return projected, None
        return projected, unchecked_received_word_attention(
            places.query, expression.query, expression.key, tokens.weight, image_index
        )

    def place_attention(
        self,
        visual: Tensor,
        words: Tensor,
        word_mask: Tensor | None = None,
        *,
        image_index: Tensor | None = None,
    ) -> Tensor:
        """Compute the attention that each place receives, averaged over places and real words.

        Arguments and errors are those of `forward`.

        Returns:
            [B, H, W], which sums to 1, without a gradient.
        """
        self.check_inputs(visual, words, word_mask, image_index)
        tokens = _tokens(visual, words, word_mask)
        places, expression = self._project(tokens)
        return unchecked_received_place_attention(
            places.query, places.key, expression.query, tokens.weight, image_index
        ).unflatten(1, visual.shape[2:])

    def _project(self, tokens: _Tokens) -> tuple[_Projections, _Projections]:
        """Query, key and value of the places [B', P, d] and of the words [B, N, d]."""
        weight = torch.cat([self.query.weight, self.key.weight, self.value.weight])
        visual_part, word_part, spatial_part = self._split(weight)
        images = len(tokens.visual)
        places = torch.baddbmm(
            F.linear(tokens.spatial, spatial_part).expand(images, -1, -1),
            tokens.visual,
            visual_part.mT.expand(images, -1, -1),
        )
        words = F.linear(tokens.words, word_part)
        return _Projections(*places.chunk(3, dim=2)), _Projections(*words.chunk(3, dim=2))

    def _split(self, weight: Tensor) -> tuple[Tensor, ...]:
        """[rows, C] -> the columns of visual features, words and coordinates."""
        return weight.split([self.visual_channels, self.word_channels, COORDINATE_CHANNELS], dim=1)


def _tokens(visual: Tensor, words: Tensor, word_mask: Tensor | None) -> _Tokens:
    weight = word_weights(word_mask, words)
    unit_visual, unit_words = unit_vectors(visual, words, word_mask)
    return _Tokens(unit_visual, unit_words, coordinate_rows(visual), weight)
