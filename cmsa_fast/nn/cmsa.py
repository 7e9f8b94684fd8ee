"""Cross-modal self-attention (Ye et al., CVPR 2019, Eq. 1-4) as a module."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels import BACKENDS, cross_modal_attention, level_tail, received_word_attention
from ..kernels.validation import check_alike, check_floating
from .coordinates import COORDINATE_CHANNELS
from .folded_cmsa import FoldedLevel
from .tokens import coordinate_rows, mean_word, of_expressions, unit_places, unit_words
from .validation import check_inputs

# Squared length of a token [unit visual, unit word, coordinates]: 1 + 1 + six coordinates of mean square 1/3.
_TOKEN_SQUARE = 4.0


class _Parts(NamedTuple):
    query: Tensor
    key: Tensor
    value: Tensor


class _Tokens(NamedTuple):
    """The parts of the tokens f_pn."""

    visual: Tensor  # [B_images, P, Cv], of length 1
    words: Tensor  # [B, N, Cl], of length 1; zero on padding
    spatial: Tensor  # [P, 8]


class CMSA(nn.Module):
    """Every (place, word) token of an image and an expression attends to every other.

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
            backend: passed to `cmsa_fast.kernels.cross_modal_attention` and `level_tail`.

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
        """Fuse an expression into the visual features of its image.

        Args:
            visual: [B, Cv, H, W], or [B_images, Cv, H, W] with image_index.
            words: [B, N, Cl].
            word_mask: bool [B, N], True where a word is real; what stands in padding has no influence. None:
                all are real.
            image_index: int64 [B], which image each expression belongs to. None: expression b to image b.
            return_word_attention: also return how much attention each word receives.

        Returns:
            [B, Cv+Cl+8, H, W]; with return_word_attention also [B, N]: the mean over places and words of the
            attention weights that arrive at each word, summing to 1 over real words, 0 on padding.

        Raises:
            TypeError, ValueError: shapes, dtypes or devices do not fit, or an expression has no real word.
        """
        tokens = self._tokens(visual, words, word_mask, image_index)
        places, expression = self._project(tokens)
        attended = self._attend(places, expression, word_mask, image_index)
        fused = level_tail(
            attended,
            self.output.weight,
            tokens.visual,
            mean_word(tokens.words, word_mask),
            tokens.spatial.T,
            image_index=image_index,
            backend=self.backend,
        ).unflatten(2, visual.shape[2:])
        if not return_word_attention:
            return fused
        received = received_word_attention(
            places.query, expression.query, expression.key, word_mask, image_index=image_index
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
        """`F.conv2d(self(visual, words, word_mask, image_index=image_index), weight, bias)`, exactly and faster.

        The result of Eq. 4, Cv+Cl+8 channels at every place, is never built. The convolution is linear, so its
        weight meets `output.weight` before the places do, unit visual features once per image, the mean word
        once per expression and the coordinates once per size.

        Args:
            visual: as in `forward`, like words, word_mask and image_index.
            words: [B, N, Cl].
            word_mask: bool [B, N] or None.
            weight: [E, Cv+Cl+8, 1, 1], of a 1x1 convolution.
            bias: [E], or None.
            image_index: int64 [B] or None.

        Returns:
            [B, E, H, W].

        Raises:
            TypeError, ValueError: as `forward`; weight or bias does not fit.
        """
        tokens = self._tokens(visual, words, word_mask, image_index)
        self._check_convolution(weight, bias)
        weight = weight.flatten(1)  # [E, C]
        of_visual, of_words, of_spatial = self._split(weight)
        images = len(visual)
        residual = torch.baddbmm(
            F.linear(of_spatial, tokens.spatial).expand(images, -1, -1),
            of_visual.expand(images, -1, -1),
            tokens.visual.mT,
        )  # [B_images, E, P]
        of_mean = F.linear(mean_word(tokens.words, word_mask), of_words, bias)
        residual = of_expressions(residual, image_index) + of_mean[..., None]

        attended = self._attend(*self._project(tokens), word_mask, image_index)
        of_attended = (weight @ self.output.weight).expand(len(words), -1, -1)  # [B, E, d]
        projected = torch.baddbmm(residual, of_attended, attended.mT)
        return projected.unflatten(2, visual.shape[2:])

    def fold(self, weight: Tensor, bias: Tensor | None = None) -> FoldedLevel:
        """`project` for inference: what it forms of the weights at every call is formed once, here.

        Args:
            weight: as in `project`, like bias.
            bias: [E], or None.

        Returns:
            The weights as they are now; it refuses to run once they have changed. See `FoldedLevel`.

        Raises:
            TypeError, ValueError: weight or bias does not fit.
        """
        self._check_convolution(weight, bias)
        return FoldedLevel(self, weight, bias)

    def extra_repr(self) -> str:
        return (
            f"visual_channels={self.visual_channels}, word_channels={self.word_channels}, "
            f"attention_channels={self.attention_channels}, backend={self.backend!r}"
        )

    def _tokens(
        self, visual: Tensor, words: Tensor, word_mask: Tensor | None, image_index: Tensor | None
    ) -> _Tokens:
        check_inputs(
            visual,
            words,
            word_mask,
            image_index,
            visual_channels=self.visual_channels,
            word_channels=self.word_channels,
        )
        return _Tokens(unit_places(visual), unit_words(words, word_mask), coordinate_rows(visual))

    def _project(self, tokens: _Tokens) -> tuple[_Parts, _Parts]:
        """Query, key and value of the places [B', P, d] and of the words [B, N, d]."""
        weights = [self._split(part.weight) for part in (self.query, self.key, self.value)]
        of_visual, of_words, of_spatial = zip(*weights, strict=True)
        images = len(tokens.visual)
        # The columns that meet words stay where they are: a few words do not pay for a copy of them.
        places = torch.baddbmm(
            F.linear(tokens.spatial, torch.cat(of_spatial)).expand(images, -1, -1),
            tokens.visual,
            torch.cat(of_visual).mT.expand(images, -1, -1),
        )
        words = (F.linear(tokens.words, part) for part in of_words)
        return _Parts(*places.chunk(3, dim=2)), _Parts(*words)

    def _attend(
        self,
        places: _Parts,
        words: _Parts,
        word_mask: Tensor | None,
        image_index: Tensor | None,
    ) -> Tensor:
        """[B, P, d]."""
        return cross_modal_attention(
            *places, *words, word_mask, image_index=image_index, backend=self.backend
        )

    def _split(self, weight: Tensor) -> tuple[Tensor, ...]:
        """[rows, C] -> the columns that meet visual features, words and coordinates."""
        return weight.split([self.visual_channels, self.word_channels, COORDINATE_CHANNELS], dim=1)

    def _check_convolution(self, weight: Tensor, bias: Tensor | None) -> None:
        check_floating("weight", weight)
        check_alike("weight", weight, "output.weight", self.output.weight)
        if weight.ndim != 4 or weight.shape[1:] != (self.out_channels, 1, 1):
            raise ValueError(
                f"weight must have shape [channels, {self.out_channels}, 1, 1], a 1x1 convolution's; "
                f"got {list(weight.shape)}."
            )
        if bias is None:
            return
        check_floating("bias", bias)
        check_alike("bias", bias, "weight", weight)
        if bias.shape != weight.shape[:1]:
            raise ValueError(
                f"bias must have shape [channels] = [{len(weight)}]; got {list(bias.shape)}."
            )
