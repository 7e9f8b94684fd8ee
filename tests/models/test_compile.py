"""Whole models under `torch.compile(fullgraph=True)`: one graph for all numbers of expressions and words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.small_models import build, images
from torch import Tensor, nn
from torch._dynamo.utils import counters

from cmsa_fast.models import for_inference
from cmsa_fast.nn import CMSA

FOLDED = "cmsa for inference"


@pytest.fixture(autouse=True)
def own_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


class Explanation(nn.Module):
    """The logits and the word attention of a model, or the result and the word attention of a level."""

    def __init__(self, explained: Any) -> None:
        super().__init__()
        self.explained = explained

    def forward(self, visual: Tensor, words: Tensor, word_mask: Tensor, image_index: Tensor) -> Tensor:
        one = self.explained
        if isinstance(one, CMSA):
            parts = one(visual, words, word_mask, image_index=image_index, return_word_attention=True)
        else:
            parts = one.explain(one.encode_image(visual), one.encode_text(words, word_mask), image_index)
        return torch.cat([part.flatten() for part in parts])


def draw(expressions: int, words: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(expressions)
    ids = torch.randint(9, (expressions, words), generator=generator)
    mask = torch.rand(expressions, words, generator=generator) < 0.6
    mask[:, -1] = True
    index = torch.randint(2, (expressions,), generator=generator)
    for part in (ids, mask, index):
        torch._dynamo.mark_dynamic(part, list(range(part.ndim)))  # raises where a graph is limited to one size
    return ids, mask, index


def results(run: Any, module: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    module.zero_grad()
    result = run(*inputs)
    if result.requires_grad:
        result.square().mean().backward()
    return [result.detach(), *(part.grad.clone() for part in module.parameters() if part.grad is not None)]


@pytest.mark.parametrize("name", ["cmsa", "cmsa-released", FOLDED])
def test_one_graph_serves_all_expressions(name: str) -> None:
    """Forward and backward; the folded model with word attention, and its check of changed weights."""
    model = Explanation(for_inference(build("cmsa"))) if name == FOLDED else build(name)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(name != FOLDED):
        for expressions, words in ((3, 4), (5, 7), (2, 10)):
            inputs = (images(), *draw(expressions, words))
            ours, theirs = (results(run, model, inputs) for run in (compiled, model))
            assert len(ours) == len(theirs)
            assert len(ours) > 1 or name == FOLDED
            for one, other in zip(ours, theirs, strict=True):
                assert (one - other).norm() <= 1e-4 * other.norm() + 1e-6
        assert counters["stats"]["unique_graphs"] == 1
        if name == FOLDED:
            model.explained.model.attention[0].value.weight.mul_(2)
            with pytest.raises(RuntimeError, match="fold them again"):
                compiled(*inputs)


@pytest.mark.slow
def test_inductor_compiles_a_level() -> None:
    torch.manual_seed(0)
    level = Explanation(CMSA(6, 5, 4))
    compiled = torch.compile(level, fullgraph=True)
    for expressions, words in ((3, 4), (5, 7)):
        _, mask, index = draw(expressions, words)
        vectors = torch.randn(expressions, words, 5)
        torch._dynamo.mark_dynamic(vectors, (0, 1))
        inputs = (torch.randn(2, 6, 3, 4), vectors, mask, index)
        for one, other in zip(results(compiled, level, inputs), results(level, level, inputs), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1
