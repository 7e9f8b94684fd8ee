"""The Triton kernels of the separable attention against the literal form, in Triton's interpreter or on a GPU.

The interpreter multiplies bfloat16 wrongly, so bfloat16 is tested on GPUs alone.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from support.oracle import NAMES, Case, assert_within_budget, draw, fused, run
from torch import Tensor

from cmsa_fast.kernels import cross_modal_attention

pytest.importorskip("triton", reason="the kernels need Triton, which is not installed")

from cmsa_fast.kernels.separable_attention.triton import plans as separable  # noqa: E402

ON_GPU = torch.cuda.is_available()
DTYPES = [torch.float32, torch.float16, torch.bfloat16 if ON_GPU else torch.float64]


def on_device(*arguments: Tensor | None, image_index: Tensor | None = None) -> Tensor:
    """The kernels on the GPU where there is one; the rest of a test stays on the CPU."""
    device = "cuda" if ON_GPU else "cpu"
    moved = [part if part is None else part.to(device) for part in (*arguments, image_index)]
    return fused(*moved[:-1], image_index=moved[-1]).cpu()


@pytest.fixture(params=separable.PLANS)
def _plan(request: pytest.FixtureRequest) -> Iterator[None]:
    with separable.only(request.param):
        yield


each_plan = pytest.mark.usefixtures("_plan")


@each_plan
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("places", "words", "width", "value_width", "batch", "images"),
    [
        (1, 1, 5, 3, 1, None),
        (1, 4, 7, 7, 2, None),
        (17, 1, 7, 9, 3, None),
        (2, 2, 1, 1, 1, None),
        (33, 19, 18, 35, 1, None),
        (19, 5, 17, 9, 4, 2),
        (16, 16, 16, 16, 1, None),
    ],
)
def test_sizes(
    places: int,
    words: int,
    width: int,
    value_width: int,
    batch: int,
    images: int | None,
    dtype: torch.dtype,
) -> None:
    """One place or word, sizes just beyond a tile, several tiles of everything, images without an expression."""
    sizes = (places, words, width, value_width, batch)
    cases = [draw(*sizes, images=images, scale=0.7, dtype=dtype, seed=seed) for seed in range(2)]
    assert_within_budget(cases, on_device)


@each_plan
@pytest.mark.parametrize("words", [2, 33, 64])
def test_counts_of_words(words: int) -> None:
    assert_within_budget(draw(18, words, 9, 5, 2, seed=words), on_device)


@each_plan
@pytest.mark.slow
@pytest.mark.parametrize("width", [130, 512, 530])
def test_wide_features(width: int) -> None:
    assert_within_budget(draw(33, 5, width, width + 7, 1, scale=width**-0.25), on_device)


@each_plan
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [2.5, 4.0])
def test_steep_logits_take_the_direct_form(scale: float, dtype: torch.dtype) -> None:
    cases = [
        draw(
            18,
            3,
            17,
            9,
            1,
            scale=scale,
            dtype=dtype,
            seed=seed,
            grad_scale=10.0 ** (-7 * (seed % 2)),
        )
        for seed in range(5)
    ]
    assert_within_budget(cases, on_device)


@each_plan
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "offsets",
    [
        {"place_key": 100.0, "word_key": -30.0},
        {"place_value": 100.0, "word_value": -100.0},
        {"place_query": 100.0, "word_query": -100.0},
    ],
    ids=lambda offsets: ",".join(f"{name}{size:+g}" for name, size in offsets.items()),
)
def test_common_offsets(offsets: dict[str, float], dtype: torch.dtype) -> None:
    from kernels.separable_attention.test_parity import shifted

    cases = [shifted(draw(18, 3, 9, 5, dtype=dtype, seed=seed), **offsets) for seed in range(3)]
    assert_within_budget(cases, on_device)


@each_plan
@pytest.mark.parametrize("size", [300.0, 1e4])
def test_large_logits(size: float) -> None:
    from kernels.separable_attention.test_extreme_logits import with_largest_logit

    cases = [with_largest_logit(draw(14, 3, 13, 7, 1, seed=seed), size) for seed in range(5)]
    assert_within_budget(cases, on_device)
    for case in cases:
        assert all(part.isfinite().all() for part in run(on_device, case))


@each_plan
def test_padding_has_no_influence_whatever_stands_there() -> None:
    case = draw(18, 6, 9, 5, 3)
    poisoned = {}
    for name in NAMES[3:]:
        part = case[name].clone()
        part[~case.word_mask] = torch.tensor([torch.nan, torch.inf, -torch.inf]).repeat(99)[
            : int((~case.word_mask).sum())
        ][:, None]
        poisoned[name] = part
    expected, found = run(on_device, case), run(on_device, case.with_features(**poisoned))
    for number, (one, other) in enumerate(zip(expected, found, strict=True)):
        assert torch.equal(one, other)
        if number > 3:
            assert not other[~case.word_mask].any()


@each_plan
def test_strides_are_honoured() -> None:
    """Transposed, sliced, expanded and reversed-batch features, and a gradient without memory of its own."""
    case = draw(18, 5, 9, 9, 3, padded=False)
    place_query, place_key, place_value = case.features[:3]
    strided = case.with_features(
        place_query=place_query.mT.contiguous().mT,
        place_key=torch.cat([place_key, place_key], -1)[..., :9],
        place_value=torch.stack([place_value, place_value], -1)[..., 1],
        word_key=case["word_key"].mT.contiguous().mT,
    )
    for one, other in zip(run(on_device, case), run(on_device, strided), strict=True):
        assert torch.equal(one, other)
    one_row = place_query[:, :1]
    expanded = case.with_features(place_query=one_row.expand(-1, 18, -1))
    expanded = replace(expanded, grad=case.grad[:1, :1].expand(3, 18, 9))
    solid = expanded.with_features(place_query=one_row.repeat(1, 18, 1))
    solid = replace(solid, grad=expanded.grad.contiguous())
    for one, other in zip(run(on_device, solid), run(on_device, expanded), strict=True):
        assert torch.equal(one, other)


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every new buffer start as NaN."""

    def poisoned(make):  # type: ignore[no-untyped-def]
        def made(*arguments: object, **options: object) -> Tensor:
            tensor = make(*arguments, **options)
            return tensor.fill_(torch.nan if tensor.is_floating_point() else 77)

        return made

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(Tensor, "new_empty", poisoned(Tensor.new_empty))


