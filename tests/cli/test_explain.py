"""`cmsa-fast explain`: the figure's file, and its errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.small_models import build
from support.small_training import CONFIG, OPTIONS, new_model

from cmsa_fast.cli import main
from cmsa_fast.evaluation.explanation import draw_explanation
from cmsa_fast.models.checkpoint import ModelConfig, save_model
from cmsa_fast.predictor import Predictor

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a model and an image."""
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model.safetensors", new_model(), CONFIG)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (23, 41, 3), dtype=np.uint8)).save("a.png")
    return tmp_path


def test_figure_of_the_prediction(here: Path, capsys: Capture) -> None:
    for name in ("explanation.png", "explanation-2.png"):
        assert main(["explain", "model.safetensors", "a.png", "left dog"]) == 0
        assert capsys.readouterr().out == f"Look at {name}\n"
    predictor = Predictor.from_pretrained(here)
    predictor.set_image("a.png")
    with Image.open("explanation.png") as figure:
        np.testing.assert_array_equal(np.asarray(figure), draw_explanation(predictor.predict("left dog")))
    assert main(["explain", ".", "a.png", "left dog", "--out", "new/folder/figure.png"]) == 0
    assert (here / "new/folder/figure.png").read_bytes() == (here / "explanation.png").read_bytes()


def test_model_without_attention_is_drawn(here: Path) -> None:
    config = ModelConfig("cmsa-released", OPTIONS, CONFIG.tokens, CONFIG.size, CONFIG.max_words)
    save_model(here / "released.safetensors", build("cmsa-released", **OPTIONS), config)
    assert main(["explain", "released.safetensors", "a.png", "left dog", "--out", "released.png"]) == 0
    assert main(["explain", "model.safetensors", "a.png", "left dog", "--out", "cmsa.png"]) == 0
    with Image.open("released.png") as released, Image.open("cmsa.png") as cmsa:
        assert released.height < cmsa.height


def test_wrong_input_is_named(here: Path, capsys: Capture) -> None:
    (here / "text.png").write_text("no image")
    before = sorted(here.iterdir())
    for arguments, message in (
        (["model.safetensors", "b.png", "dog"], "there is no image at b.png"),
        (["model.safetensors", "text.png", "dog"], "text.png cannot be read as an image"),
        (["model.safetensors", "a.png", " "], "expression must have at least one word"),
        (["model.safetensors", "a.png", "dog", "--out", "a.png"], "File exists"),
        (["gone", "a.png", "dog"], "gone"),
    ):
        assert main(["explain", *arguments]) == 1
        printed = capsys.readouterr().err
        assert message in printed
        assert len(printed.splitlines()) == 1
    assert sorted(here.iterdir()) == before
