"""CMSA and the 1x1 convolution behind it for inference, with all that depends on weights alone formed once."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels import cross_modal_attention, received_word_attention
from .coordinates import COORDINATE_CHANNELS
from .tokens import coordinate_rows, mean_word, of_expressions, unit_places, unit_words
from .validation import check_dtype_and_device, check_visual, check_words

if TYPE_CHECKING:
    from .cmsa import CMSA

# Triton reads a row in wide pieces only where its length is a multiple of this.
_MULTIPLE = 16


class FoldedPlaces(NamedTuple):
    """What a `FoldedLevel` keeps of a batch of images between expressions.

    Attributes:
        query: [B_images, P, d].
        key: [B_images, P, d].
        value: [B_images, P, E'], of the convolution's channels; E' is E, rounded up to a multiple of 16.
        residual: [B_images, P, E], the tokens' places behind the convolution.
        size: (height, width) of the visual features, P = height * width.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    residual: Tensor
    size: tuple[int, int]


class FoldedLevel:
    """`CMSA.project` for inference; `CMSA.fold` makes one.

    Behind the attention everything is linear: the convolution K of Eq. 4 is K W_vhat vhat + K f. So the values are
    made by K W_vhat W_v, one matrix, and the attention's result is already the convolution's. What depends on the
    image alone, `encode` forms once for all its expressions.

    It holds the weights as they were when it was made. Calling it after an optimizer's step, `load_state_dict`,
    `to` or another change of the weights that autograd can see is refused; a change through `.data` in place
    cannot be seen, and after one the caller must fold again. It has no gradient, and refuses to run where one is
    recorded.
    """

    def __init__(self, attention: CMSA, weight: Tensor, bias: Tensor | None) -> None:
        """Arguments as in `CMSA.fold`, which checks them."""
        self._attention = attention
        self._convolution = (weight,) if bias is None else (weight, bias)
        self._width = attention.attention_channels
        self._channels = len(weight)
        with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
            matrix = weight.flatten(1)
            value = _value_weight(matrix, attention)
            stacked = torch.cat([attention.query.weight, attention.key.weight, value, matrix])
            channels = [attention.visual_channels, attention.word_channels, COORDINATE_CHANNELS]
            self._of_visual, of_words, self._of_spatial = (
                part.contiguous() for part in stacked.split(channels, dim=1)
            )
            self._parts = [self._width, self._width, len(value)]
            self._of_words, self._of_mean = of_words.split([sum(self._parts), self._channels])
            self._bias = None if bias is None else bias.clone()
        self._weights = self._find_weights()  # kept, so that no other tensor gets their ids
        self._versions = [_version(part) for part in self._weights]

    def __call__(
        self,
        visual: Tensor,
        words: Tensor,
        word_mask: Tensor | None = None,
        *,
        image_index: Tensor | None = None,
    ) -> Tensor:
        """`encode` and `project` in a row: `CMSA.project` less its weight and bias.

        Raises:
            TypeError, ValueError: as `CMSA.project`.
            RuntimeError: a gradient is recorded, or the weights have changed.
        """
        return self.project(self.encode(visual), words, word_mask, image_index=image_index)

    def encode(self, visual: Tensor) -> FoldedPlaces:
        """
        Args:
            visual: [B_images, Cv, H, W].

        Returns:
            What `project` needs of the images.

        Raises:
            TypeError, ValueError: visual's shape, dtype or device does not fit.
            RuntimeError: a gradient is recorded, or the weights have changed.
        """
        self.check_use()
        check_visual(visual, self._attention.visual_channels)
        check_dtype_and_device("visual", visual, "the folded weights", self._of_visual)
        images = len(visual)
        places = torch.baddbmm(
            F.linear(coordinate_rows(visual), self._of_spatial).expand(images, -1, -1),
            unit_places(visual),
            self._of_visual.mT.expand(images, -1, -1),
        )
        query, key, value, residual = places.split([*self._parts, self._channels], dim=2)
        return FoldedPlaces(query, key, value, residual, (visual.shape[2], visual.shape[3]))

    def project(
        self,
        places: FoldedPlaces,
        words: Tensor,
        word_mask: Tensor | None = None,
        *,
        image_index: Tensor | None = None,
    ) -> Tensor:
        """What `CMSA.project` returns for the images that were encoded.

        Args:
            places: from `encode`.
            words: [B, N, Cl].
            word_mask: bool [B, N], True where a word is real. None: all are.
            image_index: int64 [B], which image each expression belongs to. None: expression b to image b.

        Returns:
            [B, E, H, W], channels innermost in memory.

        Raises:
            TypeError, ValueError: places are none of `encode`'s; the rest as `CMSA.project`.
            RuntimeError: a gradient is recorded, or the weights have changed.
        """
        unit = self._unit_words(places, words, word_mask, image_index)
        of_words = F.linear(unit, self._of_words).to(places.query.dtype)
        query, key, value = of_words.split(self._parts, dim=2)
        attended = cross_modal_attention(
            places.query,
            places.key,
            places.value,
            query,
            key,
            value,
            word_mask,
            image_index=image_index,
            backend=self._attention.backend,
        )[..., : self._channels]
        of_mean = F.linear(mean_word(unit, word_mask), self._of_mean, self._bias)
        projected = attended + of_expressions(places.residual, image_index)
        projected += of_mean[:, None]
        return projected.mT.unflatten(2, places.size)

    def word_attention(
        self,
        places: FoldedPlaces,
        words: Tensor,
        word_mask: Tensor | None = None,
        *,
        image_index: Tensor | None = None,
    ) -> Tensor:
        """How much attention each word receives, [B, N]: the second result of `CMSA.forward`.

        Arguments and errors as in `project`.
        """
        unit = self._unit_words(places, words, word_mask, image_index)
        query, key = (
            F.linear(unit, part).to(places.query.dtype)
            for part in self._of_words[: 2 * self._width].chunk(2)
        )
        return received_word_attention(places.query, query, key, word_mask, image_index=image_index)

    def check_use(self) -> None:
        """
        Raises:
            RuntimeError: a gradient is recorded, or the weights have changed.
        """
        if torch.is_grad_enabled():
            raise RuntimeError(
                "A folded level has no gradient for the weights folded into it: call it under torch.no_grad() "
                "or torch.inference_mode(), or call CMSA.project."
            )
        if self._have_weights_changed():
            raise RuntimeError(
                "The weights of CMSA or of the convolution behind it have changed since they were folded: "
                "fold them again."
            )

    @torch.compiler.disable  # ids and versions are no constants of a graph
    def _have_weights_changed(self) -> bool:
        return [_version(part) for part in self._find_weights()] != self._versions

    def _find_weights(self) -> list[Tensor]:
        return [*self._attention.parameters(), *self._convolution]

    def _unit_words(
        self,
        places: FoldedPlaces,
        words: Tensor,
        word_mask: Tensor | None,
        image_index: Tensor | None,
    ) -> Tensor:
        self.check_use()
        if not isinstance(places, FoldedPlaces):
            raise TypeError(
                f"places must come from encode, a FoldedPlaces; got {type(places).__name__}."
            )
        check_words(
            words,
            word_mask,
            image_index,
            word_channels=self._attention.word_channels,
            images=len(places.query),
            like_name="the folded weights",
            like=self._of_words,
        )
        return unit_words(words, word_mask)


def _value_weight(matrix: Tensor, attention: CMSA) -> Tensor:
    """[E', C]: the convolution [E, C] of the output of the values, below it rows of zeros; rounded once."""
    exact = torch.float32 if matrix.dtype.itemsize == 2 else matrix.dtype
    output, value = attention.output.weight.to(exact), attention.value.weight.to(exact)
    product = (matrix.to(exact) @ output @ value).to(matrix.dtype)
    return F.pad(product, (0, 0, 0, -len(product) % _MULTIPLE))


def _version(weight: Tensor) -> tuple[int, int, int]:
    """Something else after any change but one in place through `.data`."""
    # Tensors made in inference mode count no versions.
    return id(weight), weight.data_ptr(), 0 if weight.is_inference() else weight._version
