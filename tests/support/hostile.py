"""Random mixtures of what harms rounding, and how many of their errors exceed a bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from support.joint_oracle import draw_joint
from support.oracle import Array, Case, Function, errors, exact
from support.separable_oracle import draw
from torch import Tensor

_EPS = float(torch.finfo(torch.float32).eps)
_HARMS = ("none", "none", "offset", "outlier", "two modes", "scale")


def hostile_separable(seed: int) -> Case:
    """2 to 39 places, 2 to 8 words, 2 expressions, padded words."""
    random = np.random.default_rng(seed)
    sizes = [int(random.integers(2, limit)) for limit in (40, 9, 24, 24)]
    return _harmed(draw(*sizes, scale=10.0 ** random.uniform(-1, 0.5), seed=seed), random)


def hostile_joint(seed: int) -> Case:
    random = np.random.default_rng(seed)
    sizes = [int(random.integers(2, limit)) for limit in (40, 60, 24, 24)]
    return _harmed(draw_joint(*sizes, spread=10.0 ** random.uniform(-1, 0.5), seed=seed), random)


def _harmed(case: Case, random: np.random.Generator) -> Case:
    """Each input harmed in one way or not at all.

    An offset of all rows, an outlier among them and two modes of opposite sign have sizes of 1 to 1000, a scale of
    0.01 to 100.
    """
    changed: dict[str, Tensor | None] = {}
    for name, part in case.given.items():
        part, rows = part.clone(), part.shape[1]
        direction = torch.from_numpy(random.standard_normal(part.shape[2])).float()
        size = 10.0 ** random.uniform(0, 3)
        harm = random.choice(_HARMS)
        if harm == "offset":
            part += size * direction
        elif harm == "outlier":
            part[:, int(random.integers(rows))] *= size
        elif harm == "two modes":
            part += size * torch.from_numpy(random.choice([-1.0, 1.0], size=(rows, 1))).float() * direction
        elif harm == "scale":
            part *= 10.0 ** random.uniform(-2, 2)
        changed[name] = part
    return case.with_inputs(**changed)


class Excess(NamedTuple):
    """Errors divided by what they may be, [cases, outputs] each; relative to the exact norm.

    Attributes:
        budget: Divided by max(error of the literal form, eps).
        literal: The same for the literal form in another order of tokens and channels.
        gross: Divided by max(errors of the literal form in three orders, eps * gross norm). The gross norm is that
            of the sums of absolute values in place of the sums.
        errors: The errors themselves.
    """

    budget: Array
    literal: Array
    gross: Array
    errors: Array


def excess(function: Function, cases: Sequence[Case]) -> Excess:
    rows = []
    for case in cases:
        truth = exact(case)
        norms = np.array([np.linalg.norm(part) for part in truth])
        norms[1:] = norms[1:].max()
        own = np.array(errors(function, case, truth))
        orders = np.array([_reordered_errors(case, truth, order) for order in range(3)])
        gross = _gross_norms(case) / norms
        budget = np.maximum(orders[0], _EPS)
        rows.append(
            (own / budget, orders[1] / budget, own / np.maximum(orders.max(0), _EPS * np.maximum(gross, 1)), own)
        )
    return Excess(*(np.array(part) for part in zip(*rows, strict=True)))


def _reordered_errors(case: Case, truth: list[Array], order: int) -> list[float]:
    """Errors of the literal form with the channels of queries and keys in another order; 0 is the given one."""
    names = case.operation.names
    generator = torch.Generator().manual_seed(order)

    def literal(*arguments: Tensor, **options: Any) -> Tensor:
        channels = torch.randperm(arguments[0].shape[2], generator=generator)
        if order == 0:
            return case.operation.literal(*arguments, **options)
        inputs = (
            part if name.endswith("value") else part[..., channels]
            for name, part in zip(names, arguments[:-1], strict=True)
        )
        return case.operation.literal(*inputs, arguments[-1], **options)

    return errors(literal, case, truth)


def _gross_norms(case: Case) -> Array:
    """Norms of result and gradients if no terms cancelled: sums of absolute values, with the exact softmax."""
    parts = [part.double().requires_grad_() for part in case.given.values()]
    query, key, value = _tokens(parts)
    gross_query, gross_key, gross_value = (part.detach() for part in _tokens([part.abs() for part in parts]))
    logits = (query @ key.mT).detach()
    places, grad = case.grad.shape[1], case.grad.double().abs()
    if query.shape[1] == places:  # the joint attention
        real = torch.ones(1, 1, 1)
        unmasked = case.mask[:, None, :]
    else:
        real = case.mask / case.mask.sum(1, keepdim=True)
        unmasked = case.mask.repeat(1, places)[:, None, :]
        grad = (grad[:, :, None] * real[:, None, :, None]).flatten(1, 2)
    softmax = logits.masked_fill(~unmasked, -torch.inf).softmax(-1)
    result = (softmax @ gross_value).unflatten(1, (places, -1))
    grad_softmax = grad @ gross_value.mT
    grad_logits = softmax * (grad_softmax + (softmax * grad_softmax).sum(-1, keepdim=True))
    gradients = torch.autograd.grad(
        [query, key, value], parts, [grad_logits @ gross_key, grad_logits.mT @ gross_query, softmax.mT @ grad]
    )
    result = (result * real[:, None, :, None]).sum(2) if real.ndim == 2 else result[:, :, 0]
    return np.array([float(part.norm()) for part in (result, *gradients)])


def _tokens(parts: list[Tensor]) -> list[Tensor]:
    """Queries, keys and values of all tokens, [B, T, d]."""
    if len(parts) == 3:
        return [part * 1 for part in parts]
    return [
        (place[:, :, None] + word[:, None]).flatten(1, 2) for place, word in zip(parts[:3], parts[3:], strict=True)
    ]
