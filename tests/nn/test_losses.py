"""Losses against their formulas."""

import pytest
import torch

from cmsa_fast.nn import dice_loss, segmentation_loss


def test_losses_by_hand() -> None:
    logits = torch.tensor([[[[2.0, -1.0]]]])
    masks = torch.tensor([[[True, False]]])
    p = logits[0, 0, 0].sigmoid()
    expected = -(p[0].log() + (1 - p[1]).log()) / 2
    assert float(segmentation_loss(logits, masks)) == pytest.approx(float(expected))
    dice = 1 - (2 * p[0] + 1) / (p.sum() + 1 + 1)
    assert float(dice_loss(logits, masks)) == pytest.approx(float(dice))
    for loss in (segmentation_loss, dice_loss):
        with pytest.raises(TypeError, match="bool"):
            loss(logits, masks.float())
        with pytest.raises(ValueError, match="shape"):
            loss(logits, masks[:, :, :1])


def test_ignored_pixels_do_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    masks, ignore = (torch.rand(2, 3, 4, generator=generator) > 0.5 for _ in range(2))
    counted = logits[:, 0][~ignore], masks[~ignore].double()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(*counted)
    assert segmentation_loss(logits, masks, ignore).item() == pytest.approx(expected.item())
    dice = [
        dice_loss(logits[b : b + 1, :, ~ignore[b]][:, :, None], masks[b : b + 1, ~ignore[b]][:, None]).item()
        for b in range(2)
    ]
    assert dice_loss(logits, masks, ignore).item() == pytest.approx(sum(dice) / 2)
    for loss in (segmentation_loss, dice_loss):
        (grad,) = torch.autograd.grad(loss(logits, masks, ignore), logits)
        assert not grad[:, 0][ignore].any()
        assert grad[:, 0][~ignore].all()
        assert loss(logits, masks, torch.zeros_like(ignore)).item() == pytest.approx(loss(logits, masks).item())
        with pytest.raises(TypeError, match="ignore must be bool"):
            loss(logits, masks, ignore.float())
        with pytest.raises(ValueError, match="ignore must have the shape of masks"):
            loss(logits, masks, ignore[:1])
    assert segmentation_loss(logits, masks, torch.ones_like(masks)).item() == 0
