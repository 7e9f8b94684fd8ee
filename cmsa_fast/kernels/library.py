"""How the kernels become operators of PyTorch: the namespace `torch.ops.cmsa_fast`, and what all of them share."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch

_library = torch.library.Library("cmsa_fast", "DEF")
# Where an operator is defined: by Triton kernels on GPUs, and in Triton's interpreter on the CPU; or anywhere.
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
    """Define an operator with its implementation and with what it gives for tensors without data.

    The implementation runs without autocast, whose casts were made before: backward computes as forward did. Its
    current GPU is that of its first argument.
    """

    @functools.wraps(implementation)
    def run(*arguments: Any) -> Any:
        device = arguments[0].device
        with contextlib.ExitStack() as stack:
            if device.type in ("cpu", "cuda"):
                stack.enter_context(torch.autocast(device.type, enabled=False))
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
    """Give an operator its gradient, which operator `backward` computes and which has no derivative itself."""
    torch.library.register_autograd(
        f"cmsa_fast::{name}", differentiate, setup_context=save, lib=_library
    )
    torch.library.register_autograd(
        f"cmsa_fast::{backward}", refuse_second_derivative, lib=_library
    )


def refuse_second_derivative(ctx: Any, *_: Any) -> None:
    """The derivative of a gradient that has none.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError(
        "this backend of the attention has no second derivative: its gradient cannot be "
        'differentiated again (create_graph=True). Use backend="reference" for double backward.'
    )
