"""PyTorch operators of the joint attention and of its tail, by the Triton kernels and in plain PyTorch.

As in `separable_attention.ops`, the kernels are imported when an operator first runs. A graph holds one operator,
so the loops of plain PyTorch and their reads of a mask are not traced.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..backends import check_triton, compute_dtype
from ..library import EVERY_DEVICE, TRITON_DEVICES, register, register_gradient
from . import eager, projection_eager

_TOKENS = "Tensor query, Tensor key, Tensor value, Tensor? key_mask, float scale"
_TAIL = "Tensor attended, Tensor weight, Tensor? bias, Tensor? word_mask"
_operators = torch.ops.cmsa_fast


def joint_attention(*arguments: Any) -> Tensor:
    """`cmsa_fast.kernels.joint_attention` by the Triton kernels; arguments are not checked."""
    return _operators.joint_forward(*arguments)[0]


def joint_attention_tail(*arguments: Any) -> Tensor:
    """`cmsa_fast.kernels.joint_attention_tail` by the Triton kernels; arguments are not checked."""
    return _tail(_operators.joint_tail_forward, *arguments)


def eager_joint_attention(*arguments: Any) -> Tensor:
    """`cmsa_fast.kernels.joint_attention` in plain PyTorch; arguments are not checked."""
    return _operators.joint_eager_forward(*arguments)


def eager_joint_attention_tail(*arguments: Any) -> Tensor:
    """`cmsa_fast.kernels.joint_attention_tail` in plain PyTorch; arguments are not checked."""
    return _tail(_operators.joint_eager_tail_forward, *arguments)


def _tail(operator: Callable[..., Tensor], *arguments: Any) -> Tensor:
    *tensors, relu = arguments
    return operator(*tensors) if relu else _operators.joint_linear_tail_forward(*tensors)[0]


def _joint_forward(query: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    check_triton(query)
    from .triton.forward import launch_joint_forward

    return launch_joint_forward(query, *arguments)


def _joint_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    from .triton.backward import launch_joint_backward

    return launch_joint_backward(*arguments)


def _fake_joint_forward(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return (
        query.new_empty(*query.shape[:2], value.shape[2]),
        query.new_empty(*query.shape[:2], 2, dtype=compute_dtype(query.dtype)),
    )


def _fake_joint_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return tuple(part.new_empty(part.shape) for part in arguments[:3])


def _save_joint(ctx: Any, inputs: tuple[Any, ...], output: Tensor | tuple[Tensor, Tensor]) -> None:
    """The inputs, and of the Triton kernels the results."""
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *(output if isinstance(output, tuple) else ()))
    ctx.set_materialize_grads(False)


def _differentiate_joint(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 5
    query, key, value, key_mask, *state = ctx.saved_tensors
    operator = _operators.joint_backward if state else _operators.joint_eager_backward
    return *operator(grad, query, key, value, key_mask, ctx.scale, *state), None, None


register("joint_forward", f"({_TOKENS}) -> (Tensor, Tensor)", _joint_forward, _fake_joint_forward)
register(
    "joint_backward",
    f"(Tensor grad, {_TOKENS}, Tensor attended, Tensor logsumexp) -> (Tensor, Tensor, Tensor)",
    _joint_backward,
    _fake_joint_backward,
)
register_gradient("joint_forward", _differentiate_joint, _save_joint, "joint_backward")
register(
    "joint_eager_forward",
    f"({_TOKENS}) -> Tensor",
    eager.forward,
    lambda *arguments: _fake_joint_forward(*arguments)[0],
    EVERY_DEVICE,
)
register(
    "joint_eager_backward",
    f"(Tensor grad, {_TOKENS}) -> (Tensor, Tensor, Tensor)",
    eager.backward,
    _fake_joint_backward,
    EVERY_DEVICE,
)
register_gradient("joint_eager_forward", _differentiate_joint, _save_joint, "joint_eager_backward")


def _tail_forward(attended: Tensor, *arguments: Any) -> Tensor:
    check_triton(attended)
    from .triton.projection import launch_tail_forward

    return launch_tail_forward(attended, *arguments)


def _tail_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    from .triton.projection import launch_tail_backward

    return launch_tail_backward(*arguments)


def _fake_tail_forward(attended: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return attended.new_empty(*attended.shape[:2], len(weight))


def _fake_tail_backward(grad: Tensor, attended: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return attended.new_empty(attended.shape), weight.new_empty(weight.shape), weight.new_empty(len(weight))


def _save_tail(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_tail(operator: str) -> Callable[..., tuple[Any, ...]]:
    def differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        grad_attended, grad_weight, grad_bias = getattr(_operators, operator)(grad, *ctx.saved_tensors)
        return grad_attended, grad_weight, None if ctx.saved_tensors[2] is None else grad_bias, None

    return differentiate


for _name, _forward, _backward, _devices in (
    ("joint_tail", _tail_forward, _tail_backward, TRITON_DEVICES),
    ("joint_eager_tail", projection_eager.forward, projection_eager.backward, EVERY_DEVICE),
):
    register(f"{_name}_forward", f"({_TAIL}) -> Tensor", _forward, _fake_tail_forward, _devices)
    register(
        f"{_name}_backward",
        f"(Tensor grad, {_TAIL}) -> (Tensor, Tensor, Tensor)",
        _backward,
        _fake_tail_backward,
        _devices,
    )
    register_gradient(
        f"{_name}_forward", _differentiate_tail(f"{_name}_backward"), _save_tail, f"{_name}_backward"
    )


def _fake_linear_tail_forward(attended: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    mean = attended.new_empty(*attended.shape[:2], attended.shape[3], dtype=compute_dtype(attended.dtype))
    return _fake_tail_forward(attended, weight), mean


def _fake_linear_tail_backward(
    grad: Tensor, mean: Tensor, weight: Tensor, word_mask: Tensor | None, words: int
) -> tuple[Tensor, Tensor, Tensor]:
    grad_attended = weight.new_empty(*mean.shape[:2], words, mean.shape[2])
    return grad_attended, weight.new_empty(weight.shape), weight.new_empty(len(weight))


def _save_linear_tail(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """The mean over words in place of the tokens."""
    attended, weight, bias, word_mask = inputs
    ctx.has_bias, ctx.words = bias is not None, attended.shape[2]
    ctx.save_for_backward(output[1], weight, word_mask)


def _differentiate_linear_tail(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    gradients = _operators.joint_linear_tail_backward(grad, *ctx.saved_tensors, ctx.words)
    return *gradients[:2], gradients[2] if ctx.has_bias else None, None


register(
    "joint_linear_tail_forward",
    f"({_TAIL}) -> (Tensor, Tensor)",
    projection_eager.linear_forward,
    _fake_linear_tail_forward,
    EVERY_DEVICE,
)
register(
    "joint_linear_tail_backward",
    "(Tensor grad, Tensor mean, Tensor weight, Tensor? word_mask, SymInt words) -> (Tensor, Tensor, Tensor)",
    projection_eager.linear_backward,
    _fake_linear_tail_backward,
    EVERY_DEVICE,
)
register_gradient(
    "joint_linear_tail_forward", _differentiate_linear_tail, _save_linear_tail, "joint_linear_tail_backward"
)


@register_flop_formula([_operators.joint_forward, _operators.joint_eager_forward])
def _joint_forward_flop(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Two products over every pair of query and key."""
    batch, queries, width = query
    return 2 * batch * queries * key[1] * (width + value[2])


