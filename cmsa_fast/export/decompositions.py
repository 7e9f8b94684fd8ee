"""Branch-free forms of the attention operators, which an exported program contains in place of the operators.

The operators of `cmsa_fast.kernels` loop over images and take branches that depend on data. An exported program
can do neither and must run without this library, so its attention is written here in operations of plain PyTorch
over whole batches. They need more memory: an expression takes arrays over all pairs of places, or, in the joint
attention, over all pairs of queries and keys.

Separable attention. As in `kernels.separable_attention.mean_softmax`, the softmax of logits A[p, k] + C[n, k] is
computed from E_A = exp(A - row max) and E_C = exp(C - row max) with Z = E_A E_C^T, which never overflow. Z
underflows where A and C peak at different keys and both fall off steeply. The operators compute a token (p, n)
with Z below 2^-60 in the direct form; here Z is replaced by `_FLOOR` where it is below it:

- Z of at least 2^-100: equal to the operators up to rounding. Z falls below 2^-60 where A and C both fall by more
  than 41 between the two peaks, below 2^-100 where they fall by more than 69. (Backward needs the bound of 2^-60,
  because it divides by Z twice; forward does not.)
- Z below 2^-100: the token's attention to places is multiplied by Z / 2^-100 and so fades to zero. The result is
  finite, and its error is at most the token's share of the mean over words.

The softmax over words is computed directly and has no such limit, and the joint attention has none either.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..kernels import reference
from ..kernels.joint_attention import ops  # noqa: F401  defines operators
from ..kernels.separable_attention import eager  # noqa: F401  defines an operator
from ..kernels.separable_attention.numerics import split_offset
from ..nn.tokens import gather_images

_FLOOR = 2.0**-100


def separable_attention(
    place_query: Tensor,
    place_key: Tensor,
    place_value: Tensor,
    word_query: Tensor,
    word_key: Tensor,
    word_value: Tensor,
    weight: Tensor,
    image_index: Tensor | None,
) -> Tensor:
    """`cmsa_fast.kernels.cross_modal_attention` with `word_weights` in place of a mask."""
    dtype = place_query.dtype
    padded = weight[..., None] == 0
    place_query, place_key, place_value = (part.to(weight.dtype) for part in (place_query, place_key, place_value))
    word_query, word_key, word_value = (
        part.to(weight.dtype).masked_fill(padded, 0) for part in (word_query, word_key, word_value)
    )
    # Attention is invariant to these offsets; only rounding improves.
    place_query, query_offset = split_offset(place_query)
    place_key, _ = split_offset(place_key)
    place_value, place_offset = split_offset(place_value)
    word_key, _ = split_offset(word_key, weight)
    word_value, word_offset = split_offset(word_value, weight)

    exp_place = _exp_logits(place_query, place_key)  # [B_images, P, P], E_A
    exp_place, place_query, place_key, place_value, query_offset, place_offset = (
        gather_images(part, image_index)
        for part in (exp_place, place_query, place_key, place_value, query_offset, place_offset)
    )

    word_query = word_query + query_offset
    exp_word = _exp_logits(word_query, place_key)  # [B, N, P], E_C
    total = (exp_place @ exp_word.mT).clamp_min(_FLOOR)  # [B, P, N], Z
    over_places = exp_place * ((weight[:, None] / total) @ exp_word)  # [B, P, P]

    logits = (place_query @ word_key.mT)[:, :, None] + (word_query @ word_key.mT)[:, None]  # [B, P, N, N]
    softmax = logits.masked_fill(padded.mT[:, None], -torch.inf).softmax(-1)
    over_words = (weight[:, None, None] @ softmax)[:, :, 0]  # [B, P, N]
    attended = over_places @ place_value + over_words @ word_value + (place_offset + word_offset)
    return attended.to(dtype)


def _exp_logits(query: Tensor, key: Tensor) -> Tensor:
    logits = query @ key.mT
    return (logits - logits.amax(-1, keepdim=True)).exp()


DECOMPOSITIONS: dict[Any, Callable[..., Tensor]] = {
    torch.ops.cmsa_fast.factored_forward.default: separable_attention,
    torch.ops.cmsa_fast.joint_eager_forward.default: reference.token_attention,
    torch.ops.cmsa_fast.joint_eager_tail_forward.default: partial(reference.joint_attention_tail, relu=True),
}


def _clamp_min(tensors: Sequence[Tensor], bound: float) -> list[Tensor]:
    return [part.clamp_min(bound) for part in tensors]


def _argsort(values: Tensor, *, stable: bool, dim: int = -1, descending: bool = False) -> Tensor:
    # Stable: of equal values, TopK of ONNX takes the one with the lower index first.
    return torch.topk(values.int(), values.shape[dim], dim, largest=descending).indices


# Operations of PyTorch that its exporter to ONNX does not know.
ONNX_DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten._foreach_clamp_min.Scalar: _clamp_min,
    torch.ops.aten.argsort.stable: _argsort,
}
