"""The tail of a CMSA level, written straight to its place, against the literal concatenation."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from joint_oracle import JointCase, Operation, assert_joint_within_budget, run_joint
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from cmsa_fast.kernels import BACKENDS, checks, level_tail
from cmsa_fast.nn import CMSA

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
NAMES = ("attended", "output_weight", "unit_visual", "mean_word", "coordinates")

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the kernel needs Triton"
)
TRITON = pytest.param("triton", marks=needs_triton)


def runs(backend: str, dtype: torch.dtype) -> bool:
    """The interpreter multiplies bfloat16 wrongly; the GPU's kernel refuses float64."""
    return backend != "triton" or dtype != (torch.float64 if ON_GPU else torch.bfloat16)


def tail(
    *inputs: Tensor | None, image_index: Tensor | None = None, backend: str = "torch"
) -> Tensor:
    """The last of the inputs is the mask of `joint_oracle`, which a tail has not."""
    features = [part.to(DEVICE) for part in inputs[:-1] if part is not None]
    index = None if image_index is None else image_index.to(DEVICE)
    return level_tail(*features, image_index=index, backend=backend).cpu()  # type: ignore[misc]


def literal(
    attended: Tensor,
    weight: Tensor,
    visual: Tensor,
    word: Tensor,
    coordinates: Tensor,
    mask: None = None,
    *,
    image_index: Tensor | None = None,
) -> Tensor:
    batch, places, _ = attended.shape
    visual = visual if image_index is None else visual[image_index]
    everywhere = word[:, None].expand(-1, places, -1), coordinates.T.expand(batch, -1, -1)
    return (functional.linear(attended, weight) + torch.cat([visual, *everywhere], 2)).mT


def written_out(
    inputs: list[Any], mask: None, grad: Any, image_index: Tensor | None = None
) -> list[Any]:
    attended, weight, visual, word, coordinates = inputs
    result, gradients = np.zeros_like(grad), [np.zeros_like(part) for part in inputs]
    first, second = visual.shape[2], visual.shape[2] + word.shape[1]
    for sentence in range(len(grad)):
        picture = sentence if image_index is None else int(image_index[sentence])
        upstream = grad[sentence]
        result[sentence] = weight @ attended[sentence].T
        result[sentence, :first] += visual[picture].T
        result[sentence, first:second] += word[sentence][:, None]
        result[sentence, second:] += coordinates
        gradients[0][sentence] = upstream.T @ weight
        gradients[1] += upstream @ attended[sentence]
        gradients[2][picture] += upstream[:first].T
        gradients[3][sentence] = upstream[first:second].sum(1)
        gradients[4] += upstream[second:]
    return [result, *gradients]


TAIL = Operation(NAMES, literal, written_out)


def draw(
    places: int = 19,
    width: int = 17,
    visual: int = 21,
    words: int = 5,
    coordinates: int = 8,
    batch: int = 3,
    *,
    pictures: int | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> JointCase:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    channels = visual + words + coordinates
    unit = functional.normalize(normal(pictures or batch, visual, places).mT, dim=2)
    index = None
    if pictures is not None:
        index = torch.randint(pictures, (batch,), generator=generator)
    features = (
        normal(batch, places, width),
        normal(channels, width),
        unit,
        normal(batch, words),
        normal(coordinates, places),
    )
    return JointCase(TAIL, features, None, normal(batch, channels, places), {"image_index": index})


@pytest.mark.parametrize("backend", ["reference", "torch", TRITON])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("sizes", "pictures"),
    [
        ((1, 1, 1, 1, 1, 1), None),
        ((19, 17, 21, 5, 8, 3), None),
        ((33, 33, 18, 17, 3, 2), None),
        ((16, 16, 16, 16, 16, 1), None),
        ((17, 5, 9, 7, 8, 5), 3),
        ((33, 40, 3, 2, 1, 1), 4),
    ],
    ids=str,
)
def test_sizes(
    sizes: tuple[int, ...], pictures: int | None, dtype: torch.dtype, backend: str
) -> None:
    """One of everything, sizes about a tile, blocks with channels of two and of all three sources."""
    if not runs(backend, dtype):
        pytest.skip("no such arithmetic here")
    cases = [draw(*sizes, pictures=pictures, dtype=dtype, seed=seed) for seed in range(3)]
    assert_joint_within_budget(functools.partial(tail, backend=backend), cases)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sums_over_many_sentences_are_not_rounded_at_each(dtype: torch.dtype) -> None:
    cases = [draw(1, 3, 2, 2, 1, batch=900, dtype=dtype, seed=seed) for seed in range(3)]
    assert_joint_within_budget(tail, cases)


