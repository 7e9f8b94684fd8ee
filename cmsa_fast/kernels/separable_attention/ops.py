"""The separable attention's Triton kernels as operators: schemas, fake implementations, autograd, FLOP formulas.

This module knows torch alone. The kernels are imported when an operator first runs: a graph can be traced, and the
package imported, where Triton is not installed. Nothing here looks at the values of a tensor: where the kernels
way depends on data they branch on the GPU, so that CUDA graphs can capture them.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..library import SEPARABLE_INPUTS, register, register_gradient
from ..validation import check_triton
from .eager import word_weights
from .flops import separable_backward_flop, separable_forward_flop

# The result, then what backward needs of the softmaxes: E_C over places and over words, and for each of the two
# the five tensors of its statistics.
_STATE = 12


def _separable_forward(*arguments: Any) -> tuple[Tensor, ...]:
    *features, weight, image_index = arguments
    check_triton(features[0])
    from .triton import plans as separable

    attended, state = separable.forward(features, weight, image_index)
    return attended, *state


def _separable_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    from .triton import plans as separable

    *features, weight, image_index, attended, state = arguments
    gradients = separable.backward(grad, features, weight, image_index, attended, state)
    return tuple(gradients)


def _fake_separable_forward(*arguments: Any) -> tuple[Tensor, ...]:
    place_query, _, place_value, word_query, _, _, weight, _ = arguments
    batch, words = word_query.shape[:2]
    places, value_width = place_value.shape[1:]
    statistics = [
        (weight.new_empty(batch, places), *(weight.new_empty(batch, places, words) for _ in range(3)),
         weight.new_empty(batch, dtype=torch.int32))
        for _ in range(2)
    ]  # fmt: skip
    return (
        place_query.new_empty(batch, places, value_width),
        weight.new_empty(batch, words, places),
        weight.new_empty(batch, words, words),
        *statistics[0],
        *statistics[1],
    )


def _fake_separable_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return tuple(
        torch.empty_like(part, memory_format=torch.contiguous_format) for part in arguments[:6]
    )


def _save_separable(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.set_materialize_grads(False)


def _differentiate_separable(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 8
    inputs, (attended, *state) = ctx.saved_tensors[:8], ctx.saved_tensors[8:]
    gradients = torch.ops.cmsa_fast.separable_backward(grad, *inputs, attended, state)
    return *gradients, None, None


register(
    "separable_forward",
    f"({SEPARABLE_INPUTS}) -> ({', '.join(['Tensor'] * (1 + _STATE))})",
    _separable_forward,
    _fake_separable_forward,
)
register(
    "separable_backward",
    f"(Tensor grad, {SEPARABLE_INPUTS}, Tensor attended, Tensor[] state) -> ({', '.join(['Tensor'] * 6)})",
    _separable_backward,
    _fake_separable_backward,
)
register_gradient(
    "separable_forward", _differentiate_separable, _save_separable, "separable_backward"
)


def separable_attention(
    place_query: Tensor,
    place_key: Tensor,
    place_value: Tensor,
    word_query: Tensor,
    word_key: Tensor,
    word_value: Tensor,
    word_mask: Tensor | None = None,
    *,
    image_index: Tensor | None = None,
) -> Tensor:
    """`cmsa_fast.kernels.cross_modal_attention` by the Triton kernels; arguments are not checked here.

    Raises:
        RuntimeError: on differentiating the gradient; it has no derivative of its own.
    """
    weight = word_weights(word_mask, word_query)
    features = (place_query, place_key, place_value, word_query, word_key, word_value)
    return torch.ops.cmsa_fast.separable_forward(*features, weight, image_index)[0]


register_flop_formula(torch.ops.cmsa_fast.separable_forward)(separable_forward_flop)
register_flop_formula(torch.ops.cmsa_fast.separable_backward)(separable_backward_flop)
