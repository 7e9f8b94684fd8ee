"""The Triton kernels of the joint attention and of its tail, on a GPU or in Triton's interpreter."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from support.joint_oracle import (
    draw_joint,
    draw_tail,
    poisoned,
    with_constant_channel,
    with_key_offset,
    with_largest_logit,
)
from support.oracle import Case, Function, assert_identical, assert_within_budget, errors, exact, run
from support.poison import poison_new_buffers
from torch import Tensor

pytest.importorskip("triton", reason="the kernels need Triton, which is not installed")

from cmsa_fast.kernels.joint_attention import ops  # noqa: E402
from cmsa_fast.kernels.joint_attention.triton import tile_sizes  # noqa: E402
from cmsa_fast.kernels.joint_attention.triton.backward import launch_joint_backward  # noqa: E402
from cmsa_fast.kernels.joint_attention.triton.forward import launch_joint_forward  # noqa: E402
from cmsa_fast.kernels.joint_attention.triton.projection import (  # noqa: E402
    launch_tail_backward,
    launch_tail_forward,
)
from cmsa_fast.kernels.triton import launch  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter multiplies bfloat16 wrongly, and on a GPU the kernels do not take float64.
DTYPES = [torch.bfloat16 if DEVICE == "cuda" else torch.float64, torch.float32, torch.float16]
in_float64 = pytest.mark.skipif(DEVICE == "cuda", reason="the kernels compute float64 in the interpreter only")


def attention(*arguments: Tensor | None, scale: float = 1.0) -> Tensor:
    return ops.joint_attention(*arguments, scale)


def tail(*arguments: Tensor | None, relu: bool) -> Tensor:
    return ops.joint_attention_tail(*arguments, relu)


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    poison_new_buffers(monkeypatch)


def assert_same(function: Function, one: Case, other: Case) -> None:
    assert_identical(run(function, one), run(function, other))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "sizes",  # queries, keys, width, value width, batch
    [
        (1, 1, 5, 3, 1),
        (1, 20, 7, 7, 2),
        (18, 1, 7, 9, 2),
        (37, 41, 11, 13, 1),  # several blocks of queries and of keys, widths of one step
        (50, 13, 11, 7, 1),  # the loop over queries split over the grid
        (19, 35, 37, 5, 1),  # several steps over the width
        (19, 18, 5, 37, 1),
    ],
    ids=str,
)
def test_attention_sizes(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_within_budget(attention, draw_joint(*sizes, scale=0.4, dtype=dtype).to(DEVICE))


def test_attention_wider_than_one_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_within_budget(attention, draw_joint(7, 9, 523, 600, 1, scale=0.05).to(DEVICE))
    monkeypatch.setattr(tile_sizes, "WIDEST_SLICE", 32)
    case = draw_joint(5, 19, 37, 41, 1, scale=0.2)
    assert_within_budget(attention, case.to(DEVICE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("size", [30.0, 300.0])
def test_attention_with_large_logits(size: float, dtype: torch.dtype) -> None:
    cases = [draw_joint(17, 21, 13, 7, dtype=dtype, seed=seed) for seed in range(3)]
    assert_within_budget(attention, [with_largest_logit(case, size).to(DEVICE) for case in cases])


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_rows_with_all_their_weight_on_one_key(dtype: torch.dtype) -> None:
    """The result is bitwise that key's value, and the gradient of the logits is exactly zero."""
    case = draw_joint(18, 19, 19, 21, 1, masked=False, dtype=dtype).to(DEVICE)
    key = case["key"] + 100 * torch.eye(19, dtype=dtype, device=DEVICE)
    attended_to = torch.arange(18, device=DEVICE) % 7
    query = 0.1 * case["query"] + 100 * torch.eye(19, dtype=dtype, device=DEVICE)[attended_to]
    result, grad_query, grad_key, grad_value = run(attention, case.with_inputs(query=query, key=key))
    assert torch.equal(result, case["value"][:, attended_to])
    assert not grad_query.any()
    assert not grad_key.any()
    expected = torch.zeros_like(grad_value).double()
    expected.index_add_(1, attended_to, case.grad.double())
    error = (grad_value.double() - expected).norm() / expected.norm()
    assert error <= torch.finfo(dtype).eps


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_constant_channel_makes_all_logits_large(sign: float) -> None:
    cases = [draw_joint(17, 21, 13, 7, seed=seed) for seed in range(3)]
    cases = [with_constant_channel(case, sign).to(DEVICE) for case in cases]
    assert_within_budget(attention, cases)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.float16, 1e-3)], ids=str)
