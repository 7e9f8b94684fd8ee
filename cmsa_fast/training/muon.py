"""Muon (Jordan et al., 2024): orthogonalised momentum steps for matrices, Adam steps for other parameters."""

from typing import Any

import torch
from torch import Tensor, nn

# Quintic Newton-Schulz iteration; five rounds bring singular values to between 0.7 and 1.2.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5
_MOMENTUM = 0.95
_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
_MIN_SIZE = 8  # a matrix with fewer rows or columns has Adam steps


class Muon(torch.optim.Optimizer):
    """Muon for the weights of convolutions and linear layers, AdamW for everything else.

    Such a weight is a matrix with one row per output channel. Its step has singular values near 1, so that rare
    features are learnt as fast as frequent ones, and a root mean square of 0.2 times its learning rate, similar
    to a step of Adam. `torch.optim.Muon` accepts only two-dimensional parameters and computes in bfloat16; this
    class accepts the weights of convolutions and computes in the dtype of the parameters.
    """

    def __init__(
        self, model: nn.Module, groups: list[dict[str, Any]], *, matrix_rate: float, learning_rate: float
    ) -> None:
        """
        Args:
            model: Its convolutions and linear layers say which parameters are matrices.
            groups: Parameter groups, each with its `weight_decay`; every group is split into matrices and others.
            matrix_rate: Learning rate of the matrices.
            learning_rate: Learning rate of the other parameters.
        """
        chosen = {id(weight) for weight in matrices(model)}
        split = []
        for group in groups:
            for orthogonal, rate in ((True, matrix_rate), (False, learning_rate)):
                parameters = [p for p in group["params"] if (id(p) in chosen) == orthogonal]
                if parameters:
                    settings = {"params": parameters, "lr": rate, "orthogonal": orthogonal}
                    split.append({**group, **settings})
        super().__init__(split, {"lr": learning_rate, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            compute = self._orthogonal_step if group["orthogonal"] else self._adam_step
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(compute(parameter, parameter.grad), alpha=group["lr"])

    def _orthogonal_step(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(gradient, 1 - _MOMENTUM)
        matrix = gradient.lerp(momentum, _MOMENTUM).flatten(1)  # Nesterov momentum
        scale = 0.2 * max(matrix.shape) ** 0.5
        return orthogonalized(matrix).mul_(scale).view_as(parameter)

    def _adam_step(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["mean"] = torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
        state["step"] += 1
        steps = int(state["step"])
        mean = state["mean"].lerp_(gradient, 1 - _BETAS[0])
        square = state["square"].lerp_(gradient.square(), 1 - _BETAS[1])
        deviation = (square / (1 - _BETAS[1] ** steps)).sqrt_().add_(_EPSILON)
        return (mean / (1 - _BETAS[0] ** steps)).div_(deviation)


def matrices(model: nn.Module) -> list[Tensor]:
    """Trainable weights of convolutions and linear layers with at least 8 rows and 8 columns."""
    return [
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
        and module.weight.requires_grad
        and min(module.weight.flatten(1).shape) >= _MIN_SIZE
    ]


def orthogonalized(matrix: Tensor) -> Tensor:
    """A matrix with the same singular vectors and singular values between about 0.7 and 1.2.

    Newton-Schulz iteration, which needs matrix products only. Directions whose singular value is below a
    thousandth of the largest stay smaller.

    Args:
        matrix: Floating point [rows, columns].

    Returns:
        [rows, columns]; zero if the matrix is zero.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.T if tall else matrix
    wide = wide / wide.norm().clamp_min(1e-7)
    first, third, fifth = _COEFFICIENTS
    # Every round multiplies the matrix X from the left by a polynomial of X X^T. The polynomials are multiplied
    # into `factor`, [rows, rows], so that only two products involve the columns, often many times as many.
    square = wide @ wide.T
    even = torch.addmm(square, square, square, beta=third, alpha=fifth)
    even.diagonal().add_(first)
    factor = even
    for _ in range(_ROUNDS - 1):
        square = even @ square @ even
        even = torch.addmm(square, square, square, beta=third, alpha=fifth)
        even.diagonal().add_(first)
        factor = even @ factor
    result = factor @ wide
    return result.T if tall else result
