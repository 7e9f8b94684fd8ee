"""A run folder for the tests of `cmsa-fast evaluate`."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.refer_layout import small_refcoco
from support.small_training import OPTIONS

from cmsa_fast.cli.run_folder import write_options
from cmsa_fast.cli.train_options import TrainOptions
from cmsa_fast.data.vocabulary import Vocabulary
from cmsa_fast.models.checkpoint import ModelConfig, save_model

WORDS = ["left cup", "man right other one", "dog brown"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder on a small data set in the layout of REFER, with an untrained model."""
    folder = tmp_path / "run"
    folder.mkdir()
    root = small_refcoco(tmp_path / "data").write()
    vocabulary = Vocabulary.from_expressions(WORDS)
    options = {**OPTIONS, "vocabulary_size": len(vocabulary)}
    config = ModelConfig("cmsa", options, vocabulary.tokens, 64, 20)
    save_model(folder / "model.safetensors", config.build(), config)
    write_options(folder, TrainOptions(data="refer", root=root, evaluate_split="val"))
    return folder
