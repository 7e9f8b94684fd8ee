"""The separable attention's Triton kernels in bfloat16, float16 and TF32, with a GPU's arithmetic emulated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from support.oracle import Case, assert_identical, assert_within_budget, errors, exact, run
from support.separable_oracle import NAMES, draw, fused, shifted, with_largest_logit

pytest.importorskip("triton", reason="the kernels need Triton, which is not installed")

from support.gpu_arithmetic import TF32_EPS, gpu_arithmetic, tf32_products  # noqa: E402

from cmsa_fast.kernels.triton.launch import interpreted  # noqa: E402

pytestmark = pytest.mark.skipif(not interpreted(), reason="the kernels run on a GPU")

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32}
each_arithmetic = pytest.mark.parametrize("arithmetic", list(DTYPES))


@pytest.fixture(autouse=True)
def _on_a_gpu(request: pytest.FixtureRequest) -> Iterator[None]:
    uses_tf32 = getattr(request.node, "callspec", None) and request.getfixturevalue("arithmetic") == "tf32"
    with gpu_arithmetic(), tf32_products() if uses_tf32 else contextlib.nullcontext():
        yield


def check(arithmetic: str, cases: list[Case]) -> None:
    assert_within_budget(fused, cases, TF32_EPS if arithmetic == "tf32" else None)


@each_arithmetic
@pytest.mark.parametrize(
    ("sizes", "images"),  # places, words, width, value width, batch
    [
        pytest.param((1, 1, 5, 3, 1), None, marks=pytest.mark.slow),
        ((17, 5, 17, 9, 3), 2),  # an image without expressions
        ((33, 19, 18, 35, 1), None),  # several tiles in every axis
        pytest.param((40, 3, 300, 290, 1), None, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_sizes(sizes: tuple[int, ...], images: int | None, arithmetic: str) -> None:
    scale = min(0.7, sizes[2] ** -0.25)
    check(arithmetic, [draw(*sizes, images=images, scale=scale, dtype=DTYPES[arithmetic])])


@each_arithmetic
@pytest.mark.parametrize(
    "scale", [pytest.param(1.4, marks=pytest.mark.slow), pytest.param(2.5, marks=pytest.mark.slow), 4.0]
)
def test_steep_logits(scale: float, arithmetic: str) -> None:
    """Logits of standard deviation 11, 36 and 93: none, some and most rows take the direct form."""
    cases = [
        draw(18, 3, 17, 9, 1, scale=scale, grad_scale=grad_scale, dtype=DTYPES[arithmetic], seed=seed)
        for seed, grad_scale in enumerate((1.0, 1e-3, 1.0), start=3)
    ]
    check(arithmetic, cases)


@each_arithmetic
@pytest.mark.parametrize("size", [300.0, pytest.param(1e4, marks=pytest.mark.slow)])
def test_large_logits(size: float, arithmetic: str) -> None:
    cases = [draw(10, 3, 13, 7, 1, dtype=DTYPES[arithmetic], seed=seed) for seed in range(3)]
    check(arithmetic, [with_largest_logit(case, size) for case in cases])


@each_arithmetic
@pytest.mark.parametrize("word_offset", [30.0, -30.0])  # the second cancels that of places in the tokens
def test_common_offsets(word_offset: float, arithmetic: str) -> None:
    offsets = {"place_key": 30.0, "word_key": word_offset, "place_value": 30.0, "word_value": -30.0}
    cases = [shifted(draw(17, 3, 9, 5, 1, dtype=DTYPES[arithmetic], seed=seed), **offsets) for seed in range(3)]
    check(arithmetic, cases)


@each_arithmetic
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[1:])
def test_single_outlier(name: str, arithmetic: str) -> None:
    cases = []
    for seed in range(2):
        case = draw(18, 5, 17, 9, 1, scale=0.5, dtype=DTYPES[arithmetic], seed=seed, padded=False)
        outlier = case[name].clone()
        outlier[:, 2] *= 100
        cases.append(case.with_inputs(**{name: outlier}))
    check(arithmetic, cases)


def test_saturated_word_attention_has_no_gradient() -> None:
    """In float32, where one word has all the weight, rounding is not multiplied by large keys and values."""
    case = draw(10, 5, 8, 8, 1, padded=False, seed=1)
    larger = {"word_query": 100, "word_key": 100, "word_value": 30}
    case = case.with_inputs(**{name: case[name] * times for name, times in larger.items()})
    assert max(errors(fused, case, exact(case))) <= 1e-6


@pytest.mark.slow
@each_arithmetic
def test_padding_has_no_influence(arithmetic: str) -> None:
    case = draw(17, 6, 9, 5, 3, dtype=DTYPES[arithmetic])
    padding = ~case.mask[..., None]
    poisoned = {name: case[name].masked_fill(padding, torch.nan) for name in NAMES[3:]}
    outputs = run(fused, case.with_inputs(**poisoned))
    assert_identical(run(fused, case), outputs)
    for gradient in outputs[4:]:
        assert not gradient[~case.mask].any()
