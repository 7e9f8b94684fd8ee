"""Kernels that one forward of `CMSA` launches on a GPU, counted on fake CUDA tensors."""

from __future__ import annotations

import contextlib
import importlib
from collections import Counter
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cmsa_fast.nn import CMSA, cmsa, spatial_coordinates, tokens

pytest.importorskip("triton", reason="the kernels need Triton, which is not installed")

# Operations that launch no kernel, besides views.
NO_LAUNCH = {"prim::device", "aten::new_empty", "aten::_unsafe_view", "aten::empty"}


class Launches(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.kernels = 0
        self.counting = True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if self.counting and not func.is_view and func._schema.name not in NO_LAUNCH:
            self.operations[func._schema.name] += 1
        return func(*args, **(kwargs or {}))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self.counting = False
        yield
        self.counting = True

    def launch(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        self.kernels += 0 not in grid


def kernels(name: str) -> ModuleType:
    return importlib.import_module(f"cmsa_fast.kernels.separable_attention.triton.{name}")


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="fake CUDA tensors would ask the driver for the architecture"
)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("dtype", "masked", "most"),
    [
        (torch.float32, False, 20),
        (torch.float32, True, 22),
        (torch.bfloat16, False, 21),
        (torch.bfloat16, True, 23),
    ],
)
def test_a_level_takes_few_launches(
    dtype: torch.dtype, masked: bool, most: int, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each operator of PyTorch counts as one. Models check arguments once for all of their levels.

    The operators' implementations are called in place of the operators, which would hide their launches.
    """
    counted = Launches()
    for name in ("prepare", "words", "logits", "values", "direct", "projection"):
        monkeypatch.setattr(kernels(name), "launch", counted.launch)
    of_checks = Counter[str]()
    check_inputs = CMSA.check_inputs

    def check(*arguments: Any) -> None:
        check_inputs(*arguments)
        of_checks.update(counted.operations)

    def attention(*features: Tensor, image_index: Tensor | None, backend: str) -> Tensor:
        *features_alone, weight = features
        return kernels("schedule").forward(features_alone, weight, image_index)[0]

    def tail(*parts: Tensor, image_index: Tensor | None, backend: str) -> Tensor:
        return kernels("projection").launch_level_tail(*parts, image_index)

    def constant(make: Any, like: Tensor, *arguments: Any) -> Tensor:
        with counted.paused():  # kept since the first call, see `test_constants_are_made_once`
            return make(*arguments, dtype=like.dtype, device=like.device)

    monkeypatch.setattr(CMSA, "check_inputs", check)
    monkeypatch.setattr(cmsa, "unchecked_cross_modal_attention", attention)
    monkeypatch.setattr(cmsa, "unchecked_level_tail", tail)
    monkeypatch.setattr(tokens, "_constant", constant)
    with FakeTensorMode(), torch.device("cuda"):
        module = CMSA(64, 32, 16)
        for part in (module.query, module.key, module.value, module.output):
            part.weight = torch.nn.Parameter(part.weight.detach().to(dtype))
        visual = torch.empty(2 if shared else 8, 64, 40, 40, dtype=dtype)
        words = torch.empty(8, 20, 32, dtype=dtype)
        mask = torch.ones(8, 20, dtype=torch.bool) if masked else None
        index = torch.zeros(8, dtype=torch.int64) if shared else None
        with counted:
            module(visual, words, mask, image_index=index)
    assert counted.kernels > 5
    assert of_checks.total() == 3 * masked + 4 * shared, of_checks
    assert (counted.operations - of_checks).total() + counted.kernels <= most, counted.operations


def test_constants_are_made_once() -> None:
    """Coordinates and zeros of a size, dtype and device are kept, also from a call in inference mode."""
    tokens._kept.cache_clear()
    level = CMSA(3, 2, 4)
    visual, words, mask = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 2), torch.tensor([[True, True, False]] * 2)
    with torch.inference_mode():
        first = level(visual, words, mask)
    with Launches() as counted:
        second = level(visual, words, mask)
    assert not {"aten::linspace", "aten::stack", "aten::zeros", "aten::fill_"} & set(counted.operations)
    second.sum().backward()
    assert torch.equal(first, second.detach())
    for other in (visual[:, :, :3], visual.mT, visual.double()):
        expected = spatial_coordinates(*other.shape[2:], dtype=other.dtype).flatten(1).T
        assert torch.equal(tokens.coordinate_rows(other), expected)
    assert tokens._kept.cache_info().currsize == 5
    tokens._kept.cache_clear()
    with FakeTensorMode() as mode:
        level_in_fake = CMSA(3, 2, 4)
        level_in_fake(mode.from_tensor(visual), mode.from_tensor(words), mode.from_tensor(mask))
    torch.compile(level, backend="eager", fullgraph=True)(visual, words, mask)
    assert not tokens._kept.cache_info().currsize
