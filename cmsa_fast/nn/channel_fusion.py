"""Gated multi-level fusion as the published CMSA code does it: gates per channel, weights tied in pairs."""

import functools
import operator
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_LEVELS = 3


class ChannelGatedFusion(nn.Module):
    """Each level takes from the two others what its own gates admit, place by place and channel by channel.

    X^i is a 1x1 convolution and a ReLU of level i's features. One 3x3 convolution of X^i alone gives its three
    maps u, f and r, each as wide as X^i:

        f = sigmoid(f + 1),  r = sigmoid(r + 1)
        c^i = f (a^i X^j + (1 - a^i) X^k) + (1 - f) u
        F^i = r tanh(c^i) + (1 - r) X^i

    and the result is the sum of all F^i. j and k are the other two levels, the deeper one first; a^i starts at
    0.5. Where it leaves the paper's Eq. 5 (`GatedFusion`): the target's gate f^i admits both other levels, where
    Eq. 5 has each source's memory gate let itself out; (1 - f) weighs a learned map u, not X^i itself; gates
    have channels and an offset of 1; the two weights of a level sum to 1.
    """

    def __init__(self, in_channels: Sequence[int], fused_channels: int = 500) -> None:
        """
        Args:
            in_channels: channels of the features of Res3, Res4 and Res5.
            fused_channels: channels of X^i and of the result (500 in the published code).

        Raises:
            ValueError: there are not three levels, or a number of channels is below 1.
        """
        super().__init__()
        if len(in_channels) != _LEVELS or min(*in_channels, fused_channels) < 1:
            raise ValueError(
                "in_channels must name three levels, and every number of channels must be at least 1; "
                f"got in_channels={list(in_channels)}, fused_channels={fused_channels}."
            )
        self.project = nn.ModuleList(nn.Conv2d(size, fused_channels, 1) for size in in_channels)
        self.gates = nn.ModuleList(
            nn.Conv2d(fused_channels, 3 * fused_channels, 3, padding=1) for _ in in_channels
        )
        self.balance = nn.Parameter(torch.full((_LEVELS,), 0.5))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights and zero biases, TensorFlow's defaults; every a^i at 0.5."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(self.balance, 0.5)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """
        Args:
            levels: Res3, Res4 and Res5, [B, C_i, H, W] each.

        Returns:
            [B, fused_channels, H, W].

        Raises:
            ValueError: the levels are not three, or differ in batch or size.
        """
        if len(levels) != _LEVELS:
            raise ValueError(f"levels must be {_LEVELS} tensors; got {len(levels)}.")
        shapes = {(len(level), *level.shape[2:]) for level in levels}
        if len(shapes) != 1:
            raise ValueError(
                "levels must share batch, height and width; "
                f"got {[list(level.shape) for level in levels]}."
            )
        projected = [conv(level).relu() for conv, level in zip(self.project, levels, strict=True)]
        return functools.reduce(
            operator.add, [self._level(index, projected) for index in range(_LEVELS)]
        )

    def _level(self, index: int, projected: Sequence[Tensor]) -> Tensor:
        x = projected[index]
        deeper, shallower = (
            projected[other] for other in reversed(range(_LEVELS)) if other != index
        )
        update, forget, reset = self.gates[index](x).chunk(3, dim=1)
        gathered = torch.lerp(shallower, deeper, self.balance[index].to(x.dtype))
        state = torch.lerp(update, gathered, (forget + 1).sigmoid())
        return torch.lerp(x, state.tanh(), (reset + 1).sigmoid())
