"""CMSA followed by a 1x1 convolution for inference, with everything that depends only on weights precomputed."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels.backends import without_autocast
from ..kernels.separable_attention.api import (
    place_exponentials,
    unchecked_cross_modal_attention,
    unchecked_received_place_attention,
    unchecked_received_word_attention,
)
from ..kernels.separable_attention.numerics import word_weights
from ..kernels.validation import check_images
from .cmsa import CMSA
from .tokens import (
    COORDINATE_CHANNELS,
    coordinate_rows,
    gather_images,
    mean_word,
    unit_places,
    unit_words,
)
from .validation import check_convolution, check_dtype_and_device, check_visual, check_words

# Triton vectorises loads of a row only if its length is a multiple of this.
_MULTIPLE = 16


class FoldedPlaces(NamedTuple):
    """Everything that a `FoldedLevel` computes from the images alone.

    Attributes:
        query: [B_images, P, d].
        key: [B_images, P, d].
        value: [B_images, P, E'], already convolved; E' is E, rounded up to a multiple of 16.
        residual: [B_images, P, E], the place part of the tokens, already convolved.
        size: (height, width) of the visual features, P = height * width.
        exponentials: What `FoldedLevel.unchecked_prepare` adds for further expressions.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    residual: Tensor
    size: tuple[int, int]
    exponentials: Tensor | None = None  # [B_images, P, P]


class FoldedLevel:
    """`CMSA.project` for inference.

    Everything after the attention is linear: the convolution K of Eq. 4 is K W_vhat vhat + K f. So values are
    computed with K W_vhat W_v, one matrix, and the attention returns convolved features. `encode` computes what
    depends on the image alone, once for all its expressions.

    The folded weights are a copy. Calls raise a RuntimeError after an optimizer step, `load_state_dict`, `to` or
    any other change of the weights that autograd tracks; in-place changes through `.data` cannot be detected, and
    the caller must fold again after one. Calls also raise a RuntimeError while gradients are recorded.
    """

    def __init__(self, attention: CMSA, weight: Tensor, bias: Tensor | None = None) -> None:
        """
        Args:
            attention: The level.
            weight: [E, Cv+Cl+8, 1, 1], of the 1x1 convolution that follows it.
            bias: [E], or None.

        Raises:
            TypeError, ValueError: weight or bias does not fit, or a linear map of the level is no plain nn.Linear.
        """
        attention.check_linear_maps()
        check_convolution(weight, bias, attention.out_channels, "output.weight", attention.output.weight)
        self._attention = attention
        self._convolution = (weight,) if bias is None else (weight, bias)
        self._width = attention.attention_channels
        self._channels = len(weight)
        with torch.no_grad(), without_autocast(weight.device):
            matrix = weight.flatten(1)
            value = _value_weight(matrix, attention)
            stacked = torch.cat([attention.query.weight, attention.key.weight, value, matrix])
            channels = [attention.visual_channels, attention.word_channels, COORDINATE_CHANNELS]
            self._visual_part, word_part, self._spatial_part = (
                part.contiguous() for part in stacked.split(channels, dim=1)
            )
            self._parts = [self._width, self._width, len(value)]
            self._word_part, self._mean_part = word_part.split([sum(self._parts), self._channels])
            self._bias = None if bias is None else bias.clone()
        self._weights = self._find_weights()  # kept, so that no other tensor gets one of their addresses
        self._versions = _versions(self._weights)

    def __call__(
        self,
        visual: Tensor,
        words: Tensor,
        word_mask: Tensor | None = None,
        *,
        image_index: Tensor | None = None,
    ) -> Tensor:
        """`encode` followed by `project`: the result of `CMSA.project`, [B, E, H, W]."""
        return self.project(self.encode(visual), words, word_mask, image_index=image_index)

    def encode(self, visual: Tensor) -> FoldedPlaces:
        """Compute what `project` needs of the images.

        Args:
            visual: [B_images, Cv, H, W].

        Raises:
            TypeError, ValueError: Shape, dtype or device of visual does not fit.
            RuntimeError: Gradients are recorded, or the weights have changed.
        """
        self.check_use()
        check_visual(visual, self._attention.visual_channels)
        check_dtype_and_device("visual", visual, "the folded weights", self._visual_part)
        return self.unchecked_encode(visual)

    def unchecked_encode(self, visual: Tensor) -> FoldedPlaces:
        """`encode` without argument checks and `check_use`."""
        images = len(visual)
        places = torch.baddbmm(
            F.linear(coordinate_rows(visual), self._spatial_part).expand(images, -1, -1),
            unit_places(visual),
            self._visual_part.mT.expand(images, -1, -1),
        )
        query, key, value, residual = places.split([*self._parts, self._channels], dim=2)
        return FoldedPlaces(query, key, value, residual, (visual.shape[2], visual.shape[3]))

    def unchecked_prepare(self, places: FoldedPlaces) -> FoldedPlaces:
        """The places with the attention's exponentials, where keeping them makes further expressions cheaper."""
        return places._replace(exponentials=place_exponentials(places.query, places.key, self._attention.backend))

    def project(
        self,
        places: FoldedPlaces,
        words: Tensor,
        word_mask: Tensor | None = None,
        *,
        image_index: Tensor | None = None,
    ) -> Tensor:
        """The result of `CMSA.project` for encoded images.

        Args:
            places: From `encode`.
            words: As in `CMSA.forward`, like word_mask and image_index.

        Returns:
            [B, E, H, W], channels innermost in memory.

        Raises:
            TypeError, ValueError: places is not from `encode`; otherwise as in `CMSA.project`.
            RuntimeError: Gradients are recorded, or the weights have changed.
        """
        self.check_use()
        if not isinstance(places, FoldedPlaces):
            raise TypeError(f"places must come from encode, a FoldedPlaces; got {type(places).__name__}.")
        like = ("the folded weights", self._word_part)
        check_words(words, word_mask, self._attention.word_channels, *like)
        images = len(places.query)
        check_images("places", images, "words", len(words), image_index, words.device)
        return self.unchecked_project(places, words, word_mask, image_index, False)[0]

    def unchecked_project(
        self,
        places: FoldedPlaces,
        words: Tensor,
        word_mask: Tensor | None,
        image_index: Tensor | None,
        return_word_attention: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """`project` without argument checks and `check_use`, and the word attention of `CMSA.forward` or None."""
        unit = unit_words(words, word_mask)
        weight = word_weights(word_mask, words)
        query, key, value = F.linear(unit, self._word_part).to(places.query.dtype).split(self._parts, dim=2)
        attended = unchecked_cross_modal_attention(
            places.query,
            places.key,
            places.value,
            query,
            key,
            value,
            weight,
            image_index=image_index,
            backend=self._attention.backend,
            exponentials=places.exponentials,
        )[..., : self._channels]
        mean_part = F.linear(mean_word(unit, weight), self._mean_part, self._bias)
        projected = attended + gather_images(places.residual, image_index)
        projected += mean_part[:, None]
        projected = projected.mT.unflatten(2, places.size)
        if not return_word_attention:
            return projected, None
        return projected, unchecked_received_word_attention(places.query, query, key, weight, image_index)

    def unchecked_place_attention(
        self, places: FoldedPlaces, words: Tensor, word_mask: Tensor | None, image_index: Tensor | None
    ) -> Tensor:
        """`CMSA.place_attention` of encoded images, without argument checks and `check_use`."""
        weight = word_weights(word_mask, words)
        query = F.linear(unit_words(words, word_mask), self._word_part[: self._width]).to(places.query.dtype)
        received = unchecked_received_place_attention(
            places.query, places.key, query, weight, image_index, places.exponentials
        )
        return received.unflatten(1, places.size)

    def check_use(self) -> None:
        """Raise a RuntimeError if gradients are recorded or the weights have changed."""
        if torch.is_grad_enabled():
            raise RuntimeError(
                "A folded level has no gradient for its weights: call it under torch.no_grad() or "
                "torch.inference_mode(), or call CMSA.project."
            )
        if torch.compiler.is_exporting():
            return  # the program has its own copy of the folded weights
        torch._assert_async(
            _are_unchanged(self._find_weights(), self._versions),
            "The weights of CMSA or of the convolution have changed since they were folded: fold them again.",
        )

    def __reduce__(self) -> tuple[type["FoldedLevel"], tuple[object, ...]]:
        """Copies and unpickled levels are folded anew, from their own copy of the weights."""
        return FoldedLevel, (self._attention, *self._convolution)

    def _find_weights(self) -> list[Tensor]:
        level = self._attention
        level.check_linear_maps()
        linear = (level.query, level.key, level.value, level.output)
        return [*(part.weight for part in linear), *self._convolution]


def _value_weight(matrix: Tensor, attention: CMSA) -> Tensor:
    """[E', C]: the product of convolution [E, C], output and value, rounded once and padded with zero rows."""
    exact = torch.float32 if matrix.dtype.itemsize == 2 else matrix.dtype
    output, value = attention.output.weight.to(exact), attention.value.weight.to(exact)
    product = (matrix.to(exact) @ output @ value).to(matrix.dtype)
    return F.pad(product, (0, 0, 0, -len(product) % _MULTIPLE))


# An operator, so that a compiled graph compares the weights of each call.
@torch.library.custom_op("cmsa_fast::weights_are_unchanged", mutates_args=())
def _are_unchanged(weights: list[Tensor], versions: list[int]) -> Tensor:
    return torch.tensor(_versions(weights) == versions, device="cpu")  # whatever the default device is


@_are_unchanged.register_fake
def _(weights: list[Tensor], versions: list[int]) -> Tensor:
    return torch.ones((), dtype=torch.bool, device="cpu")


def _versions(weights: list[Tensor]) -> list[int]:
    """Differ after any change except an in-place one through `.data`."""
    # Tensors created in inference mode have no version counter.
    return [
        number
        for weight in weights
        for number in (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
    ]
