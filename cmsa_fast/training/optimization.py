"""Optimiser: which parameters have weight decay, the learning-rate schedule, the average of the weights."""

import math

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..models.base import ReferringModel
from .muon import Muon
from .recipe import Recipe


def parameter_groups(model: ReferringModel, weight_decay: float) -> list[dict[str, object]]:
    """Split the trainable parameters into those with weight decay and those without.

    Biases, scales of normalisation layers (all parameters with fewer than two dimensions) and embeddings have no
    decay, nor do the submodules that the model lists in `no_weight_decay()`. The CMSA models list their attention
    and fusion, so that decay acts on the convolutions of the backbone, of the mask head and, in cmsa-released, of
    the Res5 squeeze: the layers to which the published code applies it.

    Args:
        model: The model to train.
        weight_decay: Coefficient for the parameters with decay.

    Returns:
        Parameter groups of a PyTorch optimizer; a single one if `weight_decay` is 0.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not weight_decay:
        return [{"params": list(trained.values()), "weight_decay": 0.0}]
    embeddings = [name for name, part in model.named_modules() if isinstance(part, nn.Embedding)]
    prefixes = tuple(f"{name}." for name in (*model.no_weight_decay(), *embeddings))
    exempt = {name for name, p in trained.items() if p.ndim < 2 or name.startswith(prefixes)}
    return [
        {"params": [p for name, p in trained.items() if name not in exempt], "weight_decay": weight_decay},
        {"params": [p for name, p in trained.items() if name in exempt], "weight_decay": 0.0},
    ]


def build_optimizer(model: ReferringModel, recipe: Recipe) -> tuple[Optimizer, LambdaLR]:
    """The optimiser of the recipe over `parameter_groups`, and its learning-rate schedule.

    "adamw" is Adam with decoupled weight decay.
    """
    groups = parameter_groups(model, recipe.weight_decay)
    optimizer: Optimizer
    if recipe.optimizer == "muon":
        rates = {"matrix_rate": recipe.matrix_rate, "learning_rate": recipe.learning_rate}
        optimizer = Muon(model, groups, **rates)
    else:
        optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    return optimizer, LambdaLR(optimizer, lambda step: learning_rate_factor(step, recipe))


def learning_rate_factor(step: int, recipe: Recipe) -> float:
    """Learning rate at a step, relative to `recipe.learning_rate`.

    It rises linearly over the warm-up steps and then falls to `recipe.end_learning_rate`, as (1 - progress) **
    power ("poly") or as half a cosine ("cosine").
    """
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    progress = min(progress, 1.0)
    if recipe.schedule == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        left = (1 - progress) ** recipe.power
    end = recipe.end_learning_rate / recipe.learning_rate
    return float(end + (1 - end) * left)


def build_average(model: ReferringModel, recipe: Recipe) -> AveragedModel | None:
    """Exponential moving average of the weights, updated after every step; None if `ema_decay` is 0."""
    if not recipe.ema_decay:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay))
