"""The Triton kernels as PyTorch operators: opcheck, derivatives, graphs, autocast, FLOP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from support.oracle import Case, assert_identical, run
from support.separable_oracle import NAMES, draw, eager, fused
from support.tail_oracle import draw as draw_level_tail
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cmsa_fast.kernels.separable_attention.numerics import word_weights
from cmsa_fast.nn import CMSA

pytest.importorskip("triton", reason="the kernels need Triton, which is not installed")

from cmsa_fast.kernels.joint_attention import ops as joint_ops  # noqa: E402, F401
from cmsa_fast.kernels.separable_attention import ops  # noqa: E402, F401
from cmsa_fast.kernels.separable_attention.state import Sizes  # noqa: E402
from cmsa_fast.kernels.separable_attention.triton import logits  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPERATORS = torch.ops.cmsa_fast

ignores_non_leaf_grad = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
with_and_without_index = pytest.mark.parametrize("images", [None, 2])


def arguments(case: Case) -> tuple[Tensor | None, ...]:
    weight = word_weights(case.mask, case["word_query"])
    return (*case.inputs, weight, case.options["image_index"])


@ignores_non_leaf_grad
@with_and_without_index
def test_opcheck_of_the_separable_attention(images: int | None) -> None:
    case = draw(5, 3, 4, 2, batch=2, images=images).to(DEVICE)
    attended, *state = OPERATORS.separable_forward(*arguments(case))
    plain = arguments(case)
    backward = (case.grad, attended, state, case.options["image_index"], Sizes.of(case.inputs))
    torch.library.opcheck(OPERATORS.separable_backward.default, backward)
    leaves = [part.clone().requires_grad_() for part in case.inputs]
    torch.library.opcheck(OPERATORS.separable_forward.default, (*leaves, *plain[6:]))


@ignores_non_leaf_grad
@with_and_without_index
def test_opcheck_of_the_level_tail(images: int | None) -> None:
    case = draw_level_tail(5, 4, 3, 2, 2, images=images).to(DEVICE)
    index = case.options["image_index"]
    leaves = [part.clone().requires_grad_() for part in case.inputs]
    torch.library.opcheck(OPERATORS.level_tail_forward.default, (*leaves, index))
    backward = (case.grad, *case.inputs[:2], index, images or 3, 3)
    torch.library.opcheck(OPERATORS.level_tail_backward.default, backward)


@ignores_non_leaf_grad
@pytest.mark.parametrize("masked", [False, True])
def test_opcheck_of_the_joint_attention(masked: bool) -> None:
    query, key, value = (torch.randn(2, size, 4, device=DEVICE) for size in (5, 3, 3))
    mask = torch.tensor([[1, 0, 1], [1, 1, 1]], device=DEVICE).bool() if masked else None
    attended, logsumexp = OPERATORS.joint_forward(query, key, value, mask, 1.0)
    inputs = [part.clone().requires_grad_() for part in (query, key, value)]
    backward = (torch.randn_like(attended), query, key, value, mask, 1.0)
    for name, state in (("joint", (attended, logsumexp)), ("joint_eager", ())):
        torch.library.opcheck(getattr(OPERATORS, f"{name}_forward").default, (*inputs, mask, 1.0))
        torch.library.opcheck(getattr(OPERATORS, f"{name}_backward").default, (*backward, *state))


@ignores_non_leaf_grad
@pytest.mark.parametrize("given", [False, True])
def test_opcheck_of_the_joint_tail(given: bool) -> None:
    """With mask and bias, or without both."""
    tokens, weight = torch.randn(2, 2, 3, 4, device=DEVICE), torch.randn(5, 4, device=DEVICE)
    mask = torch.tensor([[1, 0, 1], [1, 1, 1]], device=DEVICE).bool() if given else None
    bias = torch.randn(5, device=DEVICE) if given else None
    inputs = [None if part is None else part.clone().requires_grad_() for part in (tokens, weight, bias)]
    grad, mean = torch.randn(2, 2, 5, device=DEVICE), torch.randn(2, 2, 4, device=DEVICE)
    for name, backward in (
        ("joint_tail", (tokens, weight, bias, mask)),
        ("joint_eager_tail", (tokens, weight, bias, mask)),
        ("joint_linear_tail", (mean, weight, mask, 3)),
    ):
        torch.library.opcheck(getattr(OPERATORS, f"{name}_forward").default, (*inputs, mask))
        torch.library.opcheck(getattr(OPERATORS, f"{name}_backward").default, (grad, *backward))


@pytest.mark.skipif(DEVICE == "cuda", reason="the kernels compute float64 in the interpreter only")
@pytest.mark.parametrize(("images", "direct"), [(2, False), (None, True)])
def test_gradcheck(images: int | None, direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the kernels themselves; with an infinite floor all rows take the direct form."""
    if direct:
        monkeypatch.setattr(logits, "FLOOR", {torch.float64: torch.inf})
    case = draw(4, 3, 2, 2, batch=3, images=images, dtype=torch.float64)
    features = [part.requires_grad_() for part in case.inputs]

    def attention(*features: Tensor) -> Tensor:
        return fused(*features, case.mask, **case.options)

    assert torch.autograd.gradcheck(attention, features, fast_mode=True)


