"""The Triton kernels of the separable attention against the literal form, in Triton's interpreter or on a GPU.

The interpreter multiplies bfloat16 wrongly, so bfloat16 is tested on GPUs only.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.oracle import Case, assert_close, assert_identical, assert_within_budget, run
from support.poison import poison_new_buffers
from support.separable_oracle import NAMES, draw, fused, shifted, with_largest_logit
from torch import Tensor

from cmsa_fast.kernels import cross_modal_attention
from cmsa_fast.kernels.separable_attention import state

pytest.importorskip("triton", reason="the kernels need Triton, which is not installed")

from cmsa_fast.kernels.separable_attention.triton import schedule  # noqa: E402

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16 if ON_GPU else torch.float64]


def attention(*arguments: Tensor | None, image_index: Tensor | None = None) -> Tensor:
    """The kernels on the GPU if there is one; the rest of a test stays on the CPU."""
    moved = [part if part is None else part.to(DEVICE) for part in (*arguments, image_index)]
    return fused(*moved[:-1], image_index=moved[-1]).cpu()


@pytest.mark.parametrize(
    ("sizes", "images", "dtype"),  # places, words, width, value width, batch
    [
        ((1, 1, 5, 3, 1), None, DTYPES[0]),
        ((1, 4, 7, 7, 2), None, DTYPES[1]),
        ((17, 1, 7, 9, 2), None, DTYPES[2]),
        ((2, 2, 1, 1, 1), None, DTYPES[0]),
        ((16, 16, 16, 16, 1), None, DTYPES[0]),  # exactly a tile
        *(((17, 5, 17, 9, 3), 2, dtype) for dtype in DTYPES),  # an image without expressions
        *(((33, 19, 18, 35, 1), None, dtype) for dtype in DTYPES),  # several tiles in every axis
    ],
    ids=str,
)
def test_sizes(sizes: tuple[int, ...], images: int | None, dtype: torch.dtype) -> None:
    cases = [draw(*sizes, images=images, scale=0.7, dtype=dtype, seed=seed) for seed in range(2)]
    assert_within_budget(attention, cases)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(1, 1, 5, 3, 1), (1, 4, 7, 7, 2), (17, 1, 7, 9, 3)], ids=str)
def test_small_sizes_in_all_dtypes(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    cases = [draw(*sizes, scale=0.7, dtype=dtype, seed=seed) for seed in range(2)]
    assert_within_budget(attention, cases)


@pytest.mark.parametrize("words", [33, 64])
def test_many_words(words: int) -> None:
    assert_within_budget(attention, draw(17, words, 9, 5, 1, seed=words))


@pytest.mark.slow
@pytest.mark.parametrize("width", [130, 512, 530])
def test_wide_features(width: int) -> None:
    assert_within_budget(attention, draw(33, 5, width, width + 7, 1, scale=width**-0.25))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [pytest.param(2.5, marks=pytest.mark.slow), 4.0])
def test_steep_logits_take_the_direct_form(scale: float, dtype: torch.dtype) -> None:
    cases = [
        draw(18, 3, 17, 9, 1, scale=scale, grad_scale=grad_scale, dtype=dtype, seed=seed)
        for seed, grad_scale in enumerate((1.0, 1e-7, 1.0) * 3)
    ]
    assert_within_budget(attention, cases)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_common_offsets(dtype: torch.dtype) -> None:
    offsets = {name: 100.0 if name.startswith("place") else -100.0 for name in NAMES}
    cases = [shifted(draw(17, 3, 9, 5, 1, dtype=dtype, seed=seed), **offsets) for seed in range(3)]
    assert_within_budget(attention, cases)


@pytest.mark.parametrize("places", [16, 17])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_inputs_read_in_place_lose_their_offsets(places: int, scale: float) -> None:
    """Contiguous 16-bit features of whole tiles, with offsets that cancel between places and words."""
    offsets = {
        f"{side}_{part}": size
        for side, size in (("place", 30.0), ("word", -30.0))
        for part in ("query", "key", "value")
    }
    drawn = [draw(places, 3, 16, 16, 1, scale=scale, dtype=torch.float16, seed=seed) for seed in range(3)]
    assert state.Sizes.of(drawn[0].inputs).in_place
    assert_within_budget(attention, [shifted(case, **offsets) for case in drawn])


@pytest.mark.slow
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
def test_single_common_offsets(offsets: dict[str, float], dtype: torch.dtype) -> None:
    cases = [shifted(draw(18, 3, 9, 5, dtype=dtype, seed=seed), **offsets) for seed in range(3)]
    assert_within_budget(attention, cases)


@pytest.mark.parametrize("size", [300.0, 1e4])
def test_large_logits(size: float) -> None:
    cases = [with_largest_logit(draw(10, 3, 13, 7, 1, seed=seed), size) for seed in range(3)]
    assert_within_budget(attention, cases)
    assert all(part.isfinite().all() for part in run(attention, cases[0]))


def test_padding_has_no_influence() -> None:
    case = draw(17, 6, 9, 5, 3)
    garbage = torch.tensor([torch.nan, torch.inf, -torch.inf]).repeat(99)
    poisoned = {}
    for name in NAMES[3:]:
        part = case[name].clone()
        part[~case.mask] = garbage[: int((~case.mask).sum())][:, None]
        poisoned[name] = part
    outputs = run(attention, case.with_inputs(**poisoned))
    assert_identical(run(attention, case), outputs)
    for gradient in outputs[4:]:
        assert not gradient[~case.mask].any()


def test_strided_inputs() -> None:
    """Transposed, sliced, interleaved and expanded inputs, and an expanded gradient."""
    case = draw(17, 4, 9, 9, 2, padded=False)
    place_query, place_key, place_value = case.inputs[:3]
    strided = case.with_inputs(
        place_query=place_query.mT.contiguous().mT,
        place_key=torch.cat([place_key, place_key], -1)[..., :9],
        place_value=torch.stack([place_value, place_value], -1)[..., 1],
        word_key=case["word_key"].mT.contiguous().mT,
    )
    assert_identical(run(attention, case), run(attention, strided))
    row, grad = place_query[:, :1], case.grad[:1, :1].expand(2, 17, 9)
    expanded = replace(case.with_inputs(place_query=row.expand(-1, 17, -1)), grad=grad)
    solid = case.with_inputs(place_query=row.repeat(1, 17, 1))
    solid = replace(solid, grad=grad.contiguous())
    assert_identical(run(attention, solid), run(attention, expanded))


@pytest.mark.parametrize("images", [None, 2])
def test_result_is_deterministic_and_reads_no_unwritten_memory(
    monkeypatch: pytest.MonkeyPatch, images: int | None
) -> None:
    """With some rows in the direct form."""
    case = draw(17, 3, 9, 5, 3 if images else 2, images=images, scale=3.0)
    expected = run(attention, case)
    poison_new_buffers(monkeypatch)
    assert_identical(expected, run(attention, case))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_two_runs_are_bitwise_identical(dtype: torch.dtype) -> None:
    case = draw(18, 3, 17, 9, 3, scale=3.0, dtype=dtype)
    assert_identical(run(attention, case), run(attention, case))


def test_shared_images_equal_copies() -> None:
    case = draw(17, 3, 9, 5, 3, images=2)
    index = case.options["image_index"]
    places = tuple(part[index] for part in case.inputs[:3])
    copies = Case(case.operation, (*places, *case.inputs[3:]), case.mask, case.grad)
    shared, apart = run(attention, case), run(attention, copies)
    assert torch.equal(shared[0], apart[0])
    for one, other in zip(shared[4:], apart[4:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_transposed_mask_and_expanded_index() -> None:
    case = draw(5, 4, 5, 3, 3)
    transposed = replace(case, mask=case.mask.T.contiguous().T)
    assert_identical(run(attention, case), run(attention, transposed))
    shared = draw(5, 4, 5, 3, 3, images=1)
    expanded = replace(shared, options={"image_index": torch.zeros(1, dtype=torch.int64).expand(3)})
    assert_identical(run(attention, shared), run(attention, expanded))


def test_backward_inside_autocast_keeps_the_precision_of_forward() -> None:
    case = draw(9, 4, 5, 3, 2)
    features = [part.detach().requires_grad_() for part in case.inputs]
    result = attention(*features, case.mask)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        gradients = torch.autograd.grad(result, features, case.grad)
    assert_identical(run(attention, case)[1:], gradients)


def test_no_expression() -> None:
    case = draw(5, 4, 3, batch=0, images=2, padded=False)
    result, *gradients = run(attention, case)
    assert result.shape == (0, 5, 3)
    for gradient in gradients:
        assert not gradient.any()


def test_too_many_words_raise_or_run_on_torch() -> None:
    case = draw(3, 65, 4, padded=False)
    with pytest.raises(ValueError, match=r"takes up to 64 words; got 65\."):
        attention(*case.inputs)
    automatic = cross_modal_attention(*case.inputs)
    assert torch.equal(automatic, cross_modal_attention(*case.inputs, backend="torch"))


@pytest.mark.parametrize("images", [None, 2])
def test_slabs_of_rows_equal_one_slab(monkeypatch: pytest.MonkeyPatch, images: int | None) -> None:
    """With some rows in the direct form."""
    case = draw(50, 3, 9, 5, 3, images=images, scale=2.5)
    together = run(attention, case)
    monkeypatch.setattr(state, "_SLAB", 1)
    monkeypatch.setattr(state, "_PLACES", 32)
    result, *gradients = run(attention, case)
    assert torch.equal(together[0], result)
    # Sums over rows are taken slab by slab.
    assert_close(together[1:], gradients, tolerance=1e-5)


@pytest.mark.parametrize("flagged", [0, 1, 9, 18])
def test_some_rows_take_the_direct_form(flagged: int) -> None:
    """Places whose best key is another than each word's: the product of the two factors underflows there."""
    case = draw(18, 3, 9, 5, 2, padded=False)
    key, place_query, word_query = (case[name].clone() for name in ("place_key", "place_query", "word_query"))
    place = torch.arange(18)
    for part in (key, place_query, word_query):
        part[:, :, :3] = 0
    # Two kinds of steep places, so that their queries have no common offset.
    for channel in (0, 1):
        key[:, 3 + channel, channel] = 20.0
        place_query[:, :, channel] = torch.where((place < flagged) & (place % 2 == channel), 10.0, 0.0)
    key[:, 5, 2], word_query[:, :, 2] = 20.0, 10.0
    steep = case.with_inputs(place_key=key, place_query=place_query, word_query=word_query)
    features, weight = [*map(torch.Tensor.detach, steep.inputs)], torch.full((2, 3), 1 / 3)
    kept = schedule.forward([part.to(DEVICE) for part in features], weight.to(DEVICE), None)[1]
    assert int((kept.direct != 0).sum()) == 2 * flagged
    assert_within_budget(attention, steep)


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
def test_nan_in_a_query_stays_in_its_row() -> None:
    case = draw(18, 3, 9, 5, 2)
    query = case["place_query"].clone()
    query[0, 4] = torch.nan
    result = attention(*case.with_inputs(place_query=query).inputs, case.mask)
    expected = cross_modal_attention(*case.with_inputs(place_query=query).inputs, case.mask, backend="reference")
    assert torch.equal(result.isnan(), expected.isnan())


@pytest.mark.parametrize("name", ["place_query", "place_key", "place_value"])
def test_offsets_beyond_32_bits(name: str) -> None:
    """Rows 2**27 elements apart: the last begins beyond 2**31. Untouched memory costs nothing."""
    case = draw(18, 3, 4, 4, 1, dtype=torch.float16)
    apart = torch.empty(17 * 2**27 + 4, dtype=torch.float16).as_strided((1, 18, 4), (0, 2**27, 1))
    apart.copy_(case[name])
    changed: dict[str, Any] = {name: apart}
    assert_identical(run(attention, case), run(attention, case.with_inputs(**changed)))
