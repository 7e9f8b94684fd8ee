"""The demo model that is part of the package: what it is, and that it segments drawn scenes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import cmsa_fast.models.checkpoint as checkpoint
from cmsa_fast.data.batch import Collate
from cmsa_fast.data.dataset import ShuffledExpressions
from cmsa_fast.data.scenes.dataset import WORDS, ScenesDataset
from cmsa_fast.data.vocabulary import Vocabulary
from cmsa_fast.evaluation.evaluate import evaluate
from cmsa_fast.models.checkpoint import DEMO, WEIGHTS, load_pretrained

FOLDER = Path(checkpoint.__file__).parent / "pretrained" / DEMO


def test_the_demo_is_complete_and_small() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == [
        "README.md",
        "config.json",
        WEIGHTS,
        "vocabulary.txt",
    ]
    assert (FOLDER / WEIGHTS).stat().st_size < 3_000_000
    model, config = load_pretrained(DEMO)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert config.tokens == Vocabulary.from_expressions(WORDS).tokens


def test_the_demo_segments_scenes_that_it_has_not_seen() -> None:
    model, config = load_pretrained(DEMO)
    collate = Collate(Vocabulary(config.tokens), config.size, config.max_words)
    scenes = ScenesDataset(12, split="test", size=config.size, expressions_per_scene=2)
    predicted = evaluate(model, scenes, collate).overall["overall_iou"]
    control = evaluate(model, ShuffledExpressions(scenes), collate).overall["overall_iou"]
    assert predicted > max(0.6, 3 * control)


def test_the_demo_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "download", lambda *_: pytest.fail("the hub was asked"))
    assert load_pretrained(DEMO)[1].name == "cmsa"
