"""The Triton kernels of the joint attention and of its tail, on a GPU or in Triton's interpreter."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.joint_oracle import (
    JointCase,
    assert_joint_within_budget,
    draw_joint,
    draw_tail,
    poisoned,
    run_joint,
)
from torch import Tensor

pytest.importorskip("triton")

from cmsa_fast.kernels.joint_attention import ops as joint_ops  # noqa: E402
from cmsa_fast.kernels.joint_attention.triton import tile_sizes as joint_tiles  # noqa: E402
from cmsa_fast.kernels.joint_attention.triton.backward_dq import launch_joint_backward  # noqa: E402
from cmsa_fast.kernels.joint_attention.triton.forward import launch_joint_forward  # noqa: E402
from cmsa_fast.kernels.joint_attention.triton.projection import launch_tail_forward  # noqa: E402
from cmsa_fast.kernels.joint_attention.triton.projection_backward import launch_tail_backward  # noqa: E402
from cmsa_fast.kernels.triton import launch  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float64, torch.float32, torch.float16]
if DEVICE == "cuda":  # the interpreter's products of bfloat16 are wrong
    DTYPES.append(torch.bfloat16)


def attention(*arguments: Tensor | None, scale: float = 1.0) -> Tensor:
    return joint_ops.joint_attention(*arguments, scale)  # type: ignore[arg-type]


def tail(*arguments: Tensor | None, relu: bool) -> Tensor:
    return joint_ops.joint_attention_tail(*arguments, relu)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _unwritten_memory_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    def filled(create: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def create_filled(*arguments: Any, **options: Any) -> Tensor:
            made = create(*arguments, **options)
            return made.fill_(math.nan) if made.is_floating_point() else made

        return create_filled

    monkeypatch.setattr(torch, "empty", filled(torch.empty))
    monkeypatch.setattr(torch, "empty_like", filled(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", filled(torch.Tensor.new_empty))


def _same(function: Callable[..., Tensor], expected: JointCase, found: JointCase) -> None:
    for one, other in zip(run_joint(function, expected), run_joint(function, found), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("queries", "keys", "width", "value_width", "batch"),
    [
        (1, 1, 5, 3, 1),
        (1, 20, 7, 7, 2),
        (18, 1, 7, 9, 2),
        (37, 41, 11, 13, 1),  # several blocks of queries and of keys, widths of one step
        (50, 13, 11, 7, 1),  # the queries' loop split over the grid
        (19, 35, 37, 5, 1),  # several steps over the width
        (19, 18, 5, 37, 1),
    ],
)
def test_attention_sizes(
    queries: int, keys: int, width: int, value_width: int, batch: int, dtype: torch.dtype
) -> None:
    case = draw_joint(queries, keys, width, value_width, batch, scale=0.4, dtype=dtype)
    assert_joint_within_budget(attention, case.to(DEVICE))


def test_attention_wider_than_one_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_joint_within_budget(attention, draw_joint(7, 9, 523, 600, 1, scale=0.05).to(DEVICE))
    monkeypatch.setattr(joint_tiles, "WIDEST_SLICE", 32)
    case = draw_joint(5, 19, 37, 41, 1, scale=0.2)
    assert_joint_within_budget(attention, case.to(DEVICE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("size", [30.0, 300.0])
def test_attention_with_large_logits(size: float, dtype: torch.dtype) -> None:
    cases = []
    for seed in range(3):
        case = draw_joint(17, 21, 13, 7, dtype=dtype, seed=seed)
        logits = case["query"].double() @ case["key"].double().mT
        factor = (size / float(logits.abs().max())) ** 0.5
        larger = {name: case[name] * factor for name in ("query", "key")}
        cases.append(case.with_inputs(**larger).to(DEVICE))
    assert_joint_within_budget(attention, cases)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_rows_with_all_their_weight_on_one_key(dtype: torch.dtype) -> None:
    """They attend to that key's value to the last bit, and their logits have no gradient at all."""
    case = draw_joint(18, 19, 19, 21, 1, masked=False, dtype=dtype).to(DEVICE)
    key = case["key"] + 100 * torch.eye(19, dtype=dtype, device=DEVICE)
    attended_to = torch.arange(18, device=DEVICE) % 7
    query = 0.1 * case["query"] + 100 * torch.eye(19, dtype=dtype, device=DEVICE)[attended_to]
    result, of_query, of_key, of_value = run_joint(
        attention, case.with_inputs(query=query, key=key)
    )
    assert torch.equal(result, case["value"][:, attended_to])
    assert not of_query.any()
    assert not of_key.any()
    expected = torch.zeros_like(of_value).double()
    expected.index_add_(1, attended_to, case.grad.double())
    error = (of_value.double() - expected).norm() / expected.norm()
    assert error <= torch.finfo(dtype).eps


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_attention_with_all_logits_at_one_extreme(sign: float) -> None:
    """A channel of 100 in queries and keys puts every logit at +-1e4, with differences of order 1."""
    cases = []
    for seed in range(3):
        case = draw_joint(17, 21, 13, 7, seed=seed)
        query, key = case["query"].clone(), case["key"].clone()
        query[..., 0], key[..., 0] = 100, sign * 100
        cases.append(case.with_inputs(query=query, key=key).to(DEVICE))
    assert_joint_within_budget(attention, cases)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_stands_in_masked_keys_has_no_influence(value: float) -> None:
    case = draw_joint(5, 35, 5, 7, 2).to(DEVICE)
    # A whole block of masked keys comes first, before any real one.
    case.mask[0, :20] = False  # type: ignore[index]
    _same(attention, case, poisoned(case, value))
    for gradient in run_joint(attention, case)[2:]:
        assert not gradient[~case.mask].any()  # type: ignore[operator]


