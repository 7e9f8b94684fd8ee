"""Gated fusion of levels: Eq. 5 of Ye et al. (CVPR 2019), and the variant of the published code."""

import functools
import operator
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .validation import check_dtype_and_device, check_unmodified

_LEVELS = 3  # of `ChannelGatedFusion`: Res3, Res4 and Res5


class GatedFusion(nn.Module):
    """Eq. 5: memory gates weight what each level sends to the others, reset gates weight what it accepts.

    X^i is a 1x1 convolution of the features of level i; m^i and r^i are one number per place:

        m^i = sigmoid(conv(X^i)),  r^i = sigmoid(conv(X^i))
        G^i = (1 - m^i) X^i + sum over j != i of gamma^j m^j X^j
        F^i = r^i tanh(G^i) + (1 - r^i) X^i

    The result is the sum of all F^i (the argument of Eq. 6). The paper does not give the kernel size of the gates;
    3x3 is that of the published code, as is the initial gamma of 0.5.
    """

    def __init__(self, in_channels: Sequence[int], fused_channels: int = 500) -> None:
        """
        Args:
            in_channels: Channels of the features of each level.
            fused_channels: Channels of X^i and of the result (500 in the paper).

        Raises:
            ValueError: There are fewer than two levels, or a number of channels is below 1.
        """
        super().__init__()
        if len(in_channels) < 2 or min(*in_channels, fused_channels) < 1:
            raise ValueError(
                "in_channels must have at least two levels, and every number of channels must be at "
                f"least 1; got in_channels={list(in_channels)}, fused_channels={fused_channels}."
            )
        self.project = nn.ModuleList(_projection(size, fused_channels) for size in in_channels)
        self.memory = nn.ModuleList(nn.Conv2d(fused_channels, 1, 3, padding=1) for _ in in_channels)
        self.reset = nn.ModuleList(nn.Conv2d(fused_channels, 1, 3, padding=1) for _ in in_channels)
        self.gamma = nn.Parameter(torch.full((len(in_channels),), 0.5))

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Project and fuse the levels.

        Args:
            levels: [B, C_i, H, W] each, in the order of in_channels.

        Returns:
            [B, fused_channels, H, W].

        Raises:
            ValueError: The number of levels is not that of in_channels, or levels differ in batch or size.
            TypeError: The dtype of a level is not that of the weights.
        """
        _check_levels("levels", levels, self.gamma)
        return self.unchecked_fuse([conv(level) for conv, level in zip(self.project, levels, strict=True)])

    def fuse(self, projected: Sequence[Tensor]) -> Tensor:
        """`forward` for levels to which their 1x1 convolution in `project` is already applied (`CMSA.project`).

        Args:
            projected: X^i, [B, fused_channels, H, W] each.

        Returns:
            [B, fused_channels, H, W].

        Raises:
            TypeError, ValueError: As in `forward`.
        """
        _check_levels("projected", projected, self.gamma)
        return self.unchecked_fuse(projected)

    def unchecked_fuse(self, projected: Sequence[Tensor]) -> Tensor:
        """`fuse` without argument checks."""
        gates = [
            _gates(x, cast(nn.Conv2d, memory), cast(nn.Conv2d, reset))
            for x, memory, reset in zip(projected, self.memory, self.reset, strict=True)
        ]
        memory, reset = zip(*gates, strict=True)
        shared = [(g * m) * x for g, m, x in zip(self.gamma, memory, projected, strict=True)]
        total = functools.reduce(operator.add, shared)
        gated = []
        for x, m, r, gamma in zip(projected, memory, reset, self.gamma, strict=True):
            # (1 - m) x + (total - gamma m x) in two passes over the channels.
            gathered = x * (1 - (1 + gamma) * m) + total
            gated.append(r * gathered.tanh() + (1 - r) * x)
        return functools.reduce(operator.add, gated)


class ChannelGatedFusion(nn.Module):
    """Fusion of the published code: the gates of a level weight what it accepts, per place and channel.

    X^i is a 1x1 convolution and a ReLU of the features of level i. One 3x3 convolution of X^i gives three maps u,
    f and r with the channels of X^i:

        f = sigmoid(f + 1),  r = sigmoid(r + 1)
        c^i = f (a^i X^j + (1 - a^i) X^k) + (1 - f) u
        F^i = r tanh(c^i) + (1 - r) X^i

    The result is the sum of all F^i. j and k are the other two levels, the deeper one first; a^i starts at 0.5.
    Differences to Eq. 5 of the paper (`GatedFusion`): the gate f^i of the target weights both other levels, where
    Eq. 5 uses the memory gate of each source; (1 - f) weights a learned map u instead of X^i; gates have channels
    and an offset of 1; the two weights of a level sum to 1.
    """

    def __init__(self, in_channels: Sequence[int], fused_channels: int = 500) -> None:
        """
        Args:
            in_channels: Channels of the features of Res3, Res4 and Res5.
            fused_channels: Channels of X^i and of the result (500 in the published code).

        Raises:
            ValueError: There are not three levels, or a number of channels is below 1.
        """
        super().__init__()
        if len(in_channels) != _LEVELS or min(*in_channels, fused_channels) < 1:
            raise ValueError(
                "in_channels must have three levels, and every number of channels must be at least 1; "
                f"got in_channels={list(in_channels)}, fused_channels={fused_channels}."
            )
        self.project = nn.ModuleList(nn.Conv2d(size, fused_channels, 1) for size in in_channels)
        self.gates = nn.ModuleList(
            nn.Conv2d(fused_channels, 3 * fused_channels, 3, padding=1) for _ in in_channels
        )
        self.balance = nn.Parameter(torch.empty(_LEVELS))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights and zero biases, the defaults of TensorFlow; every a^i at 0.5."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(cast(Tensor, module.bias))
        nn.init.constant_(self.balance, 0.5)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Project and fuse the levels.

        Args:
            levels: Res3, Res4 and Res5, [B, C_i, H, W] each.

        Returns:
            [B, fused_channels, H, W].

        Raises:
            ValueError: There are not three levels, or they differ in batch or size.
            TypeError: The dtype of a level is not that of the weights.
        """
        _check_levels("levels", levels, self.balance)
        return self.unchecked_forward(levels)

    def unchecked_forward(self, levels: Sequence[Tensor]) -> Tensor:
        """`forward` without argument checks."""
        projected = [conv(level).relu() for conv, level in zip(self.project, levels, strict=True)]
        return functools.reduce(operator.add, [self._level(index, projected) for index in range(_LEVELS)])

    def _level(self, index: int, projected: Sequence[Tensor]) -> Tensor:
        x = projected[index]
        deeper, shallower = (projected[other] for other in reversed(range(_LEVELS)) if other != index)
        update, forget, reset = self.gates[index](x).chunk(3, dim=1)
        gathered = torch.lerp(shallower, deeper, self.balance[index].to(x.dtype))
        state = torch.lerp(update, gathered, (forget + 1).sigmoid())
        return torch.lerp(x, state.tanh(), (reset + 1).sigmoid())


