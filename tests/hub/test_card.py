"""The model card: every figure is from a file of the run, and what no file says is called unknown."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small_training import CONFIG, new_model

from cmsa_fast.cli.run_folder import write_options
from cmsa_fast.cli.train_options import TrainOptions
from cmsa_fast.hub.card import model_card
from cmsa_fast.models.checkpoint import WEIGHTS, save_model
from cmsa_fast.system.files import write_json


def metrics(overall_iou: float) -> dict[str, float]:
    return {"overall_iou": overall_iou, "mean_iou": 0.5, **{f"precision@0.{i}": i / 100 for i in range(5, 10)}}


EVALUATION: dict[str, Any] = {
    "expressions": 17,
    "overall": metrics(0.71239),
    "by_kind": {"easy": metrics(0.9), "hard": metrics(0.3)},
    "counts": {"easy": 10, "hard": 7},
    "convention": "native",
    "coverage": {"missing": 0},
    "shuffled": metrics(0.0456),
    "steps": 13,
    "best_step": 10,
    "training_seconds": 1.0,
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with the weights alone."""
    save_model(tmp_path / WEIGHTS, new_model(), CONFIG)
    return tmp_path


def card(run: Path, **options: Any) -> str:
    name = options.pop("weights", WEIGHTS)
    return model_card("someone/small", new_model(), CONFIG, run / name, **options)


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_what_no_file_says_is_unknown(run: Path) -> None:
    text = card(run)
    assert "\nlicense:" not in text
    assert "Weights: not stated" in text
    assert section(text, "Training").strip() == "Unknown: there was no options.json beside the weights."
    assert section(text, "Results").strip().startswith("Unknown: there was no evaluation.json")
    assert "Data: unknown." in text
    assert "photographs" not in text
    assert "$" not in text


def test_model_and_use(run: Path) -> None:
    text = card(run, license="cc-by-4.0")
    assert text.startswith("---\nlibrary_name: cmsa_fast\n")
    assert "\nlicense: cc-by-4.0\n---\n" in text
    assert 'Predictor.from_pretrained("someone/small")' in text
    parameters = sum(parameter.numel() for parameter in new_model().parameters())
    assert f"| parameters | {parameters / 1e6:.2f} M, stored as float32 |" in text
    assert f"at most 20 words; {len(CONFIG.tokens)} tokens" in text
    assert "| `narrow_widths` | `[8, 8, 8, 8, 8]` |" in text
    assert "stored as float16 |" in card(run, dtype=torch.float16)


def test_training_and_results_of_scenes(run: Path) -> None:
    write_options(run, TrainOptions(data="scenes", seed=4, run_dir=Path("/home/me/run"), evaluate_scenes=60))
    write_json(run / "evaluation.json", EVALUATION)
    text = card(run, dtype=torch.float16)
    training = section(text, "Training")
    assert "| `seed` | `4` |" in training
    assert f"| `steps` | `{TrainOptions().recipe().steps}` |" in training
    assert "13 steps. The weights are those of step 10, the best in validations on other scenes." in training
    results = section(text, "Results")
    assert "| 60 unseen scenes | native | 17 | 71.24 | 50.00 | 5.00 | 7.00 | 9.00 |" in results
    assert "| hard | native | 7 | 30.00 |" in results
    assert "| control: shuffled expressions | native | 17 | 4.56 |" in results
    assert "Measured with float32 weights, before they were stored as float16." in results
    limits = section(text, "Limits")
    assert "knows nothing of photographs" in limits
    assert "worst at this one: hard." in limits
    assert "drawn by cmsa_fast" in section(text, "Licences")
    assert "/home/me" not in text


def test_training_on_files_shows_no_folder(run: Path) -> None:
    paths = {
        name: Path(f"/home/me/{name}.file") for name in ("root", "image_dir", "exclude", "vocabulary", "glove")
    }
    options = TrainOptions(data="refer", name="refcoco+", backbone_weights="/home/me/resnet.pth", **paths)
    write_options(run, options)
    write_json(run / "evaluation.json", {**EVALUATION, "by_kind": {}, "counts": {}, "coverage": {"missing": 3}})
    text = card(run)
    assert "| refcoco+ val | native | 17 | 71.24 |" in text
    assert "validations on expressions of the evaluation split" in text
    assert '| `glove` | `"glove.file"` |' in text
    assert "3 expressions of the split could not be used" in text
    assert "Backbone: training started from resnet.pth." in text
    assert "Word embedding: training started from glove.file" in text
    assert "/home/me" not in text
    assert "photographs" not in text


def test_other_evaluations_have_a_row(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    def evaluated(folder: str, title: str, run: str, **options: object) -> Path:
        (path / folder).mkdir()
        content = {**EVALUATION, "title": title, "options": {"run": run, **options}, "counts": {}, "by_kind": {}}
        for name in ("shuffled", "steps"):
            del content[name]
        write_json(path / folder / "evaluation.json", content)
        return path / folder / "evaluation.json"

    path = run
    evaluated("evaluation-refer-testA-native-crf", "RefCOCO testA", str(run), crf=True)
    evaluated("evaluation-2", "RefCOCO testB", str(run / WEIGHTS))
    evaluated("evaluation-3", "of the last weights", str(run / "last.safetensors"))
    write_json(evaluated("masks-score", "", ""), {"options": {"predictions": "masks.jsonl"}, "conventions": {}})
    old = evaluated("evaluation-4", "of earlier weights", str(run))
    os.utime(old, (1, 1))
    text = card(run)
    assert "| RefCOCO testA, with a dense CRF | native | 17 | 71.24 |" in text
    assert "| RefCOCO testB | native | 17 |" in text
    assert "of the last weights" not in text
    assert "of earlier weights" not in text
    assert f"{old} is older than model.safetensors and is not in the model card" in caplog.text


def test_evaluation_of_version_0_1(run: Path) -> None:
    old = {"sentences" if name == "expressions" else name: value for name, value in EVALUATION.items()}
    write_json(run / "evaluation.json", old)
    assert "| unknown data | native | 17 | 71.24 |" in card(run)


def test_other_weights_of_a_run_have_no_results(run: Path) -> None:
    write_json(run / "evaluation.json", EVALUATION)
    (run / WEIGHTS).rename(run / "last.safetensors")
    assert "Unknown: there was no evaluation.json" in card(run, weights="last.safetensors")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("options.json", "{"),
        ("options.json", '{"options": {}}'),
        ("options.json", "[]"),
        ("evaluation.json", "{"),
        ("evaluation.json", "[]"),
        ("evaluation.json", '{"sentences": 3}'),
    ],
)
def test_damaged_files_are_named(run: Path, name: str, text: str) -> None:
    (run / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name} is damaged"):
        card(run)
