"""Recorders of the memory that operations allocate and of what autograd keeps for backward."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from support.oracle import Case
from torch import Tensor
from torch._C import DispatchKey
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestTensor(TorchDispatchMode):
    """Records the most elements of any tensor's storage that an operation returns, also inside our operators."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if function.namespace == "cmsa_fast":
            with self:
                result = run_implementation(function, args, kwargs)
        else:
            result = function(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple | list) else (result,):
            if isinstance(part, Tensor):
                stored = part.untyped_storage().nbytes() // part.element_size()
                self.elements = max(self.elements, stored)
        return result


def run_implementation(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
    """Call an operator of ours in a dispatch mode so that the mode, entered anew, sees what the operator calls."""
    first = next(part for part in tree_leaves(args) if isinstance(part, Tensor))
    own = getattr(DispatchKey, first.device.type.upper())
    key = own if function.has_kernel_for_dispatch_key(own) else DispatchKey.CompositeExplicitAutograd
    return function._op_dk(key, *args, **(kwargs or {}))


def largest_tensors(function: Callable[..., Tensor], case: Case) -> tuple[int, int]:
    """The elements of the largest tensor in forward, and in backward."""
    inputs = [part.detach().requires_grad_() for part in case.given.values()]
    with LargestTensor() as forward:
        result = function(*inputs, case.mask, **case.options)
    with LargestTensor() as backward:
        torch.autograd.grad(result, inputs, case.grad)
    return forward.elements, backward.elements


@contextlib.contextmanager
def saved_for_backward() -> Iterator[list[Tensor]]:
    """Collect the tensors that autograd saves for backward."""
    saved: list[Tensor] = []

    def save(part: Tensor) -> Tensor:
        saved.append(part)
        return part

    with torch.autograd.graph.saved_tensors_hooks(save, lambda part: part):
        yield saved
