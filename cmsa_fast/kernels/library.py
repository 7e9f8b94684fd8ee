"""Registration of the kernels as PyTorch operators in the namespace `torch.ops.cmsa_fast`."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch

from .backends import without_autocast

_library = torch.library.Library("cmsa_fast", "DEF")
# Dispatch keys: Triton kernels run on GPUs and, in Triton's interpreter, on the CPU; plain PyTorch everywhere.
TRITON_DEVICES = ("CUDA", "CPU")
EVERY_DEVICE = ("CompositeExplicitAutograd",)

SEPARABLE_INPUTS = (
    "Tensor place_query, Tensor place_key, Tensor place_value, "
    "Tensor word_query, Tensor word_key, Tensor word_value, Tensor weight, Tensor? image_index"
)


def register(
    name: str,
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    devices: tuple[str, ...] = TRITON_DEVICES,
) -> None:
    """Define an operator with its implementation and its fake implementation, which only computes shapes.

    The implementation runs with autocast disabled (the inputs are cast before), so that backward computes in the
    same precision as forward, and with the GPU of its first argument as the current one.
    """

    @functools.wraps(implementation)
    def run(*arguments: Any) -> Any:
        device = arguments[0].device
        with contextlib.ExitStack() as stack:
            stack.enter_context(without_autocast(device))
            if device.type == "cuda":
                stack.enter_context(torch.cuda.device(device))
            return implementation(*arguments)

    _library.define(name + schema)
    for key in devices:
        _library.impl(name, run, key)
    torch.library.register_fake(f"cmsa_fast::{name}", fake, lib=_library)


def register_gradient(
    name: str, differentiate: Callable[..., Any], save: Callable[..., None], backward: str
) -> None:
    """Set the gradient of an operator; the operator `backward` that computes it has no derivative itself."""
    torch.library.register_autograd(f"cmsa_fast::{name}", differentiate, setup_context=save, lib=_library)
    torch.library.register_autograd(f"cmsa_fast::{backward}", _refuse_second_derivative, lib=_library)


def _refuse_second_derivative(ctx: Any, *_: Any) -> None:
    raise RuntimeError(
        "this backend of the attention has no second derivative: its gradient cannot be "
        'differentiated again (create_graph=True). Use backend="reference" for double backward.'
    )
