"""The inputs of both plans after centring and masking, and the gradient of the words' logits."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..numerics import common_offset, split_offset


class Operands(NamedTuple):
    place_query: Tensor  # [G, P, d]
    place_key: Tensor
    place_value: Tensor  # [G, P, e]
    word_query: Tensor  # [B, N, d], contiguous, zero on padding, as the next two
    word_key: Tensor
    word_value: Tensor  # [B, N, e]
    offset: Tensor  # [B, e], to be added to the result


def prepare(features: list[Tensor], weight: Tensor, image_index: Tensor | None) -> Operands:
    """Zero the padding and subtract the offsets that rows have in common.

    16-bit queries and keys are not centred: their products are exact in float32. Values are multiplied by weights
    that were rounded to 16 bits and therefore do not sum to exactly 1, an error that an offset would amplify. The
    offset is rounded to 16 bits, so that subtracting it from the values is mostly exact (Sterbenz's lemma).
    """
    query, key, value = features[:3]
    padding = weight[..., None] == 0
    words = [part.masked_fill(padding, 0).contiguous() for part in features[3:]]
    if weight.dtype != query.dtype:
        value, value_offset = _split_16_bit(value)
        if image_index is not None:
            value_offset = value_offset[image_index]
        word_value, word_offset = _split_16_bit(words[2], weight)
        word_value = word_value.masked_fill(padding, 0)
        offset = (value_offset + word_offset)[:, 0]
        return Operands(query, key, value, words[0], words[1], word_value, offset)
    query, query_offset = split_offset(query)
    value, value_offset = split_offset(value)
    if image_index is not None:
        query_offset, value_offset = query_offset[image_index], value_offset[image_index]
    word_value, word_offset = split_offset(words[2], weight)
    return Operands(
        query,
        split_offset(key)[0],
        value,
        (words[0] + query_offset).masked_fill(padding, 0),
        split_offset(words[1], weight)[0].masked_fill(padding, 0),
        word_value.masked_fill(padding, 0),
        (value_offset + word_offset)[:, 0],
    )


def _split_16_bit(value: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """16-bit [..., R, e] -> rows less their offset in 16 bits, and the offset [..., 1, e] in float32."""
    wide = value.float()
    offset = common_offset(wide, weight).to(value.dtype).float()
    return (wide - offset).to(value.dtype), offset


class WordLogits(NamedTuple):
    """The gradient of the words' logits C summed over places, in parts, [parts, B, N, K] each."""

    factored: Tensor  # without the factor E_C
    share: Tensor  # the softmax summed over places, without the factor E_C
    direct: Tensor  # of the logits of tokens in the direct form
    direct_share: Tensor

    def finish(self, exp_word: Tensor) -> Tensor:
        """[B, N, K]; each row sums to zero up to rounding, which is subtracted."""
        gradient = self.factored.sum(0) * exp_word + self.direct.sum(0)
        share = self.share.sum(0) * exp_word + self.direct_share.sum(0)
        left_over = gradient.sum(-1, keepdim=True)
        left_over /= share.sum(-1, keepdim=True).clamp_min(torch.finfo(share.dtype).tiny)
        return gradient - share * left_over
