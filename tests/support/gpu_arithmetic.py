"""GPU arithmetic in Triton's interpreter, for tests of the kernels' rounding without a GPU.

The interpreter computes with NumPy, which has no bfloat16 and no TF32. It treats bfloat16 numbers as integers,
truncates where a GPU rounds, and multiplies in float32 where a GPU uses TF32. `gpu_arithmetic` replaces these
operations by the ones that Triton compiles for NVIDIA GPUs:

- Conversion to bfloat16 rounds to the nearest, ties to even (`cvt.rn`). Sums, products and comparisons of bfloat16
  numbers are computed in float32, and the result is rounded. Reductions of them are refused.
- `tl.dot` multiplies bfloat16 and float16 exactly and adds in float32.
- `tl.dot` of float32 with input_precision="tf32" ignores all but the first 10 bits of its operands' mantissas.
- `tl.exp` of float32 is `ex2.approx` of a product with log2(e), and `tl.exp2` flushes subnormal numbers to zero.

Not emulated: the errors of `ex2.approx` and of division (2 units in the last place), fused multiply-add, and the
order in which tensor cores add.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
import triton.language as tl
from torch.utils._python_dispatch import TorchDispatchMode
from triton._C.libtriton import ir
from triton.runtime import interpreter

Array = np.ndarray
_Builder = interpreter.InterpreterBuilder
_Handle = interpreter.TensorHandle

# Twice the error of rounding to TF32, as torch.finfo(dtype).eps is of rounding to dtype.
TF32_EPS = 2.0**-10

_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_TINY = np.finfo(np.float32).tiny
_LOG2_E = np.float32(1.4426950408889634)


@contextlib.contextmanager
def gpu_arithmetic() -> Iterator[None]:
    """Triton's interpreter with the arithmetic of a GPU."""
    replacements = {
        "cast_impl": _cast,
        "create_fp_to_fp": _convert,
        "binary_op": _binary,
        "unary_op": _unary,
        "create_fma": _refused(_Builder.create_fma),
        "create_dot": _dot,
        "create_exp": lambda self, x: _unary(self, x, _exp),
        "create_exp2": lambda self, x: _unary(self, x, _exp2),
    }
    with (
        mock.patch.multiple(_Builder, **replacements),
        mock.patch.object(interpreter.ReduceOps, "apply_impl", _refused(interpreter.ReduceOps.apply_impl)),
    ):
        yield


@contextlib.contextmanager
def tf32_products() -> Iterator[None]:
    """PyTorch's setting for TF32 products, which the kernels follow, emulated for the library's products.

    Those round their operands to the nearest TF32 number. The literal form, too, is then run in TF32.
    """
    setting = torch.backends.cuda.matmul
    before = setting.fp32_precision
    setting.fp32_precision = "tf32"
    try:
        with _LibraryProducts():
            yield
    finally:
        setting.fp32_precision = before


def round_to_bfloat16(x: Array) -> Array:
    """float32 -> the nearest bfloat16, ties to even, as uint16."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), 0x7FFF, rounded).astype(np.uint16).reshape(np.shape(x))


def widen_bfloat16(bits: Array) -> Array:
    """bfloat16 as uint16 -> float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def truncate_to_tf32(x: Array) -> Array:
    """float32 without the last 13 of its 23 bits of mantissa."""
    return (np.ascontiguousarray(x).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32).reshape(x.shape)


def _is_bfloat16(handle: Any) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _wide(handle: Any) -> Any:
    return _Handle(widen_bfloat16(handle.data), tl.float32) if _is_bfloat16(handle) else handle


def _narrow(handle: Any) -> Any:
    """A result of `_wide` operands; comparisons stay boolean."""
    data = handle.data if handle.data.dtype == np.bool_ else round_to_bfloat16(handle.data)
    return _Handle(data, tl.bfloat16)


def _cast(self: Any, source: Any, target: Any, original: Callable[..., Any] = _Builder.cast_impl) -> Any:
    if target.scalar == tl.bfloat16 and not _is_bfloat16(source):
        return _Handle(round_to_bfloat16(source.data.astype(np.float32)), tl.bfloat16)
    return original(self, source if target.scalar == tl.bfloat16 else _wide(source), target)


def _convert(
    self: Any, source: Any, target: Any, rounding: Any, original: Callable[..., Any] = _Builder.create_fp_to_fp
) -> Any:
    if tl.bfloat16 in (source.dtype.scalar, target.scalar) and rounding != ir.ROUNDING_MODE.RTZ:
        return _cast(self, source, target)
    return original(self, source, target, rounding)


def _binary(
    self: Any, left: Any, right: Any, operation: Any, original: Callable[..., Any] = _Builder.binary_op
) -> Any:
    if _is_bfloat16(left):
        return _narrow(original(self, _wide(left), _wide(right), operation))
    return original(self, left, right, operation)


def _unary(self: Any, x: Any, operation: Any, original: Callable[..., Any] = _Builder.unary_op) -> Any:
    return _narrow(original(self, _wide(x), operation)) if _is_bfloat16(x) else original(self, x, operation)


def _dot(
    self: Any,
    left: Any,
    right: Any,
    total: Any,
    input_precision: Any,
    *rest: Any,
    original: Callable[..., Any] = _Builder.create_dot,
) -> Any:
    operands = [_wide(left), _wide(right)]
    if left.dtype.scalar == tl.float32:
        if input_precision == ir.INPUT_PRECISION.TF32:
            operands = [_Handle(truncate_to_tf32(part.data), tl.float32) for part in operands]
        elif input_precision != ir.INPUT_PRECISION.IEEE:
            raise NotImplementedError(f"products with {input_precision} are not emulated")
    return original(self, *operands, total, input_precision, *rest)


def _refused(original: Callable[..., Any]) -> Callable[..., Any]:
    """`original`, for operands other than bfloat16."""

    def operation(self: Any, *arguments: Any) -> Any:
        parts = [
            part for argument in arguments for part in (argument if isinstance(argument, tuple) else [argument])
        ]
        if any(part.dtype.scalar == tl.bfloat16 for part in parts):
            raise NotImplementedError("this operation is not emulated for bfloat16; convert to float32 before it")
        return original(self, *arguments)

    return operation


def _exp(x: Array) -> Array:
    if x.dtype != np.float32:
        return np.exp(x)
    with np.errstate(over="ignore"):  # of -3e38
        power = x * _LOG2_E
    return np.exp2(power)


def _exp2(x: Array) -> Array:
    return _flush(np.exp2(_flush(x))) if x.dtype == np.float32 else np.exp2(x)


def _flush(x: Array) -> Array:
    return np.where(np.abs(x) < _TINY, np.float32(0), x)


class _LibraryProducts(TorchDispatchMode):
    """Products of float32 matrices, inside this package's operators too, with operands rounded to TF32."""

    _PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "addmm_", "baddbmm_")

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        with self:
            if operator.namespace == "cmsa_fast":
                # Straight to the implementation: a call would come back to this mode.
                return operator.redispatch(_CPU, *arguments, **options)
            result = operator.decompose(*arguments, **options)  # matmul, for instance
        if result is not NotImplemented:
            return result
        if operator.overloadpacket.__name__ in self._PRODUCTS:
            *first, left, right = arguments
            arguments = (*first, round_to_tf32(left), round_to_tf32(right))
        return operator(*arguments, **options)


def round_to_tf32(x: torch.Tensor) -> torch.Tensor:
    """float32 rounded to the nearest TF32 number; other dtypes unchanged."""
    if x.dtype != torch.float32:
        return x
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
