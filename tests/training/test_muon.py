"""Muon: which parameters are matrices, and its steps by hand."""

from __future__ import annotations

import pytest
import torch
from support.small_training import OPTIONS
from torch import nn

from cmsa_fast.models import build_model
from cmsa_fast.training.muon import Muon, matrices, orthogonalized


@pytest.mark.parametrize("shape", [(9, 30), (30, 9), (16, 16)])
def test_orthogonalized_keeps_directions_and_brings_lengths_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    result = orthogonalized(matrix)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.5
    assert values.max() < 1.3
    # Equal singular vectors: the product with the matrix is symmetric.
    product = result.T @ matrix
    torch.testing.assert_close(product, product.T)
    assert torch.equal(orthogonalized(torch.zeros(8, 9)), torch.zeros(8, 9))


def test_matrices_are_wide_weights_of_convolutions_and_linear_layers() -> None:
    model = build_model("cmsa", **OPTIONS)
    chosen = {id(part) for part in matrices(model)}
    names = {name for name, part in model.named_parameters() if id(part) in chosen}
    assert {"attention.0.query.weight", "fusion.project.0.weight", "backbone.stem.0.weight"} < names
    others = {"words.weight", "mask.weight", "fusion.memory.0.weight", "fusion.gamma"}
    assert not names & others
    assert not any(name.endswith("bias") for name in names)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_steps_by_hand(decay: float) -> None:
    torch.manual_seed(0)
    model = nn.Linear(9, 8)
    expected = nn.Parameter(model.bias.detach().clone())
    adam = torch.optim.AdamW([expected], lr=0.01, weight_decay=decay)
    groups = [{"params": list(model.parameters()), "weight_decay": decay}]
    muon = Muon(model, groups, matrix_rate=0.1, learning_rate=0.01)
    weight, momentum = model.weight.detach().clone(), torch.zeros(8, 9)
    for _ in range(3):
        for part in model.parameters():
            part.grad = torch.randn_like(part)
        assert model.weight.grad is not None
        assert model.bias.grad is not None
        expected.grad = model.bias.grad.clone()
        momentum = 0.95 * momentum + 0.05 * model.weight.grad
        nesterov = 0.05 * model.weight.grad + 0.95 * momentum
        weight = weight * (1 - 0.1 * decay) - 0.1 * 0.2 * 3 * orthogonalized(nesterov)
        adam.step()
        muon.step()
    torch.testing.assert_close(model.weight.detach(), weight)
    torch.testing.assert_close(model.bias, expected)