def test_no_mask_is_a_mask_of_real_keys() -> None:
    case = draw_joint(18, 35, 5, 7, masked=False).to(DEVICE)
    everywhere = torch.ones(case["key"].shape[:2], dtype=torch.bool, device=DEVICE)
    _same(attention, case, JointCase(case.operation, case.inputs, everywhere, case.grad))


def test_without_a_real_key_nothing_is_attended_to() -> None:
    case = draw_joint(18, 19, 5, 7, 1).to(DEVICE)
    case.mask.fill_(False)  # type: ignore[union-attr]
    for part in run_joint(attention, case):
        assert not part.any()


def test_logsumexp_is_to_base_2() -> None:
    case = draw_joint(18, 19, 5, 7, masked=False, dtype=torch.float64).to(DEVICE)
    _, logsumexp = launch_joint_forward(*case.inputs, None, 0.3)  # type: ignore[arg-type]
    logits = 0.3 * case["query"] @ case["key"].mT
    expected = logits.logsumexp(-1) / math.log(2)
    torch.testing.assert_close(logsumexp.sum(-1), expected, rtol=1e-13, atol=1e-13)


def _transposed(part: Tensor) -> Tensor:
    return part.mT.contiguous().mT


def _strided(part: Tensor) -> Tensor:
    """Every second row and third channel of a larger tensor, the rest of which is NaN."""
    *outer, rows, channels = part.shape
    larger = part.new_full((*outer, 2 * rows, 3 * channels), math.nan)
    larger[..., ::2, ::3] = part
    return larger[..., ::2, ::3]


@pytest.mark.parametrize("layout", [_transposed, _strided])
def test_attention_of_views(layout: Callable[[Tensor], Tensor]) -> None:
    case = draw_joint(18, 19, 5, 7).to(DEVICE)
    views = tuple(layout(part) for part in case.inputs if part is not None)
    assert not any(part.is_contiguous() for part in views)
    mask = case.mask.T.contiguous().T  # type: ignore[union-attr]
    _same(attention, case, JointCase(case.operation, views, mask, layout(case.grad)))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_attention_of_expanded_input(axis: int) -> None:
    case = draw_joint(18, 19, 5, 7, masked=False).to(DEVICE)

    def spread(part: Tensor) -> Tensor:
        return part.narrow(axis, 0, 1).expand(part.shape)

    views = tuple(spread(part) for part in case.inputs if part is not None)
    copies = tuple(part.contiguous() for part in views)
    grad = spread(case.grad)
    _same(
        attention,
        JointCase(case.operation, copies, None, grad.contiguous()),
        JointCase(case.operation, views, None, grad),
    )


def test_derivatives_of_logits_beyond_the_range_of_float16() -> None:
    """A gradient scaled by 4096 gives one of the logits that float16 cannot hold."""
    case = draw_joint(18, 19, 5, 7, dtype=torch.float16, grad_spread=4.0).to(DEVICE)
    case = case.with_inputs(
        query=case["query"] / 1024, key=case["key"] / 1024, value=case["value"] * 32
    )
    scaled = JointCase(case.operation, case.inputs, case.mask, case.grad * 4096)
    assert scaled.grad.isfinite().all()
    logits_gradient = scaled.grad.double() @ case["value"].double().mT
    assert logits_gradient.abs().max() / 19 > torch.finfo(torch.float16).max
    exact = run_joint(attention, case.to(torch.float64))
    found = run_joint(attention, scaled)
    for part, true in zip(found[1:3], exact[1:3], strict=True):
        error = (part.double() / 4096 - true).norm() / true.norm()
        assert error <= 4 * torch.finfo(torch.float16).eps


@pytest.mark.parametrize("masked", [True, False])
def test_attention_gradcheck(masked: bool) -> None:
    case = draw_joint(2, 3, 2, 2, 1, dtype=torch.float64, masked=masked).to(DEVICE)
    inputs = [part.requires_grad_() for part in case.inputs if part is not None]
    assert torch.autograd.gradcheck(lambda *parts: attention(*parts, case.mask, scale=0.7), inputs)


