"""How the kernels become operators of PyTorch: the namespace `torch.ops.cmsa_fast`, and what all of them share."""

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
    """Define an operator with its implementation and with what it gives for tensors without data."""
    _library.define(name + schema)
    for device in devices:
        _library.impl(name, implementation, device)
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