@pytest.mark.parametrize("backend", ["torch", TRITON])
def test_strides_are_honoured(backend: str) -> None:
    """Transposed, sliced, interleaved and expanded inputs, and a gradient without memory of its own."""
    function = functools.partial(tail, backend=backend)
    case = draw()
    strided = case.with_inputs(
        attended=torch.stack([case["attended"]] * 2, -1)[..., 1],
        output_weight=case["output_weight"].T.contiguous().T,
        unit_visual=case["unit_visual"].contiguous(),
        mean_word=torch.cat([case["mean_word"]] * 2, 1)[:, :5],
        coordinates=case["coordinates"].T.contiguous().T,
    )
    for one, other in zip(run_joint(function, case), run_joint(function, strided), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-5)
    expanded = case.with_inputs(
        attended=case["attended"][:, :1].expand(-1, 19, -1),
        unit_visual=case["unit_visual"][:1].expand(3, -1, -1),
    )
    grad = torch.tensor(1.5).expand(case.grad.shape)
    assert_joint_within_budget(function, JointCase(TAIL, expanded.inputs, None, grad, case.options))


@pytest.mark.parametrize("backend", ["torch", TRITON])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_two_runs_are_equal_to_the_bit(dtype: torch.dtype, backend: str) -> None:
    case = draw(batch=7, pictures=2, dtype=dtype)
    function = functools.partial(tail, backend=backend)
    for one, other in zip(run_joint(function, case), run_joint(function, case), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("backend", ["torch", TRITON])
def test_what_is_not_finite_stays_with_its_picture(backend: str) -> None:
    case = draw(pictures=2)
    index = torch.tensor([1, 0, 1])
    case = JointCase(TAIL, case.inputs, None, case.grad.clone(), {"image_index": index})
    case.grad[1] = torch.inf
    _, of_attended, _, of_visual, *_ = run_joint(functools.partial(tail, backend=backend), case)
    assert of_attended[[0, 2]].isfinite().all()
    assert of_visual[1].isfinite().all()
    assert not of_visual[0].isfinite().any()


@pytest.mark.parametrize("backend", ["torch", TRITON])
@pytest.mark.parametrize("pictures", [None, 2])
def test_no_sentence(pictures: int | None, backend: str) -> None:
    result, *gradients = run_joint(
        functools.partial(tail, backend=backend), draw(batch=0, pictures=pictures)
    )
    assert result.shape == (0, 34, 19)
    for gradient in gradients:
        assert not gradient.any()


@pytest.mark.parametrize("backend", ["torch", TRITON])
@pytest.mark.parametrize("name", NAMES)
def test_one_input_asks_for_a_gradient(name: str, backend: str) -> None:
    case = draw(pictures=2)
    function = functools.partial(tail, backend=backend)
    expected = run_joint(function, case)[1 + NAMES.index(name)]
    inputs = dict(zip(NAMES, case.inputs, strict=True))
    inputs[name] = case[name].detach().requires_grad_()
    result = function(*inputs.values(), None, **case.options)
    (found,) = torch.autograd.grad(result, inputs[name], case.grad)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("pictures", [None, 2])
@pytest.mark.parametrize("backend", ["torch", TRITON])
def test_gradcheck(backend: str, pictures: int | None) -> None:
    if not runs(backend, torch.float64):
        pytest.skip("the kernel computes float64 in the interpreter alone")
    case = draw(3, 2, 3, 2, 2, batch=3, pictures=pictures, dtype=torch.float64)
    inputs = [part.requires_grad_() for part in case.inputs if part is not None]

    def function(*inputs: Tensor) -> Tensor:
        return tail(*inputs, None, **case.options, backend=backend)

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    if backend == "torch":
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@needs_triton
def test_second_derivatives_of_the_kernel_are_refused() -> None:
    case = draw()
    inputs = [part.requires_grad_() for part in case.inputs if part is not None]
    result = tail(*inputs, None, backend="triton")
    gradients = torch.autograd.grad(result, inputs, case.grad, create_graph=True)
    with pytest.raises(RuntimeError, match=r'no second derivative.*backend="reference"'):
        torch.autograd.grad(gradients[0].square().sum(), inputs)


@needs_triton
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("pictures", [None, 2])
def test_opcheck(pictures: int | None) -> None:
    from cmsa_fast.kernels import tail_ops  # noqa: F401

    case = draw(5, 4, 3, 2, 2, pictures=pictures).to(DEVICE)
    index = case.options["image_index"]
    index = None if index is None else index.to(DEVICE)
    plain = [part.detach() for part in case.inputs if part is not None]
    leaves = [part.clone().requires_grad_() for part in plain]
    operators = torch.ops.cmsa_fast
    torch.library.opcheck(operators.level_tail_forward.default, (*leaves, index))
    arguments = (case.grad, *plain[:2], index, pictures or 3, 3)
    torch.library.opcheck(operators.level_tail_backward.default, arguments)


@pytest.mark.parametrize("backend", ["torch", TRITON])
def test_flop_are_those_of_the_products(backend: str) -> None:
    places, width, batch = 7, 5, 2
    case = draw(places, width, 3, 2, 2, batch)
    inputs = [part.requires_grad_() for part in case.inputs if part is not None]
    product = 2 * batch * places * width * 7
    tail(
        *inputs, None, backend=backend
    )  # a counter knows the formulas of operators that were there before it
    with FlopCounterMode(display=False) as counter:
        result = tail(*inputs, None, backend=backend)
    assert counter.get_total_flops() == product
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(result, inputs, case.grad)
    assert counter.get_total_flops() == 2 * product


@pytest.mark.parametrize("backend", ["auto", TRITON])
def test_one_graph(backend: str) -> None:
    case = draw(pictures=2).to(DEVICE)
    index = case.options["image_index"].to(DEVICE)
    inputs = [part.requires_grad_() for part in case.inputs if part is not None]

    def function(*inputs: Tensor) -> Tensor:
        return level_tail(*inputs, image_index=index, backend=backend)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    results = []
    for form in (function, compiled):
        result = form(*inputs)
        results.append([result, *torch.autograd.grad(result, inputs, case.grad)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


class FullSize(TorchDispatchMode):
    """Counts the storages of at least so many elements that operations make."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements = elements
        self.made: dict[int, Tensor] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        known = {part.untyped_storage().data_ptr() for part in args if isinstance(part, Tensor)}
        for part in result if isinstance(result, tuple | list) else (result,):
            if isinstance(part, Tensor):
                storage = part.untyped_storage()
                large = storage.nbytes() >= self.elements * part.element_size()
                if large and storage.data_ptr() not in known:
                    self.made[storage.data_ptr()] = part  # kept, so that no address comes twice
        return result


@pytest.mark.parametrize(
    ("backend", "forward", "backward"),
    [("torch", 1, 0), pytest.param("triton", 1, 0, marks=needs_triton)],
)
@pytest.mark.parametrize("pictures", [None, 1])
def test_neither_concatenation_nor_copy(
    backend: str, forward: int, backward: int, pictures: int | None
) -> None:
    """The result is the one array [B, C, P] that is made; the literal form makes several."""
    case = draw(67, 5, 40, 20, 8, batch=3, pictures=pictures)
    made = {}
    for name in (backend, "reference"):
        inputs = [part.to(DEVICE).requires_grad_() for part in case.inputs if part is not None]
        index = case.options["image_index"]
        index = None if index is None else index.to(DEVICE)
        with FullSize(case.grad.numel()) as on_the_way:
            result = level_tail(*inputs, image_index=index, backend=name)  # type: ignore[misc]
        grad = case.grad.to(DEVICE)
        with FullSize(case.grad.numel()) as on_the_way_back:
            torch.autograd.grad(result, inputs, grad)
        made[name] = len(on_the_way.made), len(on_the_way_back.made)
        assert result.is_contiguous() == (name == backend)
    assert made[backend] == (forward, backward)
    assert made["reference"][0] >= 3


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_is_the_cast_of_the_inputs(low: torch.dtype) -> None:
    case = draw()
    expected = run_joint(tail, case.to(low))
    with torch.autocast(DEVICE, dtype=low):
        found = run_joint(tail, JointCase(TAIL, case.inputs, None, case.grad.to(low)))
    assert found[0].dtype == low
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one.float(), other.float())


@needs_triton
def test_a_module_takes_its_own_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every backend gives one result; the module's is the one that the tail gets."""
    from cmsa_fast.nn import cmsa

    asked: list[str] = []

    def spy(*arguments: Tensor, **options: Any) -> Tensor:
        asked.append(options["backend"])
        return level_tail(*arguments, **options)

    monkeypatch.setattr(cmsa, "level_tail", spy)
    torch.manual_seed(0)
    module = CMSA(11, 7, 5).to(DEVICE)
    visual, words = torch.randn(2, 11, 4, 5), torch.randn(3, 4, 7)
    index = torch.tensor([1, 0, 1], device=DEVICE)
    results = []
    for module.backend in BACKENDS:
        results.append(module(visual.to(DEVICE), words.to(DEVICE), image_index=index))
    assert asked == list(BACKENDS)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-5, atol=1e-5)


def arguments(**changed: Any) -> dict[str, Any]:
    """Two sentences on 6 places, width 4; 3 visual, 2 word and 8 coordinate channels."""
    right = {
        "attended": torch.zeros(2, 6, 4),
        "output_weight": torch.zeros(13, 4),
        "unit_visual": torch.zeros(2, 6, 3),
        "mean_word": torch.zeros(2, 2),
        "coordinates": torch.zeros(8, 6),
    }
    return right | changed


MESSAGES = [
    ({"attended": [[[0.0]]]}, TypeError, "attended must be a tensor; got list."),
    (
        {"mean_word": torch.zeros(2, 2, dtype=torch.int32)},
        TypeError,
        "mean_word must have one of the dtypes float64, float32, bfloat16, float16; got torch.int32.",
    ),
    (
        {"coordinates": torch.zeros(8, 6).double()},
        TypeError,
        "coordinates must have the dtype of attended, torch.float32; got torch.float64.",
    ),
    (
        {"unit_visual": torch.zeros(2, 6, 3, device="meta")},
        ValueError,
        "unit_visual must be on the device of attended, cpu; got meta.",
    ),
    (
        {"attended": torch.zeros(6, 4)},
        ValueError,
        "attended must have shape [batch, places, width] with at least one of each; got [6, 4].",
    ),
    (
        {"coordinates": torch.zeros(0, 6)},
        ValueError,
        "coordinates must have shape [coordinates, places] with at least one of each; got [0, 6].",
    ),
    (
        {"output_weight": torch.zeros(12, 4)},
        ValueError,
        "output_weight must have shape [channels, width] = [13, 4], channels being the sum of those of "
        "unit_visual, mean_word and coordinates; got [12, 4].",
    ),
    (
        {"unit_visual": torch.zeros(2, 5, 3)},
        ValueError,
        "unit_visual must have the places of attended, 6; got 5.",
    ),
    (
        {"mean_word": torch.zeros(3, 2)},
        ValueError,
        "mean_word must have the batch of attended, 2; got 3.",
    ),
    (
        {"coordinates": torch.zeros(8, 7)},
        ValueError,
        "coordinates must have the places of attended, 6; got 7.",
    ),
    (
        {"unit_visual": torch.zeros(1, 6, 3)},
        ValueError,
        "unit_visual must have the batch of attended, 2, unless image_index says which picture each "
        "sentence belongs to; got 1.",
    ),
    (
        {"image_index": torch.zeros(2)},
        TypeError,
        "image_index must be an int64 tensor; got torch.float32.",
    ),
    (
        {"image_index": torch.tensor([0, 2])},
        ValueError,
        "image_index must lie in 0..1; got values from 0 to 2.",
    ),
    (
        {"image_index": torch.tensor([0, 0]), "unit_visual": torch.zeros(0, 6, 3)},
        ValueError,
        "unit_visual must hold at least one picture for 2 sentences; got 0.",
    ),
    (
        {"backend": "numpy"},
        ValueError,
        "backend must be one of auto, reference, torch, triton; got 'numpy'.",
    ),
]


@pytest.mark.parametrize(
    ("changed", "error", "message"), MESSAGES, ids=[row[2] for row in MESSAGES]
)
def test_messages(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        level_tail(**arguments(**changed))


def test_triton_by_name_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal: Callable[..., str] = lambda device: "cannot run here."  # noqa: E731
    monkeypatch.setattr(checks, "_obstacle", refusal)
    with pytest.raises(
        ValueError, match=r'^backend="triton" cannot run here\. Use backend="torch"'
    ):
        level_tail(**arguments(backend="triton"))
    level_tail(**arguments(backend="auto"))
