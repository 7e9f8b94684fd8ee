"""No call makes the host wait for a GPU: modules and models run on fake CUDA tensors, forward and backward.

The exception is stated in docs/kernels.md: the separable attention of backend "torch" reads flags and image_index.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.host_waits import HostWaitError, NoHostWaits, run_backward
from support.small_models import build
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import cmsa_fast.kernels
from cmsa_fast.kernels import backends, cross_modal_attention, validation
from cmsa_fast.models import for_inference
from cmsa_fast.nn import CMSA, FoldedLevel, PooledCMSA, SqueezedCMSA

# The last compares versions of weights, which fake tensors have not.
OPAQUE = ("factored_forward", "factored_backward", "weights_are_unchanged")
EXPRESSIONS, WORDS, CHANNELS = 3, 4, 6

LEVELS: dict[str, Callable[[str], nn.Module]] = {
    "CMSA": lambda backend: CMSA(CHANNELS, 5, 4, backend=backend),
    "PooledCMSA": lambda backend: PooledCMSA(CHANNELS, 5, 4, backend=backend),
    "SqueezedCMSA": lambda backend: SqueezedCMSA(CHANNELS, 5, 4, 4, backend=backend),
}
each_level = pytest.mark.parametrize("name", LEVELS)
each_model = pytest.mark.parametrize("name", ["cmsa", "cmsa-released"])
each_index = pytest.mark.parametrize("shared", [False, True], ids=["own image", "shared image"])
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["torch", "triton"])


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> Iterator[None]:
    """A GPU that Triton supports, on which no kernel is launched; all new tensors are fakes on it."""
    pytest.importorskip("triton")
    monkeypatch.setattr(backends, "_obstacle", lambda device: "")
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    for module in pkgutil.walk_packages(cmsa_fast.kernels.__path__, "cmsa_fast.kernels."):
        if callable(getattr(importlib.import_module(module.name), "launch", None)):
            monkeypatch.setattr(f"{module.name}.launch", lambda *arguments, **constants: None)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with FakeTensorMode(), torch.device("cuda"):
        yield
    torch.set_default_dtype(before)


@pytest.fixture
def dtype() -> torch.dtype:
    return torch.float32


def level_inputs(shared: bool) -> tuple[tuple[Tensor, ...], dict[str, Tensor | None]]:
    """Visual features, words and mask; and image_index."""
    images = 2 if shared else EXPRESSIONS
    index = torch.zeros(EXPRESSIONS, dtype=torch.int64) if shared else None
    visual, words = torch.randn(images, CHANNELS, 3, 3), torch.randn(EXPRESSIONS, WORDS, 5)
    return (visual, words, torch.ones(EXPRESSIONS, WORDS, dtype=torch.bool)), {"image_index": index}


def model_inputs() -> tuple[Tensor, ...]:
    """Images, word ids, mask and image_index."""
    ids = torch.zeros(EXPRESSIONS, WORDS, dtype=torch.int64)
    return torch.rand(2, 3, 33, 40), ids, ids == 0, ids[:, 0]


@each_dtype
@each_index
@each_level
def test_levels_do_not_wait(name: str, shared: bool, dtype: torch.dtype) -> None:
    level = LEVELS[name]("auto")
    inputs, options = level_inputs(shared)
    with NoHostWaits(*OPAQUE) as mode:
        gradients = run_backward(level(*inputs, **options).float().sum())
    assert all(gradients[id(part)].shape == part.shape for part in level.parameters())
    assert ("separable_backward" in mode.operators) == (dtype == torch.bfloat16 and name == "CMSA")


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@each_dtype
@each_index
@torch.no_grad()
def test_folded_level_does_not_wait(shared: bool, dtype: torch.dtype) -> None:
    level = CMSA(CHANNELS, 5, 4)
    inputs, options = level_inputs(shared)
    folded = FoldedLevel(level, torch.randn(7, level.out_channels, 1, 1))
    with NoHostWaits(*OPAQUE):
        assert folded(*inputs, **options).shape == (EXPRESSIONS, 7, 3, 3)


@each_dtype
@each_model
def test_models_do_not_wait(name: str, dtype: torch.dtype) -> None:
    model = build(name)
    with NoHostWaits(*OPAQUE):
        gradients = run_backward(model(*model_inputs()).float().sum())
    assert {id(part) for part in model.parameters()} <= set(gradients)


@each_dtype
@torch.no_grad()
def test_inference_does_not_wait(dtype: torch.dtype) -> None:
    model = for_inference(build("cmsa"))
    images, words, mask, index = model_inputs()
    with NoHostWaits(*OPAQUE):
        logits = model.explain(model.encode_image(images), model.encode_text(words, mask), index).logits
    assert logits.shape == (EXPRESSIONS, 1, 33, 40)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: int(x.sum()),
        lambda x: 1 if x.any() else 0,
        lambda x: range(x.sum().long()),
        lambda x: (x > 0).nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.where(x > 0),
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
        lambda x: torch.equal(x, x),
        lambda x: x.cpu(),
        lambda x: torch.zeros(3, device="cpu").copy_(x),
        lambda x: x.add(torch.tensor([1.0, 2.0, 3.0], device="cpu").to(x.device)),
        lambda x: torch.tensor([1, 2, 3]),
        lambda x: x.repeat_interleave(x.long()),
    ],
)
def test_waits_are_seen(wait: Callable[[Tensor], Any]) -> None:
    x = torch.ones(3)
    with pytest.raises(HostWaitError), NoHostWaits():
        wait(x)


@each_dtype
@each_level
def test_argument_checks_that_wait_are_seen(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "_values_can_be_read", lambda tensor: True)
    inputs, options = level_inputs(True)
    with pytest.raises(HostWaitError), NoHostWaits(*OPAQUE):
        LEVELS[name]("auto")(*inputs, **options)


def test_flags_read_by_the_host_are_seen() -> None:
    """The exception: what the plain PyTorch attention reads is seen where it is not excepted."""
    parts = [torch.ones(3, size, 4) for size in (5, 5, 5, 2, 2, 2)]
    with pytest.raises(HostWaitError), NoHostWaits():
        cross_modal_attention(*parts, backend="torch")
