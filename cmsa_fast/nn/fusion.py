"""Gated multi-level fusion (Ye et al., CVPR 2019, Eq. 5)."""

import functools
import operator
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class GatedFusion(nn.Module):
    """Each level takes from the others what their memory gates let out, as far as its own reset gate admits.

    X^i is a 1x1 convolution of level i's features, m^i and r^i are one number per place:

        m^i = sigmoid(conv(X^i)),  r^i = sigmoid(conv(X^i))
        G^i = (1 - m^i) X^i + sum over j != i of gamma^j m^j X^j
        F^i = r^i tanh(G^i) + (1 - r^i) X^i

    and the result is the sum of all F^i (the argument of Eq. 6). The paper leaves the kernel of the gates open;
    3x3 is that of the published code. gamma starts at 0.5, as there.
    """

    def __init__(self, in_channels: Sequence[int], fused_channels: int = 500) -> None:
        """
        Args:
            in_channels: channels of each level's features.
            fused_channels: channels of X^i and of the result (500 in the paper).

        Raises:
            ValueError: there are fewer than two levels, or a number of channels is below 1.
        """
        super().__init__()
        if len(in_channels) < 2 or min(*in_channels, fused_channels) < 1:
            raise ValueError(
                "in_channels must name at least two levels, and every number of channels must be at "
                f"least 1; got in_channels={list(in_channels)}, fused_channels={fused_channels}."
            )
        self.project = nn.ModuleList(_projection(size, fused_channels) for size in in_channels)
        self.memory = nn.ModuleList(nn.Conv2d(fused_channels, 1, 3, padding=1) for _ in in_channels)
        self.reset = nn.ModuleList(nn.Conv2d(fused_channels, 1, 3, padding=1) for _ in in_channels)
        self.gamma = nn.Parameter(torch.full((len(in_channels),), 0.5))

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """
        Args:
            levels: [B, C_i, H, W] each, in the order of in_channels.

        Returns:
            [B, fused_channels, H, W].

        Raises:
            ValueError: the levels are not as many as in_channels named, or differ in batch or size.
        """
        self._check("levels", levels)
        return self.fuse([conv(level) for conv, level in zip(self.project, levels, strict=True)])

    def fuse(self, projected: Sequence[Tensor]) -> Tensor:
        """`forward` for levels that met their 1x1 convolution in `project` already; see `CMSA.project`.

        Args:
            projected: X^i, [B, fused_channels, H, W] each.

        Returns:
            [B, fused_channels, H, W].

        Raises:
            ValueError: as `forward`.
        """
        self._check("projected", projected)
        memory = [conv(x).sigmoid() for conv, x in zip(self.memory, projected, strict=True)]
        reset = [conv(x).sigmoid() for conv, x in zip(self.reset, projected, strict=True)]
        shared = [(g * m) * x for g, m, x in zip(self.gamma, memory, projected, strict=True)]
        total = functools.reduce(operator.add, shared)
        gated = []
        for x, m, r, gamma in zip(projected, memory, reset, self.gamma, strict=True):
            # (1 - m) x + (total - gamma m x) in two passes over the channels.
            gathered = x * (1 - (1 + gamma) * m) + total
            gated.append(r * gathered.tanh() + (1 - r) * x)
        return functools.reduce(operator.add, gated)

    def _check(self, name: str, levels: Sequence[Tensor]) -> None:
        if len(levels) != len(self.project):
            raise ValueError(f"{name} must be {len(self.project)} tensors; got {len(levels)}.")
        shapes = {(len(level), *level.shape[2:]) for level in levels}
        if len(shapes) != 1:
            raise ValueError(
                f"{name} must share batch, height and width; "
                f"got {[list(level.shape) for level in levels]}."
            )


def _projection(in_channels: int, channels: int) -> nn.Conv2d:
    convolution = nn.Conv2d(in_channels, channels, 1)
    # Tokens of CMSA have a squared length of about 4 whatever their width, so X starts with a standard
    # deviation of 0.4. A start scaled by the fan-in gives 0.03 at the paper's widths, where tanh is linear and
    # the gates do not see the features.
    nn.init.normal_(convolution.weight, std=0.2)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return convolution
