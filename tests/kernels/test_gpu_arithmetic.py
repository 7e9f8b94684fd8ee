"""`support.gpu_arithmetic` against numbers whose results on a GPU are known."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="the kernels need Triton, which is not installed")

import triton.language as tl  # noqa: E402
from support.gpu_arithmetic import gpu_arithmetic, tf32_products  # noqa: E402

from cmsa_fast.kernels.triton.launch import interpreted, precision  # noqa: E402

pytestmark = pytest.mark.skipif(not interpreted(), reason="the kernels run on a GPU")


@pytest.fixture(autouse=True)
def _on_a_gpu() -> Iterator[None]:
    with gpu_arithmetic():
        yield


@triton.jit
def _dot(left, right, out, PRECISION: tl.constexpr):
    number = tl.arange(0, 16)
    tile = number[:, None] * 16 + number[None, :]
    product = tl.dot(tl.load(left + tile), tl.load(right + tile), input_precision=PRECISION)
    tl.store(out + tile, product)


@triton.jit
def _elementwise(x, y, out, OPERATION: tl.constexpr):
    number = tl.arange(0, 16)
    one, other = tl.load(x + number), tl.load(y + number)
    if OPERATION == "add":
        result = one + other
    elif OPERATION == "multiply":
        result = one * other
    elif OPERATION == "divide":
        result = (one / other).to(one.dtype)
    elif OPERATION == "negate":
        result = -one
    elif OPERATION == "maximum":
        result = tl.maximum(one, other)
    elif OPERATION == "select":
        result = tl.where(one < other, one, other)
    elif OPERATION == "exp":
        result = tl.exp(one)
    elif OPERATION == "exp2":
        result = tl.exp2(one)
    elif OPERATION == "sum":
        result = one + tl.sum(other, axis=0)
    elif OPERATION == "fma":
        result = tl.fma(one, other, other)
    else:
        result = one
    tl.store(out + number, result.to(out.dtype.element_ty))


def product(left: Tensor, right: Tensor, input_precision: str = "ieee") -> Tensor:
    out = torch.empty(16, 16)
    _dot[(1,)](left, right, out, input_precision)
    return out


def elementwise(operation: str, x: Tensor, y: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
    out = torch.empty(16, dtype=dtype or x.dtype)
    _elementwise[(1,)](x, x if y is None else y, out, operation)
    return out


def numbers(dtype: torch.dtype, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_products_of_16_bit_numbers_are_exact_and_summed_in_float32(dtype: torch.dtype) -> None:
    left, right = numbers(dtype, 16, 16), numbers(dtype, 16, 16, seed=1)
    torch.testing.assert_close(product(left, right), left.float() @ right.float(), rtol=1e-6, atol=1e-6)
    # 3 * 2^-12 added to 1 is lost in the result's 8 or 11 bits if sums are not in float32.
    left = torch.zeros(16, 16, dtype=dtype)
    left[:, 0], left[:, 1:4] = 1, 2.0**-6
    right = torch.full((16, 16), 2.0**-6, dtype=dtype)
    right[0] = 1
    assert (product(left, right) == 1 + 3 * 2.0**-12).all()


@pytest.mark.parametrize(
    ("input_precision", "number", "expected"),
    [
        ("tf32", 1 + 2.0**-10, 1 + 2.0**-10),
        ("tf32", 1 + 2.0**-11, 1.0),
        ("tf32", -1 - 2.0**-10 - 2.0**-11 - 2.0**-23, -1 - 2.0**-10),
        ("ieee", 1 + 2.0**-11, 1 + 2.0**-11),
    ],
)
def test_tf32_products_truncate_their_operands(input_precision: str, number: float, expected: float) -> None:
    matrix, ones = torch.full((16, 16), number), torch.eye(16)
    assert (product(matrix, ones, input_precision) == expected).all()
    assert (product(ones, matrix, input_precision) == expected).all()


def test_products_of_three_tf32_parts_are_refused() -> None:
    with pytest.raises(Exception, match="products with .*TF32x3 are not emulated"):
        product(torch.eye(16), torch.eye(16), "tf32x3")


def test_conversion_to_bfloat16_rounds_to_nearest_even() -> None:
    special = [1 + 2.0**-8, 1 + 3 * 2.0**-8, 2 - 2.0**-9, 3.4e38, torch.inf, -torch.inf, torch.nan, -0.0, 1e-40]
    x = torch.cat([torch.tensor(special), numbers(torch.float32, 16 - len(special))])
    converted = elementwise("convert", x, dtype=torch.bfloat16)
    torch.testing.assert_close(converted, x.bfloat16(), rtol=0, atol=0, equal_nan=True)
    assert converted[:3].tolist() == [1.0, 1 + 2.0**-6, 2.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_bfloat16_converts_exactly(dtype: torch.dtype) -> None:
    x = numbers(torch.bfloat16, 16)
    assert torch.equal(elementwise("convert", x, dtype=dtype), x.to(dtype))


@pytest.mark.parametrize("operation", ["add", "multiply", "divide", "negate", "maximum", "select"])
def test_bfloat16_arithmetic_rounds_its_result(operation: str) -> None:
    x, y = numbers(torch.bfloat16, 16), numbers(torch.bfloat16, 16, seed=1)
    expected = {
        "add": x + y,
        "multiply": x * y,
        "divide": x / y,
        "negate": -x,
        "maximum": torch.maximum(x, y),
        "select": torch.minimum(x, y),
    }
    assert torch.equal(elementwise(operation, x, y), expected[operation])


@pytest.mark.parametrize("operation", ["sum", "fma"])
def test_other_bfloat16_arithmetic_is_refused(operation: str) -> None:
    with pytest.raises(Exception, match="this operation is not emulated for bfloat16"):
        elementwise(operation, numbers(torch.bfloat16, 16))
    assert elementwise(operation, numbers(torch.float32, 16)).isfinite().all()


def test_exp_is_a_power_of_two() -> None:
    """The product with log2(e) is rounded: an error of half a unit of 115 in the exponent of exp(-80)."""
    x = torch.linspace(-80, 0, 16)
    error = elementwise("exp", x).double() / x.double().exp() - 1
    assert 1e-6 < error.abs().max() < 4e-6
    assert elementwise("exp", x.double()).allclose(x.double().exp(), rtol=1e-15)


def test_exp2_flushes_subnormal_numbers() -> None:
    x = torch.full((16,), -127.0)
    x[0], x[1] = -126, 1e-40
    assert elementwise("exp2", x).tolist() == [2.0**-126, 1.0, *[0.0] * 14]


def test_tf32_products_of_the_library_round_to_nearest() -> None:
    library = torch.library.Library("cmsa_fast", "FRAGMENT")
    library.define("test_product(Tensor left, Tensor right) -> Tensor")
    library.impl("test_product", torch.matmul, "CPU")
    matrix = torch.full((4, 4), 1 + 2.0**-11 + 2.0**-12)
    before = precision(torch.float32)
    with tf32_products():
        assert precision(torch.float32) == "tf32"
        for product in (
            torch.ops.cmsa_fast.test_product(matrix, torch.eye(4)),
            torch.eye(4) @ matrix,
            torch.zeros(1, 4, 4).baddbmm_(matrix[None], torch.eye(4)[None]),
        ):
            assert (product == 1 + 2.0**-10).all()
        assert torch.equal(matrix.double() @ torch.eye(4).double(), matrix.double())
    assert precision(torch.float32) == before
    assert torch.equal(matrix @ torch.eye(4), matrix)
