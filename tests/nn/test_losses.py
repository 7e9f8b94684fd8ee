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