def test_common_offset_of_keys_costs_no_accuracy(dtype: torch.dtype, limit: float) -> None:
    """The literal form loses three digits, in float16 all."""
    case = with_key_offset(draw_joint(17, 21, 13, 7, dtype=dtype), 1e3)
    truth = exact(case)
    assert max(errors(attention, poisoned(case, math.nan).to(DEVICE), truth)) < limit


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_masked_keys_have_no_influence(value: float) -> None:
    case = draw_joint(5, 35, 5, 7, 2).to(DEVICE)
    # The first block of keys is masked as a whole.
    case.mask[0, :20] = False
    assert_same(attention, case, poisoned(case, value))
    for gradient in run(attention, case)[2:]:
        assert not gradient[~case.mask].any()


def test_no_mask_equals_a_mask_of_true_keys() -> None:
    case = draw_joint(18, 35, 5, 7, masked=False).to(DEVICE)
    everywhere = torch.ones(case["key"].shape[:2], dtype=torch.bool, device=DEVICE)
    assert_same(attention, case, replace(case, mask=everywhere))


def test_result_is_zero_without_an_unmasked_key() -> None:
    case = draw_joint(18, 19, 5, 7, 1).to(DEVICE)
    case.mask.fill_(False)
    for part in run(attention, case):
        assert not part.any()


@in_float64
def test_logsumexp_is_in_base_2() -> None:
    case = draw_joint(18, 19, 5, 7, masked=False, dtype=torch.float64).to(DEVICE)
    _, logsumexp = launch_joint_forward(*case.inputs, None, 0.3)
    logits = 0.3 * case["query"] @ case["key"].mT
    expected = logits.logsumexp(-1) / math.log(2)
    torch.testing.assert_close(logsumexp.sum(-1), expected, rtol=1e-13, atol=1e-13)


def _transposed(part: Tensor) -> Tensor:
    return part.mT.contiguous().mT


def _strided(part: Tensor) -> Tensor:
    """Every second row and third channel of a larger tensor that is NaN elsewhere."""
    *outer, rows, channels = part.shape
    larger = part.new_full((*outer, 2 * rows, 3 * channels), math.nan)
    larger[..., ::2, ::3] = part
    return larger[..., ::2, ::3]


@pytest.mark.parametrize("layout", [_transposed, _strided])
def test_attention_of_views(layout: Callable[[Tensor], Tensor]) -> None:
    case = draw_joint(18, 19, 5, 7).to(DEVICE)
    views = tuple(layout(part) for part in case.inputs if part is not None)
    assert not any(part.is_contiguous() for part in views)
    mask = case.mask.T.contiguous().T
    assert_same(attention, case, replace(case, inputs=views, mask=mask, grad=layout(case.grad)))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_attention_of_expanded_input(axis: int) -> None:
    case = draw_joint(18, 19, 5, 7, masked=False).to(DEVICE)

    def expand(part: Tensor) -> Tensor:
        return part.narrow(axis, 0, 1).expand(part.shape)

    views = tuple(expand(part) for part in case.inputs if part is not None)
    copies = tuple(part.contiguous() for part in views)
    grad = expand(case.grad)
    assert_same(
        attention,
        replace(case, inputs=copies, grad=grad.contiguous()),
        replace(case, inputs=views, grad=grad),
    )


def test_gradients_of_logits_beyond_the_range_of_float16() -> None:
    """With a gradient scaled by 4096, float16 cannot hold the gradient of the logits."""
    case = draw_joint(18, 19, 5, 7, dtype=torch.float16, grad_spread=4.0).to(DEVICE)
    case = case.with_inputs(query=case["query"] / 1024, key=case["key"] / 1024, value=case["value"] * 32)
    scaled = replace(case, grad=case.grad * 4096)
    assert scaled.grad.isfinite().all()
    logits_gradient = scaled.grad.double() @ case["value"].double().mT
    assert logits_gradient.abs().max() / 19 > torch.finfo(torch.float16).max
    outputs = run(attention, scaled)
    for part, numbers in zip(outputs[1:3], exact(case)[1:3], strict=True):
        true = torch.from_numpy(numbers).to(DEVICE)
        error = (part.double() / 4096 - true).norm() / true.norm()
        assert error <= 4 * torch.finfo(torch.float16).eps


@in_float64
@pytest.mark.parametrize("masked", [True, False])
def test_attention_gradcheck(masked: bool) -> None:
    case = draw_joint(2, 3, 2, 2, 1, dtype=torch.float64, masked=masked).to(DEVICE)
    inputs = [part.requires_grad_() for part in case.inputs if part is not None]
    assert torch.autograd.gradcheck(lambda *parts: attention(*parts, case.mask, scale=0.7), inputs)


