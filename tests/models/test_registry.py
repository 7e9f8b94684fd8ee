"""Registering a model: one entry in `MODELS` suffices to train, evaluate and predict with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmsa_fast.cli.app import main
from cmsa_fast.cli.train import run_training
from cmsa_fast.cli.train_options import ModelName, TrainOptions
from cmsa_fast.models import MODELS
from cmsa_fast.models.base import ReferringModel
from cmsa_fast.models.checkpoint import load_model
from cmsa_fast.models.registry import ModelEntry
from cmsa_fast.predictor import Predictor


class TinyModel(ReferringModel):
    """Product of one convolution of the image and the mean word, with one option of its own."""

    def __init__(self, vocabulary_size: int, *, channels: int = 8, bias: bool = True) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary_size, channels)
        self.convolution = nn.Conv2d(3, channels, 3, stride=2, padding=1, bias=bias)

    def encode_image(self, images: Tensor) -> Any:
        return self.convolution(images), images.shape[2:]

    def encode_text(self, words: Tensor, word_mask: Tensor | None = None) -> Tensor:
        real = torch.ones_like(words) if word_mask is None else word_mask
        return (self.table(words) * real[..., None]).sum(1)

    def decode(self, features: Any, text: Tensor, image_index: Tensor | None = None) -> Tensor:
        visual, size = features
        visual = visual if image_index is None else visual[image_index]
        logits = torch.einsum("bchw,bc->bhw", visual, text)[:, None]
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", ModelEntry(f"{__name__}:TinyModel", "a model of the tests"))


def options(**changes: Any) -> TrainOptions:
    given: dict[str, Any] = {
        "model": "tiny",
        "steps": 2,
        "warmup_steps": 0,
        "size": 64,
        "images_per_step": 2,
        "expressions_per_image": 2,
        "evaluate_scenes": 3,
        "examples": 1,
        "num_workers": 0,
    }
    return TrainOptions(**(given | changes))


def test_a_registered_model_trains_evaluates_and_predicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    result = run_training(options(run_dir=folder, model_options=("channels=5", "bias=false")))
    assert result.progress.step == 2
    model, config = load_model(folder)
    assert isinstance(model, TinyModel)
    assert config.options == {
        "vocabulary_size": len(config.tokens),
        "channels": 5,
        "bias": False,
    }
    assert main(["train", f"--run-dir={folder}", "--resume"]) == 0

    assert main(["evaluate", str(folder), "--scenes=3", "--examples=1", "--num-workers=0"]) == 0
    written = next(folder.glob("evaluation-*/evaluation.json"))
    evaluated = json.loads(written.read_text())
    assert evaluated["overall"]["overall_iou"] == result.evaluation.overall["overall_iou"]

    predictor = Predictor.from_pretrained(folder)
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    predictor.set_image(image)
    prediction = predictor.predict("red circle")
    assert prediction.mask.shape == (40, 50)
    assert prediction.word_attention is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "lstm"}, "name must be one of .*tiny; got 'lstm'"),
        (
            {"attention_channels": 8},
            "--attention-channels cannot be used: --model tiny has no such",
        ),
        (
            {"backbone_weights": "imagenet"},
            "--backbone-weights cannot be used: --model tiny has no",
        ),
        ({"model_options": ("depth=3",)}, r"build_model\('tiny'\) has no option depth; it has voc"),
        ({"model_options": ("channels",)}, "--model-options must be NAME=VALUE.* got 'channels'"),
        ({"model_options": ("backend=torch",)}, "none that has an option of its own; got 'backend"),
        ({"model_options": ("bias=maybe",)}, "bias must be true or false; got 'maybe'"),
        ({"model_options": ("channels=many",)}, "channels must be an integer; got 'many'"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        run_training(options(run_dir=tmp_path / "run", **changes))
    assert list(tmp_path.iterdir()) == []


def test_glove_needs_a_word_embedding(tmp_path: Path) -> None:
    vectors = tmp_path / "glove.txt"
    vectors.write_text("red 1 2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="--glove needs a word embedding, and --model tiny has"):
        run_training(options(glove=vectors, run_dir=tmp_path / "run"))


def test_the_command_offers_every_model() -> None:
    assert {*get_args(ModelName), "tiny"} == set(MODELS)
