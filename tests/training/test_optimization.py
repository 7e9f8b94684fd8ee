"""Optimiser: the layers with weight decay, the learning-rate schedule, the average of the weights."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.small_training import OPTIONS, RECIPE, SIZE, VOCABULARY, images
from torch import nn

from cmsa_fast.data.batch import Collate
from cmsa_fast.models import build_model
from cmsa_fast.training.loop import training_step
from cmsa_fast.training.optimization import build_average, build_optimizer, learning_rate_factor, parameter_groups


def norms(model: nn.Module) -> dict[str, float]:
    return {name: float(p.detach().norm()) for name, p in model.named_parameters() if p.ndim > 1}


@pytest.mark.parametrize(
    ("name", "decayed"), [("cmsa", {"backbone", "mask"}), ("cmsa-released", {"backbone", "mask", "squeeze"})]
)
def test_layers_with_weight_decay(name: str, decayed: set[str]) -> None:
    model = build_model(name, **OPTIONS)
    with_decay, without = parameter_groups(model, 0.1)
    chosen = {id(p) for p in with_decay["params"]}
    assert {id(p) for p in without["params"]}.isdisjoint(chosen)
    for parameter_name, parameter in model.named_parameters():
        expected = parameter_name.partition(".")[0] in decayed and parameter.ndim > 1
        assert (id(parameter) in chosen) == expected, parameter_name
    assert len(with_decay["params"]) + len(without["params"]) == len(list(model.parameters()))


def test_frozen_parameters_embeddings_and_norms_have_no_decay() -> None:
    parts = (nn.Embedding(3, 2), nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 1))
    model: Any = nn.Sequential(*parts)
    model.no_weight_decay = tuple
    model[3].requires_grad_(False)
    with_decay, without = parameter_groups(model, 0.1)
    assert with_decay["params"] == [model[1].weight]
    assert without["params"] == [model[0].weight, model[1].bias, *model[2].parameters()]
    assert [group["weight_decay"] for group in parameter_groups(model, 0.0)] == [0.0]


def test_the_paper_recipe_keeps_the_norms() -> None:
    """Coupled L2 on all parameters drives unseen words and the projections of attention to zero."""
    torch.manual_seed(0)
    model = build_model("cmsa", **{**OPTIONS, "vocabulary_size": len(VOCABULARY) + 9}).train()
    recipe = replace(RECIPE, learning_rate=2e-3, steps=200, weight_decay=5e-4, warmup_steps=0)
    optimizer, schedule = build_optimizer(model, recipe)
    batch = Collate(VOCABULARY, SIZE)(images(2).samples)
    unseen = model.words.weight[-9:].detach().clone()
    before = norms(model)
    for _ in range(recipe.steps):
        training_step(model, optimizer, batch, 0.0)
        schedule.step()
    assert torch.equal(model.words.weight[-9:], unseen)
    assert {name for name, norm in norms(model).items() if norm < 0.8 * before[name]} == set()


def test_decay_is_decoupled_from_the_gradient() -> None:
    model: Any = nn.Linear(3, 2, bias=False)
    model.no_weight_decay = tuple
    optimizer, schedule = build_optimizer(
        model, replace(RECIPE, weight_decay=0.1, learning_rate=0.5, warmup_steps=0, steps=3)
    )
    expected = model.weight.detach().clone()
    for _ in range(3):
        expected *= 1 - schedule.get_last_lr()[0] * 0.1
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(model.weight.detach(), expected)


def test_learning_rate_schedules() -> None:
    recipe = replace(RECIPE, steps=6, warmup_steps=2, power=2.0)
    factors = [learning_rate_factor(step, recipe) for step in range(8)]
    assert factors == pytest.approx([0.5, 1.0, 1.0, 9 / 16, 4 / 16, 1 / 16, 0.0, 0.0])
    linear = replace(recipe, warmup_steps=0, power=1.0, steps=4)
    assert [learning_rate_factor(step, linear) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    only_warmup = replace(recipe, warmup_steps=4, steps=2)
    assert [learning_rate_factor(step, only_warmup) for step in range(3)] == [0.25, 0.5, 0.75]
    ends = replace(linear, end_learning_rate=0.2 * linear.learning_rate)
    factors = [learning_rate_factor(step, ends) for step in (0, 2, 4, 9)]
    assert factors == pytest.approx([1.0, 0.6, 0.2, 0.2])
    cosine = replace(ends, schedule="cosine")
    factors = [learning_rate_factor(step, cosine) for step in (0, 1, 2, 4)]
    assert factors == pytest.approx([1.0, 0.6 + 0.4 * math.sqrt(0.5), 0.6, 0.2])


def test_average_of_the_weights() -> None:
    model: Any = nn.Linear(1, 1, bias=False)
    assert build_average(model, RECIPE) is None
    average = build_average(model, replace(RECIPE, ema_decay=0.75))
    assert average is not None
    for value in (8.0, 4.0, 0.0):  # 8, then 0.75 * 8 + 0.25 * 4 = 7, then 5.25
        nn.init.constant_(model.weight, value)
        average.update_parameters(model)
    assert float(average.module.weight.detach()) == 5.25
