"""A dispatch mode that raises where the host would wait for a GPU, and a backward pass, for fake CUDA tensors.

Both work without a GPU: fake tensors have shapes, dtypes and devices, but no values.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from support.recorders import run_implementation
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators whose result, or its shape, the host must know: `.item()`, `.tolist()`, `int()`, `bool()`, `if tensor`,
# `len(tensor.unique())`, `torch.equal`, selection by a mask.
WAITING = {
    "_local_scalar_dense",
    "_unique",
    "_unique2",
    "argwhere",
    "bincount",
    "equal",
    "histc",
    "is_nonzero",
    "item",
    "masked_select",
    "nonzero",
    "repeat_interleave",
    "unique_consecutive",
    "unique_dim",
    "unique_dim_consecutive",
}
_MASKS = (torch.bool, torch.uint8)


class HostWaitError(AssertionError):
    """An operator made the host wait for a GPU."""


class NoHostWaits(TorchDispatchMode):
    """Raise HostWaitError where the host would wait for a GPU, and count the operators.

    The implementations of `torch.ops.cmsa_fast` run too, so that their host code is seen, except those named in
    `opaque`, of which only shapes are computed, as always with `fake`.
    """

    def __init__(self, *opaque: str, fake: bool = False) -> None:
        super().__init__()
        self.opaque = opaque
        self.fake = fake
        self.operators: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        self.operators[name] += 1
        tensors = [part for part in tree_leaves((args, kwargs)) if isinstance(part, Tensor)]
        devices = {part.device.type for part in tensors}
        if name in ("_to_copy", "copy_") and kwargs.get("device") is not None:
            devices.add(torch.device(kwargs["device"]).type)
        by_mask = name.startswith("index") and any(part.dtype in _MASKS for part in tensors[1:])
        if "cuda" in devices and (name in WAITING or by_mask):
            raise HostWaitError(f"{func} reads values of a CUDA tensor.")
        if name in ("_to_copy", "copy_") and len(devices) > 1:
            raise HostWaitError(f"{func} copies between {' and '.join(sorted(devices))}.")
        if func.namespace == "cmsa_fast" and not self.fake and name not in self.opaque:
            with self:
                return run_implementation(func, args, kwargs)
        return func(*args, **kwargs)


def run_backward(loss: Tensor) -> dict[int, Tensor]:
    """The gradients of the leaves, by id, from the backward of every node.

    PyTorch's engine does the same, but refuses CUDA tensors on a machine without a GPU.
    """
    root = loss.grad_fn
    uses: Counter[Any] = Counter()
    reached, stack = {root}, [root]
    while stack:
        following = {node for node, _ in stack.pop().next_functions if node is not None}
        uses.update(following)
        stack.extend(following - reached)
        reached |= following
    incoming: dict[Any, dict[int, Tensor]] = {root: {0: torch.ones_like(loss)}}
    leaves, ready = {}, [root]
    while ready:
        node = ready.pop()
        grads = incoming.pop(node, {})
        if hasattr(node, "variable"):
            leaves[id(node.variable)] = grads[0].sum_to_size(node.variable.shape)
            continue
        every = [
            # Formulas leave the sum over broadcast axes to the engine.
            grads[number].sum_to_size(part.shape) if number in grads else torch.zeros(part.shape, dtype=part.dtype)
            for number, part in enumerate(node._input_metadata)
        ]
        results = getattr(node, "apply", node)(*every)
        results = results if isinstance(results, tuple) else (results,)
        for (following, number), grad in zip(node.next_functions, results, strict=False):
            if following is not None and grad is not None:
                total = incoming.setdefault(following, {})
                total[number] = total[number] + grad if number in total else grad
        for following in {one for one, _ in node.next_functions if one is not None}:
            uses[following] -= 1
            if not uses[following]:
                ready.append(following)
    return leaves
