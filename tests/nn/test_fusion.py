"""Gated fusion against Eq. 5, and the published variant against its formula, in float64."""

import pytest
import torch
from torch.nn import functional as F

from cmsa_fast.nn import ChannelGatedFusion, GatedFusion


def test_fusion_is_equation_5() -> None:
    torch.manual_seed(0)
    fusion = GatedFusion([3, 5, 4], 6).double()
    with torch.no_grad():
        fusion.gamma.copy_(torch.tensor([0.3, -0.7, 1.1]))
    levels = [torch.randn(2, c, 4, 3, dtype=torch.float64) for c in (3, 5, 4)]
    x = [conv(level) for conv, level in zip(fusion.project, levels, strict=True)]
    m = [conv(part).sigmoid() for conv, part in zip(fusion.memory, x, strict=True)]
    r = [conv(part).sigmoid() for conv, part in zip(fusion.reset, x, strict=True)]
    expected = torch.zeros_like(x[0])
    for i in range(3):
        g = (1 - m[i]) * x[i]
        for j in range(3):
            if j != i:
                g = g + fusion.gamma[j] * m[j] * x[j]
        expected = expected + r[i] * g.tanh() + (1 - r[i]) * x[i]
    torch.testing.assert_close(fusion(levels), expected, rtol=1e-12, atol=1e-12)
    assert m[0].shape == (2, 1, 4, 3)
    assert torch.equal(fusion.fuse(x), fusion(levels))
    with pytest.raises(ValueError, match="projected must be 3 tensors"):
        fusion.fuse(x[:2])
    with pytest.raises(ValueError, match="share batch, height"):
        fusion([*levels[:2], levels[2][..., :2]])
    with pytest.raises(ValueError, match="at least two levels"):
        GatedFusion([3])


def test_channel_gated_fusion_is_its_formula() -> None:
    torch.manual_seed(0)
    fusion = ChannelGatedFusion((5, 6, 7), 4).double()
    assert fusion.balance.tolist() == [0.5] * 3
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.normal_(std=0.5)
    levels = [torch.randn(2, size, 3, 5, dtype=torch.float64) for size in (5, 6, 7)]
    x3, x4, x5 = (
        F.conv2d(level, conv.weight, conv.bias).relu() for conv, level in zip(fusion.project, levels, strict=True)
    )
    outputs = []
    for number, (own, first, second) in enumerate([(x3, x5, x4), (x4, x5, x3), (x5, x4, x3)]):
        gate, a = fusion.gates[number], fusion.balance[number]
        maps = F.conv2d(own, gate.weight, gate.bias, padding=1)
        u, f, r = maps[:, :4], maps[:, 4:8], maps[:, 8:]
        f, r = (f + 1).sigmoid(), (r + 1).sigmoid()
        c = a * f * first + (1 - a) * f * second + (1 - f) * u
        outputs.append(r * c.tanh() + (1 - r) * own)
    expected = sum(outputs)
    result = fusion(levels)
    assert (result - expected).norm() <= 1e-12 * expected.norm()
    upstream = torch.randn_like(result)
    parameters = list(fusion.parameters())
    ours, theirs = (torch.autograd.grad(out, parameters, upstream) for out in (result, expected))
    largest = max(float(gradient.norm()) for gradient in theirs)
    for mine, true in zip(ours, theirs, strict=True):
        assert (mine - true).norm() <= 1e-12 * largest


def test_channel_gated_fusion_names_wrong_arguments() -> None:
    fusion = ChannelGatedFusion((3, 3, 3), 2)
    level = torch.rand(1, 3, 4, 4)
    with pytest.raises(ValueError, match="levels must be 3 tensors; got 2"):
        fusion([level, level])
    with pytest.raises(ValueError, match="levels must share batch, height and width"):
        fusion([level, level, level[..., 1:]])
    with pytest.raises(ValueError, match="in_channels must have three levels"):
        ChannelGatedFusion((3, 3), 2)
    with pytest.raises(ValueError, match="at least 1"):
        ChannelGatedFusion((3, 3, 3), 0)