def test_attention_repeats_itself() -> None:
    case = draw_joint(50, 13, 11, 7, 1).to(DEVICE)
    _same(attention, case, case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    ("places", "words", "width", "channels", "batch", "given"),
    [
        (1, 1, 5, 3, 1, True),
        (18, 3, 7, 19, 2, True),
        (19, 4, 37, 5, 1, False),  # without bias and mask
        (5, 6, 3, 1, 3, True),
    ],
)
def test_tail_sizes(
    places: int,
    words: int,
    width: int,
    channels: int,
    batch: int,
    given: bool,
    relu: bool,
    dtype: torch.dtype,
) -> None:
    sizes = (places, words, width, channels, batch)
    case = draw_tail(*sizes, relu=relu, bias=given, masked=given, dtype=dtype)
    assert_joint_within_budget(tail, case.to(DEVICE))


def test_tail_wider_than_one_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint_tiles, "WIDEST_SLICE", 32)
    case = draw_tail(5, 2, 37, 19, relu=True)
    assert_joint_within_budget(tail, case.to(DEVICE))


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_stands_in_padded_words_has_no_influence(value: float, relu: bool) -> None:
    case = draw_tail(5, 4, 3, 5, 2, relu=relu).to(DEVICE)
    _same(tail, case, poisoned(case, value))
    gradient = run_joint(tail, case)[1]
    assert not gradient.transpose(1, 2)[~case.mask].any()  # type: ignore[operator]


@pytest.mark.parametrize("relu", [True, False])
def test_nan_of_real_words_is_seen(relu: bool) -> None:
    case = draw_tail(5, 4, 3, 5, masked=False, relu=relu).to(DEVICE)
    case["attended"][1, 2, 3] = math.nan
    result = run_joint(tail, case)[0]
    seen = torch.zeros(2, 5, dtype=torch.bool, device=DEVICE)
    seen[1, 2] = True
    assert torch.equal(result.isnan().all(2), seen)
    assert torch.equal(result.isnan().any(2), seen)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("layout", [_transposed, _strided])
def test_tail_of_views(layout: Callable[[Tensor], Tensor], relu: bool) -> None:
    case = draw_tail(5, 4, 3, 6, bias=False, relu=relu).to(DEVICE)
    views = (layout(case["attended"]), layout(case["weight"]), None)
    mask = case.mask.T.contiguous().T  # type: ignore[union-attr]
    viewed = JointCase(case.operation, views, mask, layout(case.grad), case.options)
    if relu:
        _same(tail, case, viewed)
    else:  # in PyTorch's own products, whose order of summing depends on strides
        assert_joint_within_budget(tail, viewed)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_tail_of_expanded_input(axis: int) -> None:
    case = draw_tail(5, 4, 3, 6, relu=True).to(DEVICE)
    view = case["attended"].narrow(axis, 0, 1).expand(case["attended"].shape)
    _same(tail, case.with_inputs(attended=view.contiguous()), case.with_inputs(attended=view))


@pytest.mark.parametrize("relu", [True, False])
def test_tail_gradcheck(relu: bool) -> None:
    case = draw_tail(2, 3, 2, 2, 1, relu=relu, dtype=torch.float64).to(DEVICE)
    inputs = [part.requires_grad_() for part in case.inputs if part is not None]
    assert torch.autograd.gradcheck(lambda *parts: tail(*parts, case.mask, relu=relu), inputs)


def test_tail_repeats_itself() -> None:
    case = draw_tail(18, 4, 5, 7, 1, relu=True).to(DEVICE)
    _same(tail, case, case)


@pytest.mark.parametrize("dtype", [*DTYPES[:3], torch.bfloat16], ids=str)
def test_launchers_read_no_data(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """On meta tensors, which have none, the launches and the results' shapes are those of real ones."""
    launched = []
    monkeypatch.setattr(launch, "launch", lambda kernel, *_, **__: launched.append(kernel.__name__))
    case = draw_joint(18, 19, 5, 7, dtype=dtype).to("meta")
    attended, logsumexp = launch_joint_forward(*case.inputs, case.mask, 1.0)  # type: ignore[arg-type]
    assert attended.shape == case.grad.shape
    assert attended.dtype == dtype
    assert logsumexp.shape == (2, 18, 2)
    assert logsumexp.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    arguments = (case.grad, *case.inputs, case.mask, 1.0, attended, logsumexp)
    for found, part in zip(launch_joint_backward(*arguments), case.inputs, strict=True):  # type: ignore[arg-type]
        assert found.shape == part.shape  # type: ignore[union-attr]
        assert found.dtype == dtype

    case = draw_tail(5, 4, 3, 6, dtype=dtype).to("meta")
    for relu in (True, False):
        assert launch_tail_forward(*case.inputs, case.mask, relu).shape == case.grad.shape  # type: ignore[arg-type]
        gradients = launch_tail_backward(case.grad, *case.inputs, case.mask, relu)  # type: ignore[arg-type]
        for found, part in zip(gradients, case.inputs, strict=True):
            assert found.shape == part.shape  # type: ignore[union-attr]
            assert found.dtype == dtype  # type: ignore[union-attr]
    assert len(launched) == 1 + 4 + 1 + 2
