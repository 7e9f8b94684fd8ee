"""PyTorch operators of the Triton kernels of the joint attention and of its tail.

As in `separable_attention.ops`, the kernels are imported when an operator first runs, and nothing here reads the
values of a tensor.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..backends import check_triton, compute_dtype
from ..library import register, register_gradient

_TOKENS = "Tensor query, Tensor key, Tensor value, Tensor? key_mask, float scale"
_TAIL = "Tensor attended, Tensor weight, Tensor? bias, Tensor? word_mask, bool relu"


def joint_attention(*arguments: Any) -> Tensor:
    """`cmsa_fast.kernels.joint_attention` by the Triton kernels; arguments are not checked."""
    return torch.ops.cmsa_fast.joint_forward(*arguments)[0]


def joint_attention_tail(*arguments: Any) -> Tensor:
    """`cmsa_fast.kernels.joint_attention_tail` by the Triton kernels; arguments are not checked."""
    return torch.ops.cmsa_fast.joint_tail_forward(*arguments)


def _joint_forward(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    check_triton(query)
    from .triton.forward import launch_joint_forward

    return launch_joint_forward(query, key, value, key_mask, scale)


def _joint_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    from .triton.backward_dq import launch_joint_backward

    return launch_joint_backward(grad, *arguments)


def _fake_joint_forward(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    return (
        query.new_empty(*query.shape[:2], value.shape[2]),
        query.new_empty(*query.shape[:2], 2, dtype=compute_dtype(query.dtype)),
    )


def _fake_joint_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return tuple(part.new_empty(part.shape) for part in arguments[:3])


def _save_joint(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)


def _differentiate_joint(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 5
    query, key, value, key_mask, attended, logsumexp = ctx.saved_tensors
    gradients = torch.ops.cmsa_fast.joint_backward(
        grad, query, key, value, key_mask, ctx.scale, attended, logsumexp
    )
    return *gradients, None, None


def _tail_forward(
    attended: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    word_mask: Tensor | None,
    relu: bool,
) -> Tensor:
    check_triton(attended)
    from .triton.projection import launch_tail_forward

    return launch_tail_forward(attended, weight, bias, word_mask, relu)


def _tail_backward(
    grad: Tensor,
    attended: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    word_mask: Tensor | None,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of an absent bias is an empty tensor, because an operator cannot return None."""
    from .triton.projection_backward import launch_tail_backward

    grad_attended, grad_weight, grad_bias = launch_tail_backward(grad, attended, weight, bias, word_mask, relu)
    return grad_attended, grad_weight, weight.new_empty(0) if grad_bias is None else grad_bias


def _fake_tail_forward(attended: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return attended.new_empty(*attended.shape[:2], len(weight))


def _fake_tail_backward(
    grad: Tensor, attended: Tensor, weight: Tensor, bias: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        attended.new_empty(attended.shape),
        weight.new_empty(weight.shape),
        weight.new_empty(0 if bias is None else len(weight)),
    )


def _save_tail(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.relu = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_tail(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    attended, weight, bias, word_mask = ctx.saved_tensors
    grad_attended, grad_weight, grad_bias = torch.ops.cmsa_fast.joint_tail_backward(
        grad, attended, weight, bias, word_mask, ctx.relu
    )
    return grad_attended, grad_weight, None if bias is None else grad_bias, None, None


register("joint_forward", f"({_TOKENS}) -> (Tensor, Tensor)", _joint_forward, _fake_joint_forward)
register(
    "joint_backward",
    f"(Tensor grad, {_TOKENS}, Tensor attended, Tensor logsumexp) -> (Tensor, Tensor, Tensor)",
    _joint_backward,
    _fake_joint_backward,
)
register_gradient("joint_forward", _differentiate_joint, _save_joint, "joint_backward")
register("joint_tail_forward", f"({_TAIL}) -> Tensor", _tail_forward, _fake_tail_forward)
register(
    "joint_tail_backward",
    f"(Tensor grad, {_TAIL}) -> (Tensor, Tensor, Tensor)",
    _tail_backward,
    _fake_tail_backward,
)
register_gradient("joint_tail_forward", _differentiate_tail, _save_tail, "joint_tail_backward")


@register_flop_formula(torch.ops.cmsa_fast.joint_forward)
def _joint_forward_flop(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Two products over every pair of query and key."""
    batch, queries, width = query
    return 2 * batch * queries * key[1] * (width + value[2])


@register_flop_formula(torch.ops.cmsa_fast.joint_backward)
def _joint_backward_flop(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Five products: recomputed logits, gradient of the weights, and the gradients of query, key and value."""
    batch, queries, width = query
    return 2 * batch * queries * key[1] * (3 * width + 2 * value[2])


@register_flop_formula(torch.ops.cmsa_fast.joint_tail_forward)
def _tail_forward_flop(
    attended: Any, weight: Any, bias: Any, word_mask: Any, relu: bool, *_: Any, **__: Any
) -> int:
    """One product for each token, or for each place if there is no ReLU before the mean."""
    batch, places, words, width = attended
    return 2 * batch * places * (words if relu else 1) * width * weight[0]


@register_flop_formula(torch.ops.cmsa_fast.joint_tail_backward)
def _tail_backward_flop(
    grad: Any, attended: Any, weight: Any, bias: Any, word_mask: Any, relu: bool, *_: Any, **__: Any
) -> int:
    """Two products, and with ReLU a third that recomputes its argument."""
    batch, places, words, width = attended
    return 2 * batch * places * (3 * words if relu else 2) * width * weight[0]