def _gates(x: Tensor, memory: nn.Conv2d, reset: nn.Conv2d) -> tuple[Tensor, ...]:
    """Memory and reset gate of a level, [B, 1, H, W] each."""
    for name, part in {"memory": memory, "reset": reset}.items():
        check_unmodified(name, part, nn.Conv2d)
    # One convolution: on a CPU two take twice the time.
    weight = torch.cat([memory.weight, reset.weight])
    bias = torch.cat([cast(Tensor, memory.bias), cast(Tensor, reset.bias)])
    return F.conv2d(x, weight, bias, padding=1).sigmoid().split(1, dim=1)


def _check_levels(name: str, levels: Sequence[Tensor], weights: Tensor) -> None:
    """Check the features of the levels; `weights` are a parameter of the fusion with one entry a level."""
    if len(levels) != len(weights):
        raise ValueError(f"{name} must be {len(weights)} tensors; got {len(levels)}.")
    shapes = {(len(level), *level.shape[2:]) for level in levels}
    if len(shapes) != 1:
        raise ValueError(
            f"{name} must share batch, height and width; got {[list(level.shape) for level in levels]}."
        )
    for number, level in enumerate(levels):
        check_dtype_and_device(f"{name}[{number}]", level, "the fusion's weights", weights)


def _projection(in_channels: int, channels: int) -> nn.Conv2d:
    convolution = nn.Conv2d(in_channels, channels, 1)
    # Tokens of CMSA have a squared length of about 4 at any width, so X starts with a standard deviation of 0.4.
    # Scaling by the fan-in would give 0.03 at the widths of the paper, where tanh is linear and the gates do not
    # depend on the features.
    nn.init.normal_(convolution.weight, std=0.2)
    nn.init.zeros_(cast(Tensor, convolution.bias))
    return convolution
