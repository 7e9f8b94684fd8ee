"""Launches and memory of the separable attention on a GPU, counted on fake CUDA tensors; no kernel runs."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="the kernels need Triton, which is not installed")

from cmsa_fast.kernels.separable_attention import state  # noqa: E402
from cmsa_fast.kernels.separable_attention.triton import schedule, tile_sizes  # noqa: E402
from cmsa_fast.kernels.triton import launch  # noqa: E402
from cmsa_fast.kernels.triton.launch import ARCHITECTURES  # noqa: E402

MODULES = ("prepare", "words", "logits", "values", "gradients", "direct", "products")


class Recorder(TorchDispatchMode):
    """Counts launches, and the most bytes of new tensors that are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.bytes = self.peak = 0

    def launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        self.launches += 0 not in grid

    def _freed(self, size: int) -> None:
        self.bytes -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not function.is_view:
            size = result.untyped_storage().nbytes()
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(result, self._freed, size)
        return result


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """With the tiles of an H100."""
    recorder = Recorder()
    monkeypatch.setattr(tile_sizes, "architecture", lambda: 90)
    for name in MODULES:
        module = importlib.import_module(f"cmsa_fast.kernels.separable_attention.triton.{name}")
        monkeypatch.setattr(module, "launch", recorder.launch)
    with FakeTensorMode(), torch.device("cuda"):
        yield recorder


def record(
    recorder: Recorder, batch: int, places: int, words: int, width: int, dtype: torch.dtype, images: int | None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Launches and peak bytes, of forward and of backward."""
    shapes = [(images or batch, places, width)] * 3 + [(batch, words, width)] * 3
    features = [torch.empty(shape, dtype=dtype) for shape in shapes]
    weight = torch.empty(batch, words)
    index = torch.zeros(batch, dtype=torch.int64) if images else None
    found = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(recorder)
        attended, kept = schedule.forward(features, weight, index)
        found.append((recorder.launches, recorder.peak))
        sizes = state.Sizes.of(features)
        kept = kept.reading(features, sizes)
        recorder.launches = recorder.peak = 0
        schedule.backward(torch.empty_like(attended), attended, index, sizes, kept)
        found.append((recorder.launches, recorder.peak))
    return found[0], found[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("width", [500, 512])
@pytest.mark.parametrize(("batch", "images"), [(1, None), (8, None), (8, 2)])
def test_launches_do_not_grow_with_the_batch(
    recorder: Recorder, batch: int, images: int | None, width: int, dtype: torch.dtype
) -> None:
    (forward, _), (backward, _) = record(recorder, batch, 1600, 20, width, dtype, images)
    assert 5 <= forward <= 8
    assert 10 <= backward <= 20


@pytest.mark.parametrize("images", [None, 2])
@pytest.mark.parametrize(("batch", "places"), [(2, 6400), (4, 6400), (16, 3600)])
def test_memory_is_bounded(recorder: Recorder, batch: int, places: int, images: int | None) -> None:
    """Three arrays of a slab in backward; the rest grows with the places, not with their pairs."""
    words, width = 20, 512
    (_, forward), (_, backward) = record(recorder, batch, places, words, width, torch.bfloat16, images)
    slab = 2 * state._SLAB
    linear = batch * (places + 128) * (14 * width * 2 + 64 * words * 4)
    assert forward <= 2 * slab + linear
    assert backward <= 4.5 * slab + linear


def test_exponentials_are_kept_only_within_a_slab(recorder: Recorder) -> None:
    for batch, kept in ((8, True), (16, False)):
        features = [torch.empty(batch, 1600, 512)] * 3 + [torch.empty(batch, 20, 512)] * 3
        with recorder:
            kept_state = schedule.forward(features, torch.empty(batch, 20), None)[1]
        assert (kept_state.exponentials.numel() > 0) == kept


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_tile_reads_the_maxima_of_two_tiles_of_logits(
    architecture: int, tf32: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tile_sizes, "architecture", lambda: architecture)
    monkeypatch.setattr(launch, "uses_tf32", lambda: tf32)
    columns = tile_sizes.tile_of("logits", dtype).keys
    assert columns % 64 == 0
    for kernel in ("values", "gradients", "weights"):
        assert columns % tile_sizes.tile_of(kernel, dtype).keys == 0
    for kernel, side in itertools.product(("words", "ratio", "direct", "prepare"), ("rows", "keys")):
        assert 128 % getattr(tile_sizes.tile_of(kernel, dtype), side) == 0
