"""The network of the paper: its parts and their sizes."""

import pytest
import torch
from support.small_models import INDEX, MASK, WORDS, build, images
from torch import nn

from cmsa_fast.models.cmsa import CMSAModel


def test_model_is_levels_fusion_and_mask() -> None:
    model = build("cmsa").double()
    features = model.encode_image(images(torch.float64))
    levels = [
        attention(level, model.words(WORDS), MASK, image_index=INDEX)
        for attention, level in zip(model.attention, features.levels, strict=True)
    ]
    logits = model.mask(model.fusion(levels))
    logits = nn.functional.interpolate(logits, features.size, mode="bilinear", align_corners=False)
    ours = model.segment(features, WORDS, MASK, INDEX)
    assert (ours - logits).norm() <= 1e-10 * logits.norm()


def test_mask_scale_arranges_channels_as_finer_logits() -> None:
    torch.manual_seed(0)
    model = build("cmsa", backbone="compact", mask_scale=2)
    projected = [torch.randn(2, model.mask.in_channels, 3, 4) for _ in range(3)]
    finer = model.read_out([(part, None) for part in projected], (6, 8)).logits
    channels = model.mask(model.fusion.fuse(projected))
    assert channels.shape == (2, 4, 3, 4)
    for row in range(2):
        for column in range(2):
            assert torch.equal(finer[:, 0, row::2, column::2], channels[:, 2 * row + column])
    with pytest.raises(ValueError, match="mask_scale must be at least 1; got 0"):
        build("cmsa", mask_scale=0)


def test_default_sizes_are_those_of_the_paper() -> None:
    with torch.device("meta"):
        model = CMSAModel(12112)
    shapes = {name: tuple(part.shape) for name, part in model.named_parameters()}
    assert shapes["words.weight"] == (12112, 1000)
    for level, visual in enumerate((512, 1024, 2048)):
        token = visual + 1000 + 8
        assert shapes[f"attention.{level}.query.weight"] == (512, token)
        assert shapes[f"fusion.project.{level}.weight"] == (500, token, 1, 1)
        assert shapes[f"fusion.memory.{level}.weight"] == (1, 500, 3, 3)
    assert shapes["fusion.gamma"] == (3,)
    assert shapes["mask.weight"] == (1, 500, 3, 3)
