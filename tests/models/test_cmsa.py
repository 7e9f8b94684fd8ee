"""The whole network: its three calls, its sizes, one real step of the full-size one."""

import pytest
import torch
from torch import nn

from cmsa_fast.models import build_model
from cmsa_fast.models.cmsa import CMSAModel
from cmsa_fast.nn import segmentation_loss
from cmsa_fast.training.recipe import PRESETS


def small() -> nn.Module:
    torch.manual_seed(0)
    return build_model(
        "cmsa",
        vocabulary_size=9,
        backbone="narrow",
        narrow_widths=(8, 8, 8, 16, 24),
        word_channels=6,
        attention_channels=5,
        fused_channels=7,
    ).eval()


def test_the_three_calls_agree() -> None:
    model = small()
    images = torch.rand(2, 3, 37, 50)
    words = torch.tensor([[0, 3, 4], [5, 6, 7], [1, 2, 8]])
    mask = torch.tensor([[False, True, True], [True] * 3, [True] * 3])
    index = torch.tensor([1, 0, 1])
    logits = model(images, words, mask, index)
    assert logits.shape == (3, 1, 37, 50)
    features = model.encode_image(images)
    assert torch.equal(model.segment(features, words, mask, index), logits)
    gathered = model(images[index], words, mask)
    torch.testing.assert_close(gathered, logits, rtol=1e-4, atol=1e-5)
    text = model.encode_text(words, mask)
    assert torch.equal(model.decode(features, text, index), logits)
    explained, received = model.explain(features, text, index)
    assert torch.equal(explained, logits)
    assert received.shape == (3, 3, 3)
    torch.testing.assert_close(received.sum(2), torch.ones(3, 3))
    assert (received[0, :, 0] == 0).all()


def test_segment_is_levels_fusion_and_mask() -> None:
    model = small().double()
    features = model.encode_image(torch.rand(2, 3, 37, 50, dtype=torch.float64))
    words = torch.tensor([[0, 3, 4], [5, 6, 7], [1, 2, 8]])
    mask = torch.tensor([[False, True, True], [True] * 3, [True, True, False]])
    index = torch.tensor([1, 0, 1])
    levels = [
        attention(level, model.words(words), mask, image_index=index)
        for attention, level in zip(model.attention, features.levels, strict=True)
    ]
    logits = model.mask(model.fusion(levels))
    logits = nn.functional.interpolate(logits, features.size, mode="bilinear", align_corners=False)
    ours = model.segment(features, words, mask, index)
    assert (ours - logits).norm() <= 1e-10 * logits.norm()


def test_words_change_the_mask() -> None:
    model = small()
    images = torch.rand(1, 3, 32, 32)
    first, second = (model(images, torch.tensor([[word]])) for word in (3, 4))
    assert (first - second).abs().max() > 1e-4


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="name must be one of"):
        build_model("unet")
    with pytest.raises(ValueError, match="no option colour"):
        build_model("cmsa", vocabulary_size=3, colour="red")
    with pytest.raises(ValueError, match="no published weights"):
        build_model("cmsa", vocabulary_size=3, backbone="narrow", backbone_weights="imagenet")


def test_paper_sizes() -> None:
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


@pytest.mark.slow
def test_the_full_size_model_takes_a_step() -> None:
    torch.manual_seed(0)
    recipe = PRESETS["paper"]
    model = CMSAModel(12112).train()
    optimizer = torch.optim.Adam(
        [part for part in model.parameters() if part.requires_grad], lr=recipe.learning_rate
    )
    images = torch.rand(1, 3, recipe.size, recipe.size)
    masks = torch.zeros(1, recipe.size, recipe.size, dtype=torch.bool)
    masks[:, 100:200, 50:150] = True
    before = {name: part.detach().clone() for name, part in model.named_parameters()}
    loss = segmentation_loss(model(images, torch.randint(12112, (1, 20))), masks)
    loss.backward()
    optimizer.step()
    moved = {n.split(".")[0] for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"backbone", "words", "attention", "fusion", "mask"}