@each_plan
def test_nothing_is_read_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers that start as NaN change nothing."""
    case = draw(18, 3, 9, 5, 2, scale=3.0)
    expected = run(on_device, case)

    poison(monkeypatch)
    for one, other in zip(expected, run(on_device, case), strict=True):
        assert torch.equal(one, other)


@each_plan
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_two_runs_are_equal_to_the_bit(dtype: torch.dtype) -> None:
    case = draw(18, 3, 17, 9, 3, scale=3.0, dtype=dtype)
    for one, other in zip(run(on_device, case), run(on_device, case), strict=True):
        assert torch.equal(one, other)


def test_sharing_images_is_the_same_as_repeating_them() -> None:
    case = draw(18, 5, 9, 5, 4, images=3, dtype=torch.float32)
    repeated = Case(
        (*(part[case.image_index] for part in case.features[:3]), *case.features[3:]),
        case.word_mask,
        None,
        case.grad,
    )
    with separable.only("fused"):
        shared, apart = run(on_device, case), run(on_device, repeated)
    assert torch.equal(shared[0], apart[0])
    for one, other in zip(shared[4:], apart[4:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@each_plan
def test_a_transposed_mask_and_an_expanded_index() -> None:
    case = draw(9, 4, 5, 3, 3)
    transposed = replace(case, word_mask=case.word_mask.T.contiguous().T)
    for one, other in zip(run(on_device, case), run(on_device, transposed), strict=True):
        assert torch.equal(one, other)
    shared = draw(9, 4, 5, 3, 3, images=1)
    expanded = replace(shared, image_index=torch.zeros(1, dtype=torch.int64).expand(3))
    for one, other in zip(run(on_device, shared), run(on_device, expanded), strict=True):
        assert torch.equal(one, other)


@each_plan
def test_backward_inside_autocast_computes_as_forward_did() -> None:
    case = draw(9, 4, 5, 3, 2)
    expected = run(on_device, case)
    features = [part.detach().requires_grad_() for part in case.features]
    result = on_device(*features, case.word_mask)
    with torch.autocast("cuda" if ON_GPU else "cpu", dtype=torch.bfloat16):
        found = torch.autograd.grad(result, features, case.grad)
    for one, other in zip(expected[1:], found, strict=True):
        assert torch.equal(one, other)


def test_work_is_split_for_a_gpu_even_where_there_is_none() -> None:
    from cmsa_fast.kernels.triton.launch import row_splits

    assert row_splits(5, 16, 0, 90) == (1, 16)
    assert row_splits(1600, 64, 25, 90) == (5, 320)
    assert row_splits(1600, 64, 200, 90) == (1, 1600)


def test_either_interface_of_pytorch_sets_the_precision() -> None:
    """In a process of its own: PyTorch refuses to mix the two."""
    code = (
        "import torch\n"
        "from cmsa_fast.kernels.triton.launch import precision\n"
        "before = precision(torch.float32)\n"
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'\n"
        "print(before, precision(torch.float32), precision(torch.float64))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ieee", "tf32", "ieee"]


def test_more_expressions_than_a_grid_holds() -> None:
    from cmsa_fast.kernels.triton.launch import launch

    with pytest.raises(ValueError, match="at most 65535 images or expressions at once; got 65536"):
        launch(None, (1, 65536), torch.zeros(1))


def test_no_expression() -> None:
    case = draw(5, 4, 3, batch=0, images=2, padded=False)
    result, *gradients = run(on_device, case)
    assert result.shape == (0, 5, 3)
    for gradient in gradients:
        assert not gradient.any()


def test_more_words_than_the_kernels_take() -> None:
    case = draw(3, 65, 4, padded=False)
    with pytest.raises(ValueError, match=r"takes up to 64 words; got 65\."):
        on_device(*case.features)
    automatic = cross_modal_attention(*case.features)
    assert torch.equal(automatic, cross_modal_attention(*case.features, backend="torch"))


def test_what_images_share_is_not_read_before_it_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = draw(18, 3, 9, 5, 3, images=2, scale=3.0)
    expected = run(on_device, case)
    poison(monkeypatch)
    for one, other in zip(expected, run(on_device, case), strict=True):
        assert torch.equal(one, other)


def test_images_larger_than_a_slab_are_worked_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from cmsa_fast.kernels.separable_attention.triton import tiled

    case = draw(9, 3, 5, 4, 3)
    with separable.only("tiled"):
        together = run(on_device, case)
        monkeypatch.setattr(tiled, "_SLAB", 1)
        for one, other in zip(together, run(on_device, case), strict=True):
            assert torch.equal(one, other)


def test_an_unknown_plan() -> None:
    with (
        pytest.raises(ValueError, match="plan must be one of fused, tiled; got 'best'"),
        separable.only("best"),
    ):
        pass


@pytest.mark.parametrize("name", ["place_query", "place_key", "place_value"])
def test_rows_lie_further_apart_than_32_bits_count(name: str) -> None:
    """A view with rows 2**27 elements apart: the last begins beyond 2**31. Untouched memory costs nothing."""
    case = draw(18, 3, 4, 4, 1, dtype=torch.float16)
    apart = torch.empty(17 * 2**27 + 4, dtype=torch.float16).as_strided((1, 18, 4), (0, 2**27, 1))
    apart.copy_(case[name])
    for one, other in zip(
        run(on_device, case), run(on_device, case.with_features(**{name: apart})), strict=True
    ):
        assert torch.equal(one, other)
