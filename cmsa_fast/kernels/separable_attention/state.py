"""Sizes and dtypes of what the Triton kernels keep between forward and backward; imports no Triton."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# The kernels read arrays padded to whole tiles. The CPU is Triton's interpreter, whose tiles are small.
_PLACES, _CHANNELS = 128, 64
_INTERPRETED = 16

# Elements of one array over pairs of places. Larger ones are worked on in slabs of rows of the whole batch, and
# are computed again in backward.
_SLAB = 2**25


class Dtypes(NamedTuple):
    """Dtypes of intermediate arrays.

    Factors would underflow in float16, so they are float32 there.
    """

    operand: torch.dtype  # features
    factor: torch.dtype  # E, E_C, W and the gradients of logits; R and G where they are multiplied with E_C
    total: torch.dtype  # sums

    @classmethod
    def of(cls, dtype: torch.dtype) -> "Dtypes":
        if dtype == torch.bfloat16:
            return cls(dtype, dtype, torch.float32)
        if dtype == torch.float16:
            return cls(dtype, torch.float32, torch.float32)
        return cls(dtype, dtype, dtype)


class Sizes(NamedTuple):
    """Sizes of a call, and the padded ones of its arrays."""

    images: int
    batch: int
    places: int
    words: int
    width: int
    value_width: int
    padded_places: int
    padded_words: int
    channels: int  # width, padded
    value_channels: int
    in_place: int  # 1 if the kernels read place query, key and value as they are in forward, else 0

    @classmethod
    def of(cls, features: Sequence[Tensor]) -> "Sizes":
        """Sizes of place query, key, value and word query, key, value."""
        images, places, width = features[0].shape
        batch, words, value_width = features[5].shape
        # Products of 16-bit features are exact in float32, so forward needs no centred copies.
        as_they_are = features[0].dtype.itemsize == 2 and not any(
            part.shape[2] % column_block(part) or not part.is_contiguous() for part in features[:3]
        )
        interpreted = features[0].device.type == "cpu"
        blocks = (_INTERPRETED,) * 2 if interpreted else (_PLACES, _CHANNELS)
        return cls(
            images,
            batch,
            places,
            words,
            width,
            value_width,
            _round_up(places, blocks[0]),
            16 if words <= 16 else 32 if words <= 32 else 64,
            _round_up(width, blocks[1]),
            _round_up(value_width, blocks[1]),
            1 if as_they_are else 0,
        )

    def fit_one_slab(self) -> bool:
        return max(self.batch, self.images) * self.padded_places**2 <= _SLAB

    def slabs(self) -> list[tuple[int, int]]:
        """The first row of each slab, and its number of rows."""
        if self.fit_one_slab():
            return [(0, self.padded_places)]
        block = min(_PLACES, self.padded_places)
        most = max(1, _SLAB // (max(self.batch, self.images) * self.padded_places * block)) * block
        return [(first, min(most, self.padded_places - first)) for first in range(0, self.padded_places, most)]


class State(NamedTuple):
    """What forward keeps for backward: its inputs as the kernels read them, and statistics of the softmaxes.

    All are contiguous and padded with zeros; see `prepare` for the first three, `words` for the next seven,
    `logits` for the others. The first three are empty if the kernels read the inputs themselves
    (`Sizes.in_place`), and the exponentials if they take several slabs.
    """

    query: Tensor  # [B_images, P, d]
    key: Tensor
    value: Tensor  # [B_images, P, e]
    word_query: Tensor  # [B, N, d]
    word_key: Tensor
    word_value: Tensor  # [B, N, e]
    weight: Tensor  # [B, N]
    offset: Tensor  # [B, e], to be added to the result
    place_logits: Tensor  # [B, P, N], of places over words
    word_logits: Tensor  # [B, N, N], of words over words, -inf on padding
    word_factor: Tensor  # [B, N, P], E_C
    row_max: Tensor  # [B, P]
    ratio: Tensor  # [B, P, N], R
    direct: Tensor  # int64 [B, P], bit n is set where word n's token takes the direct form
    exponentials: Tensor  # [B_images, P, P], E relative to the row's maximum in its tile
    tile_max: Tensor  # [B_images, P / block, P], those maxima, for each block of columns

    @classmethod
    def empty(cls, sizes: Sizes, like: Tensor) -> "State":
        dtypes = Dtypes.of(like.dtype)
        batch, rows, words = sizes.batch, sizes.padded_places, sizes.padded_words
        kept = rows if sizes.fit_one_slab() else 0
        copied = 0 if sizes.in_place else rows

        def new(dtype: torch.dtype, *shape: Any) -> Tensor:
            return like.new_empty(shape, dtype=dtype)

        return cls(
            new(dtypes.operand, sizes.images, copied, sizes.channels),
            new(dtypes.operand, sizes.images, copied, sizes.channels),
            new(dtypes.operand, sizes.images, copied, sizes.value_channels),
            new(dtypes.operand, batch, words, sizes.channels),
            new(dtypes.operand, batch, words, sizes.channels),
            new(dtypes.operand, batch, words, sizes.value_channels),
            new(dtypes.total, batch, words),
            new(dtypes.total, batch, sizes.value_channels),
            new(dtypes.total, batch, rows, words),
            new(dtypes.total, batch, words, words),
            new(dtypes.factor, batch, words, rows),
            new(dtypes.total, batch, rows),
            new(dtypes.total, batch, rows, words),
            new(torch.int64, batch, rows),
            *new_exponentials(sizes, like, kept),
        )

    def reading(self, features: Sequence[Tensor], sizes: Sizes) -> "State":
        """With the place features in the place of their copies, if the kernels read them in place."""
        if not sizes.in_place:
            return self
        query, key, value = features[:3]
        return self._replace(query=query, key=key, value=value)


class Call(NamedTuple):
    """What the launchers of one call share: its sizes, its state and the image of each expression."""

    sizes: Sizes
    state: State
    image_index: Tensor | None  # int64 [B], contiguous; None: expression b belongs to image b

    @property
    def constants(self) -> dict[str, Any]:
        """Constants of the kernels: whether expressions share images, and the number of words, padded."""
        return {"GROUPED": self.image_index is not None, "WORDS": self.sizes.padded_words}


def new_exponentials(sizes: Sizes, like: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Buffers for the exponentials of a slab of rows, and for the maxima of their tiles."""
    dtypes = Dtypes.of(like.dtype)
    blocks = sizes.padded_places // column_block(like)
    return (
        like.new_empty(sizes.images, rows, sizes.padded_places, dtype=dtypes.factor),
        like.new_empty(sizes.images, blocks, rows, dtype=dtypes.total),
    )


def column_block(like: Tensor) -> int:
    """The columns that one of the maxima is stored for; a tile of the logits holds whole blocks of them."""
    return _INTERPRETED if like.device.type == "cpu" else _CHANNELS


def _round_up(size: int, block: int) -> int:
    return (size + block - 1) // block * block