def test_attention_is_deterministic() -> None:
    case = draw_joint(50, 13, 11, 7, 1).to(DEVICE)
    assert_same(attention, case, case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    ("sizes", "given"),  # places, words, width, channels, batch; whether bias and mask are given
    [
        ((1, 1, 5, 3, 1), True),
        ((18, 3, 7, 19, 2), True),
        ((19, 4, 37, 5, 1), False),
        ((5, 6, 3, 1, 3), True),
    ],
    ids=str,
)
def test_tail_sizes(sizes: tuple[int, ...], given: bool, relu: bool, dtype: torch.dtype) -> None:
    case = draw_tail(*sizes, relu=relu, bias=given, masked=given, dtype=dtype)
    assert_within_budget(tail, case.to(DEVICE))


def test_tail_wider_than_one_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tile_sizes, "WIDEST_SLICE", 32)
    case = draw_tail(5, 2, 37, 19, relu=True)
    assert_within_budget(tail, case.to(DEVICE))


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_padded_words_have_no_influence(value: float, relu: bool) -> None:
    case = draw_tail(5, 4, 3, 5, 2, relu=relu).to(DEVICE)
    assert_same(tail, case, poisoned(case, value))
    gradient = run(tail, case)[1]
    assert not gradient.transpose(1, 2)[~case.mask].any()


@pytest.mark.parametrize("relu", [True, False])
def test_nan_of_real_words_propagates(relu: bool) -> None:
    case = draw_tail(5, 4, 3, 5, masked=False, relu=relu).to(DEVICE)
    case["attended"][1, 2, 3] = math.nan
    result = run(tail, case)[0]
    expected = torch.zeros(2, 5, dtype=torch.bool, device=DEVICE)
    expected[1, 2] = True
    assert torch.equal(result.isnan().all(2), expected)
    assert torch.equal(result.isnan().any(2), expected)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("layout", [_transposed, _strided])
def test_tail_of_views(layout: Callable[[Tensor], Tensor], relu: bool) -> None:
    case = draw_tail(5, 4, 3, 6, bias=False, relu=relu).to(DEVICE)
    views = (layout(case["attended"]), layout(case["weight"]), None)
    mask = case.mask.T.contiguous().T
    viewed = replace(case, inputs=views, mask=mask, grad=layout(case.grad))
    if relu:
        assert_same(tail, case, viewed)
    else:  # PyTorch's matmul, whose order of summation depends on strides
        assert_within_budget(tail, viewed)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_tail_of_expanded_input(axis: int) -> None:
    case = draw_tail(5, 4, 3, 6, relu=True).to(DEVICE)
    view = case["attended"].narrow(axis, 0, 1).expand(case["attended"].shape)
    assert_same(tail, case.with_inputs(attended=view.contiguous()), case.with_inputs(attended=view))


@in_float64
@pytest.mark.parametrize("relu", [True, False])
def test_tail_gradcheck(relu: bool) -> None:
    case = draw_tail(2, 3, 2, 2, 1, relu=relu, dtype=torch.float64).to(DEVICE)
    inputs = [part.requires_grad_() for part in case.inputs if part is not None]
    assert torch.autograd.gradcheck(lambda *parts: tail(*parts, case.mask, relu=relu), inputs)


def test_tail_is_deterministic() -> None:
    case = draw_tail(18, 4, 5, 7, 1, relu=True).to(DEVICE)
    assert_same(tail, case, case)


@pytest.mark.parametrize("dtype", sorted({*DTYPES, torch.bfloat16}, key=str), ids=str)
def test_launchers_read_no_data(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """On meta tensors, which hold no data, the launches and the results' shapes and dtypes are complete."""
    launched = []
    monkeypatch.setattr(launch, "launch", lambda kernel, *_, **__: launched.append(kernel.__name__))
    case = draw_joint(18, 19, 5, 7, dtype=dtype).to("meta")
    attended, logsumexp = launch_joint_forward(*case.inputs, case.mask, 1.0)
    assert attended.shape == case.grad.shape
    assert attended.dtype == dtype
    assert logsumexp.shape == (2, 18, 2)
    assert logsumexp.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    arguments = (case.grad, *case.inputs, case.mask, 1.0, attended, logsumexp)
    for output, part in zip(launch_joint_backward(*arguments), case.inputs, strict=True):
        assert output.shape == part.shape
        assert output.dtype == dtype

    case = draw_tail(5, 4, 3, 6, dtype=dtype).to("meta")
    assert launch_tail_forward(*case.inputs, case.mask).shape == case.grad.shape
    gradients = launch_tail_backward(case.grad, *case.inputs, case.mask)
    for output, part in zip(gradients, case.inputs, strict=True):
        assert output.shape == part.shape
        assert output.dtype == dtype
    assert len(launched) == 2 + 4 + 1 + 2
