"""The Triton kernels as operators of PyTorch: registration, derivatives, graphs, autocast, FLOP."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.oracle import NAMES, Case, draw, fused, run
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cmsa_fast.kernels import cross_modal_attention
from cmsa_fast.kernels.separable_attention.numerics import word_weights
from cmsa_fast.nn import CMSA

pytest.importorskip("triton", reason="the kernels need Triton, which is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def on_device(case: Case) -> Case:
    moved = [
        None if part is None else part.to(DEVICE) for part in (case.word_mask, case.image_index)
    ]
    features = tuple(part.to(DEVICE) for part in case.features)
    return Case(features, *moved, case.grad.to(DEVICE))


def arguments(case: Case) -> tuple[Tensor | None, ...]:
    weight = word_weights(case.word_mask, case["word_query"])
    return (*case.features, weight, case.image_index)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("images", [None, 2])
def test_opcheck(images: int | None) -> None:
    from cmsa_fast.kernels.separable_attention import ops  # noqa: F401

    case = on_device(draw(9, 3, 5, 4, batch=3, images=images))
    forward = torch.ops.cmsa_fast.separable_forward.default
    attended, *state = forward(*arguments(case))
    for part in case.features:
        part.requires_grad_()
    torch.library.opcheck(forward, arguments(case))
    plain = [part if part is None else part.detach() for part in arguments(case)]
    backward = torch.ops.cmsa_fast.separable_backward.default
    torch.library.opcheck(backward, (case.grad, *plain, attended, state))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("masked", [False, True])
def test_opcheck_of_the_joint_attention(masked: bool) -> None:
    from cmsa_fast.kernels.joint_attention import ops as joint_ops  # noqa: F401

    operators = torch.ops.cmsa_fast
    query, key, value = (torch.randn(2, size, 4, device=DEVICE) for size in (5, 3, 3))
    mask = torch.tensor([[1, 0, 1], [1, 1, 1]], device=DEVICE).bool() if masked else None
    attended, logsumexp = operators.joint_forward(query, key, value, mask, 1.0)
    inputs = [part.clone().requires_grad_() for part in (query, key, value)]
    torch.library.opcheck(operators.joint_forward.default, (*inputs, mask, 1.0))
    arguments = (torch.randn_like(attended), query, key, value, mask, 1.0, attended, logsumexp)
    torch.library.opcheck(operators.joint_backward.default, arguments)

    tokens, weight = torch.randn(2, 2, 3, 4, device=DEVICE), torch.randn(5, 4, device=DEVICE)
    bias = torch.randn(5, device=DEVICE) if masked else None
    inputs = [
        None if part is None else part.clone().requires_grad_() for part in (tokens, weight, bias)
    ]
    for relu in (False, True):
        torch.library.opcheck(operators.joint_tail_forward.default, (*inputs, mask, relu))
        arguments = (torch.randn(2, 2, 5, device=DEVICE), tokens, weight, bias, mask, relu)
        torch.library.opcheck(operators.joint_tail_backward.default, arguments)


@pytest.mark.skipif(DEVICE == "cuda", reason="the kernels compute float64 in the interpreter alone")
@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("images", [None, 2])
def test_gradcheck(images: int | None, direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the kernels themselves; with a floor above every Z each row takes the direct form."""
    from cmsa_fast.kernels.separable_attention.triton import row_statistics as separable_statistics

    if direct:
        monkeypatch.setattr(separable_statistics, "FLOOR", {torch.float64: torch.inf})
    case = draw(4, 3, 2, 2, batch=3, images=images, dtype=torch.float64)
    features = [part.requires_grad_() for part in case.features]

    def attention(*features: Tensor) -> Tensor:
        return fused(*features, case.word_mask, image_index=case.image_index)

    assert torch.autograd.gradcheck(attention, features, fast_mode=True)


