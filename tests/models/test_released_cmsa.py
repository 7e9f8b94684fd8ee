"""The network of the published code: its parts, its sizes, and training with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from support.small_models import build
from support.small_training import CONFIG, RECIPE, SIZE, images, run
from torch.nn import functional as F

from cmsa_fast.data.transforms import Letterbox
from cmsa_fast.models.released_cmsa import ReleasedCMSAModel
from cmsa_fast.predictor import Predictor

NAME = "cmsa-released"


def test_model_is_its_parts() -> None:
    model = build(NAME)
    images, words = torch.rand(2, 3, 37, 50), torch.tensor([[3, 4], [5, 6]])
    res3, res4, res5 = model.backbone(images)
    res5 = F.conv2d(res5, model.squeeze.weight, model.squeeze.bias)  # no activation
    vectors = model.words.weight[words]
    levels = [part(x, vectors) for part, x in zip(model.attention, (res3, res4, res5), strict=True)]
    small_logits = model.mask(model.fusion(levels))
    assert small_logits.shape == (2, 1, 5, 7)
    expected = F.interpolate(small_logits, size=(37, 50), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model(images, words), expected)


def test_default_sizes_are_those_of_the_published_code() -> None:
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

    new = (part for name, part in model.named_parameters() if not name.startswith(("backbone", "words")))
    assert round(sum(part.numel() for part in new) / 1e6, 2) == 28.50


def test_sizes_are_options() -> None:
    model = build(NAME, res5_channels=5, squeezed_channels=(4, 6), attention_channels=3)
    shapes = {name: tuple(part.shape) for name, part in model.named_parameters()}
    assert shapes["squeeze.weight"] == (5, 24, 1, 1)
    assert shapes["attention.0.query.weight"] == (2, 4)
    assert shapes["attention.1.query.weight"] == (3, 6)
    assert shapes["attention.2.query.weight"] == (3, 5 + 6 + 8)
    with pytest.raises(ValueError, match="attention_channels must be at least 8, .* got 7"):
        build(NAME, attention_channels=7)
    with pytest.raises(ValueError, match=r"squeezed_channels must be two numbers .* got \[4\]"):
        build(NAME, squeezed_channels=(4,))
    with pytest.raises(ValueError, match="res5_channels must be at least 1; got 0"):
        build(NAME, res5_channels=0)


def test_model_trains_loads_and_predicts(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, name=NAME)
    recipe = dataclasses.replace(RECIPE, steps=40, learning_rate=5e-3)
    torch.manual_seed(0)
    model, _ = run(tmp_path, recipe=recipe, config=config, model=config.build())
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    first, *_, last = [float(line.split('"loss": ')[1].split(",")[0]) for line in lines]
    assert last < 0.8 * first
    sample = images().samples[3]
    predictor = Predictor.from_pretrained(tmp_path)
    predictor.set_image(sample.image)
    prediction = predictor.predict("right dog")
    assert prediction.mask.shape == sample.image.shape[1:]
    assert prediction.word_attention is None
    letterbox = Letterbox(*sample.image.shape[1:], SIZE)
    ids = torch.tensor([predictor.vocabulary.encode("right dog", 20)])
    with torch.no_grad():
        logits = model.eval()(letterbox.image(sample.image)[None], ids)
    assert torch.equal(prediction.probability, letterbox.restore(logits.sigmoid())[0, 0].clamp(0, 1))