def test_double_backward_raises() -> None:
    case = draw(3, 3, 2, batch=1).to(DEVICE)
    features = [part.requires_grad_() for part in case.inputs]
    result = fused(*features, case.mask)
    gradients = torch.autograd.grad(result, features, case.grad, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative.*backend=\"reference\""):
        torch.autograd.grad(gradients[0].square().sum(), features)


def test_gradients_of_single_inputs() -> None:
    case = draw(5, 3, 4, batch=1).to(DEVICE)
    for name, expected in zip(NAMES, run(fused, case)[1:], strict=True):
        features = {key: part.detach() for key, part in case.given.items()}
        features[name].requires_grad_()
        result = fused(*features.values(), case.mask)
        assert_identical([expected], torch.autograd.grad(result, features[name], case.grad))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_casts_the_inputs(dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and DEVICE == "cpu":
        pytest.skip("Triton's interpreter multiplies bfloat16 wrongly")
    case = draw(9, 3, 5, 4, batch=2).to(DEVICE)
    expected = run(fused, case.to(dtype))
    with torch.autocast(DEVICE, dtype=dtype):
        result, *gradients = run(fused, replace(case, grad=case.grad.to(dtype)))
    assert result.dtype == dtype
    assert_identical(expected, [result, *(part.to(dtype) for part in gradients)])


def small_cmsa(backend: str) -> tuple[CMSA, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    module = CMSA(6, 5, 4, backend=backend).to(DEVICE)
    visual, words = torch.randn(2, 6, 3, 4, device=DEVICE), torch.randn(2, 4, 5, device=DEVICE)
    word_mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.bool, device=DEVICE)
    return module, (visual, words, word_mask)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("with_index", [False, True])
def test_module_compiles_to_one_graph(with_index: bool, backend: str) -> None:
    """Forward and backward; checks of values become assertions in the graph."""
    module, inputs = small_cmsa(backend)
    index = torch.tensor([1, 0], device=DEVICE) if with_index else None
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    results = []
    for function in (module, compiled):
        module.zero_grad()
        result = function(*inputs, image_index=index)
        result.square().sum().backward()
        results.append([result.detach(), *(part.grad.clone() for part in module.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_compiled_module_refuses_an_expression_without_words() -> None:
    module, (visual, words, word_mask) = small_cmsa("auto")
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    compiled(visual, words, word_mask)
    if DEVICE == "cuda":
        pytest.skip("after a failed assertion on a GPU the process cannot use it")
    with pytest.raises(RuntimeError, match="a true word in every expression"):
        compiled(visual, words, torch.zeros_like(word_mask))


@pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs need a GPU")
def test_cuda_graph_captures_forward_and_backward() -> None:
    case = draw(40, 5, 32, 32, batch=2, dtype=torch.bfloat16).to(DEVICE)
    features = [part.requires_grad_() for part in case.inputs]

    def step() -> list[Tensor]:
        result = fused(*features, case.mask)
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
    assert_identical(expected, captured)


@pytest.mark.parametrize("attention", [eager, fused])
def test_flop_are_those_of_the_products(attention: Callable[..., Tensor]) -> None:
    places, words, width, value_width, batch = 7, 3, 5, 4, 2
    case = draw(places, words, width, value_width, batch, padded=False).to(DEVICE)
    features = [part.requires_grad_() for part in case.inputs]
    with FlopCounterMode(display=False) as counter:
        result = attention(*features)
    pairs, word_pairs = places * (width + value_width), words * words * width
    over_places = places * pairs + 2 * places * places * words + words * places * width
    over_words = words * pairs + word_pairs
    assert counter.get_total_flops() == 2 * batch * (over_places + over_words)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(result, features, case.grad)
    over_places = places * places * (3 * width + 2 * value_width + 6 * words) + 2 * words * places * width
    over_words = 2 * words * pairs + 2 * word_pairs
    assert counter.get_total_flops() == 2 * batch * (over_places + over_words)