def test_double_backward_is_refused_in_words() -> None:
    case = on_device(draw(3, 3, 2, batch=1))
    features = [part.requires_grad_() for part in case.features]
    result = fused(*features, case.word_mask)
    gradients = torch.autograd.grad(result, features, case.grad, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative.*backend=\"reference\""):
        torch.autograd.grad(gradients[0].square().sum(), features)


@pytest.mark.parametrize("name", NAMES)
def test_one_input_asks_for_a_gradient(name: str) -> None:
    case = on_device(draw(5, 3, 4, batch=2))
    expected = dict(zip(NAMES, run(fused, case)[1:], strict=True))[name]
    features = dict(zip(NAMES, case.features, strict=True))
    features[name] = features[name].detach().requires_grad_()
    result = fused(
        *(part.detach() if key != name else part for key, part in features.items()), case.word_mask
    )
    (found,) = torch.autograd.grad(result, features[name], case.grad)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_is_the_cast_of_the_inputs(dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and DEVICE == "cpu":
        pytest.skip("Triton's interpreter multiplies bfloat16 wrongly")
    case = on_device(draw(9, 3, 5, 4, batch=2))
    expected = run(fused, case.to(dtype))
    with torch.autocast(DEVICE, dtype=dtype):
        found = run(fused, replace(case, grad=case.grad.to(dtype)))
    assert found[0].dtype == dtype
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one.float(), other.float())


def small_cmsa(backend: str) -> tuple[CMSA, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    module = CMSA(6, 5, 4, backend=backend).to(DEVICE)
    visual, words = torch.randn(2, 6, 3, 4, device=DEVICE), torch.randn(2, 4, 5, device=DEVICE)
    word_mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.bool, device=DEVICE)
    return module, (visual, words, word_mask)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("with_index", [False, True])
def test_a_module_compiles_to_one_graph(with_index: bool, backend: str) -> None:
    """Forward and backward, with the checks of values turned into assertions in the graph."""
    module, inputs = small_cmsa(backend)
    index = torch.tensor([1, 0], device=DEVICE) if with_index else None
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    results = []
    for function in (module, compiled):
        module.zero_grad()
        fused_features = function(*inputs, image_index=index)
        fused_features.square().sum().backward()
        results.append(
            [fused_features.detach(), *(part.grad.clone() for part in module.parameters())]
        )
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_compiled_module_refuses_a_expression_without_words() -> None:
    module, (visual, words, word_mask) = small_cmsa("auto")
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    compiled(visual, words, word_mask)
    if DEVICE == "cuda":
        pytest.skip("an assertion that fails on a GPU ends the process's use of it")
    with pytest.raises(RuntimeError, match="a true word in every expression"):
        compiled(visual, words, torch.zeros_like(word_mask))


@pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs need a GPU")
def test_a_cuda_graph_captures_forward_and_backward() -> None:
    case = on_device(draw(40, 5, 32, 32, batch=2, dtype=torch.bfloat16))
    features = [part.requires_grad_() for part in case.features]

    def step() -> list[Tensor]:
        result = fused(*features, case.word_mask)
        return [result, *torch.autograd.grad(result, features, case.grad)]

    expected = [part.clone() for part in step()]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    for one, other in zip(expected, captured, strict=True):
        assert torch.equal(one, other)


def test_flop_are_those_of_the_products() -> None:
    places, words, width, value_width, batch = 7, 3, 5, 4, 2
    case = on_device(draw(places, words, width, value_width, batch, padded=False))
    features = [part.requires_grad_() for part in case.features]
    with FlopCounterMode(display=False) as counter:
        result = cross_modal_attention(*features, backend="triton")
    expected = sum(
        2 * batch * (places * keys * (width + value_width + 2 * words) + words * keys * width)
        for keys in (places, words)
    )
    assert counter.get_total_flops() == expected
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(result, features, case.grad)
    expected = sum(
        2 * batch * places * keys * (3 * width + 2 * value_width + 6 * words)
        + 4 * batch * words * keys * width
        for keys in (places, words)
    )
    assert counter.get_total_flops() == expected
