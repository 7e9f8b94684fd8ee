"""The published code's network: its calls, its sizes, what it shares with the other models."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from support.small_training import CONFIG, RECIPE, SIZE, images, run
from torch import nn
from torch.nn import functional as F

from cmsa_fast.cli.train_options import ModelName
from cmsa_fast.data.transforms import Letterbox
from cmsa_fast.models import MODELS, build_model
from cmsa_fast.models.base import ExplainsWords
from cmsa_fast.models.checkpoint import load_model
from cmsa_fast.models.released_cmsa import ReleasedCMSAModel
from cmsa_fast.nn import segmentation_loss
from cmsa_fast.predictor import Predictor
from cmsa_fast.training.recipe import PRESETS

NAME = "cmsa-released"


def small(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    given: dict[str, Any] = {
        "vocabulary_size": 9,
        "backbone": "narrow",
        "narrow_widths": (8, 8, 8, 16, 24),
        "word_channels": 6,
        "attention_channels": 8,
        "fused_channels": 7,
    }
    return build_model(NAME, **(given | options)).eval()


def test_the_three_calls_agree() -> None:
    model = small()
    images = torch.rand(2, 3, 37, 50)
    words = torch.tensor([[0, 3, 4], [5, 6, 7], [1, 2, 8]])
    mask = torch.tensor([[False, True, True], [True] * 3, [True] * 3])
    index = torch.tensor([1, 0, 1])
    logits = model(images, words, mask, index)
    assert logits.shape == (3, 1, 37, 50)
    features = model.encode_image(images)
    assert [level.shape[1] for level in features.levels] == [8, 16, 6]
    assert torch.equal(model.segment(features, words, mask, index), logits)
    gathered = model(images[index], words, mask)
    torch.testing.assert_close(gathered, logits, rtol=1e-4, atol=1e-5)
    alone = model(images[1:], words[:1, 1:])  # without the padded word
    torch.testing.assert_close(alone, logits[:1], rtol=1e-4, atol=1e-5)


def test_the_model_is_its_parts() -> None:
    model = small()
    images, words = torch.rand(2, 3, 37, 50), torch.tensor([[3, 4], [5, 6]])
    res3, res4, res5 = model.backbone(images)
    res5 = F.conv2d(res5, model.squeeze.weight, model.squeeze.bias)  # no activation
    vectors = model.words.weight[words]
    levels = [part(x, vectors) for part, x in zip(model.attention, (res3, res4, res5), strict=True)]
    small_logits = model.mask(model.fusion(levels))
    assert small_logits.shape == (2, 1, 5, 7)
    expected = F.interpolate(small_logits, size=(37, 50), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model(images, words), expected)


def test_words_change_the_mask() -> None:
    model = small()
    images = torch.rand(1, 3, 32, 32)
    first, second = (model(images, torch.tensor([[word]])) for word in (3, 4))
    assert (first - second).abs().max() > 1e-4


def test_published_sizes() -> None:
    with torch.device("meta"):
        model = ReleasedCMSAModel(12112)
    shapes = {name: tuple(part.shape) for name, part in model.named_parameters()}
    assert shapes["words.weight"] == (12112, 1000)
    assert shapes["squeeze.weight"] == (1000, 2048, 1, 1)
    widths = [(1520, 128, 64), (2032, 256, 128)]
    for level, (token, squeezed, width) in enumerate(widths):
        assert shapes[f"attention.{level}.squeeze.weight"] == (squeezed, token)
        assert shapes[f"attention.{level}.query.weight"] == (width, squeezed)
        assert shapes[f"attention.{level}.output.weight"] == (squeezed, width)
    assert shapes["attention.2.key.weight"] == (512, 2008)
    assert shapes["attention.2.output.weight"] == (2008, 512)
    assert shapes["fusion.gates.0.weight"] == (1500, 500, 3, 3)
    assert shapes["mask.weight"] == (1, 500, 3, 3)

    def millions(prefix: str) -> float:
        named = model.named_parameters()
        return sum(part.numel() for name, part in named if name.startswith(prefix)) / 1e6

    assert round(millions("words"), 2) == 12.11
    assert round(millions("squeeze"), 2) == 2.05
    assert round(millions("attention.2"), 2) == 4.12
    assert round(millions("fusion.gates"), 2) == 20.25
    assert round(millions("") - millions("backbone") - millions("words"), 2) == 28.50


def test_sizes_are_options() -> None:
    model = small(res5_channels=5, squeezed_channels=(4, 6), attention_channels=3)
    shapes = {name: tuple(part.shape) for name, part in model.named_parameters()}
    assert shapes["squeeze.weight"] == (5, 24, 1, 1)
    assert shapes["attention.0.query.weight"] == (2, 4)
    assert shapes["attention.1.query.weight"] == (3, 6)
    assert shapes["attention.2.query.weight"] == (3, 5 + 6 + 8)
    with pytest.raises(ValueError, match="attention_channels must be at least 8, .* got 7"):
        small(attention_channels=7)
    with pytest.raises(ValueError, match=r"squeezed_channels must be two numbers .* got \[4\]"):
        small(squeezed_channels=(4,))
    with pytest.raises(ValueError, match="res5_channels must be at least 1; got 0"):
        small(res5_channels=0)
    with pytest.raises(ValueError, match="no published weights"):
        small(backbone_weights="imagenet")


def test_the_command_knows_every_model() -> None:
    assert set(get_args(ModelName)) == set(MODELS)


def test_pooled_keys_explain_no_word() -> None:
    assert not isinstance(small(), ExplainsWords)
    assert isinstance(CONFIG.build(), ExplainsWords)


def test_it_trains_is_kept_and_predicts(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, name=NAME)
    recipe = dataclasses.replace(RECIPE, steps=40, learning_rate=5e-3)
    torch.manual_seed(0)
    model, _ = run(tmp_path, recipe=recipe, config=config, model=config.build())
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    first, *_, last = [float(line.split('"loss": ')[1].split(",")[0]) for line in lines]
    assert last < 0.8 * first
    loaded, kept = load_model(tmp_path)
    assert isinstance(loaded, ReleasedCMSAModel)
    assert kept == config
    expected = model.state_dict()
    assert all(torch.equal(part, expected[name]) for name, part in loaded.state_dict().items())

    sample = images().samples[3]
    predictor = Predictor.from_run(tmp_path)
    predictor.set_image(sample.image)
    prediction = predictor.predict("right dog")
    assert prediction.mask.shape == sample.image.shape[1:]
    assert prediction.word_attention is None
    letterbox = Letterbox(*sample.image.shape[1:], SIZE)
    ids = torch.tensor([predictor.vocabulary.encode("right dog", 20)])
    with torch.no_grad():
        logits = model.eval()(letterbox.image(sample.image)[None], ids)
    assert torch.equal(
        prediction.probability, letterbox.restore(logits.sigmoid())[0, 0].clamp(0, 1)
    )


@pytest.mark.slow
def test_the_full_size_model_takes_a_step() -> None:
    torch.manual_seed(0)
    recipe = PRESETS["paper"]
    model = ReleasedCMSAModel(12112).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
    images = torch.rand(1, 3, recipe.size, recipe.size)
    masks = torch.zeros(1, recipe.size, recipe.size, dtype=torch.bool)
    masks[:, 100:200, 50:150] = True
    before = {name: part.detach().clone() for name, part in model.named_parameters()}
    loss = segmentation_loss(model(images, torch.randint(12112, (1, 20))), masks)
    loss.backward()
    optimizer.step()
    moved = {n.split(".")[0] for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"backbone", "words", "squeeze", "attention", "fusion", "mask"}