@register_flop_formula([_operators.joint_backward, _operators.joint_eager_backward])
def _joint_backward_flop(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Five products: recomputed logits, gradient of the weights, and the gradients of query, key and value."""
    batch, queries, width = query
    return 2 * batch * queries * key[1] * (3 * width + 2 * value[2])


@register_flop_formula([_operators.joint_tail_forward, _operators.joint_eager_tail_forward])
def _tail_forward_flop(attended: Any, weight: Any, *_: Any, **__: Any) -> int:
    """One product for each token."""
    batch, places, words, width = attended
    return 2 * batch * places * words * width * weight[0]


@register_flop_formula([_operators.joint_tail_backward, _operators.joint_eager_tail_backward])
def _tail_backward_flop(grad: Any, *inputs: Any, **__: Any) -> int:
    """Two products, and a third that recomputes the argument of ReLU."""
    return 3 * _tail_forward_flop(*inputs)


@register_flop_formula(_operators.joint_linear_tail_forward)
def _linear_tail_forward_flop(attended: Any, weight: Any, *_: Any, **__: Any) -> int:
    """One product for each place."""
    batch, places, _, width = attended
    return 2 * batch * places * width * weight[0]


@register_flop_formula(_operators.joint_linear_tail_backward)
def _linear_tail_backward_flop(grad: Any, mean: Any, weight: Any, *_: Any, **__: Any) -> int:
    """Two products for each place."""
    batch, places, width = mean
    return 4 * batch * places * width * weight[0]
