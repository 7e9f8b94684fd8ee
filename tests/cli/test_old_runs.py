"""Run folders of version 0.1, whose options have other names: they load, evaluate and resume.

Version 0.1 wrote tests/fixtures/run-0.1-*, interrupted after two of three steps, with the default widths of the
narrow backbone replaced by `WIDTHS`. expected.safetensors has logits at that step, and after version 0.1 resumed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file
from torch import Tensor

from cmsa_fast.cli import main
from cmsa_fast.cli.run_folder import read_options
from cmsa_fast.models.checkpoint import load_model
from cmsa_fast.models.cmsa import CMSAModel
from cmsa_fast.models.released_cmsa import ReleasedCMSAModel

WIDTHS = (8,) * 5


@pytest.fixture(params=["cmsa", "cmsa-released"])
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for model in (CMSAModel, ReleasedCMSAModel):
        monkeypatch.setitem(model.__init__.__kwdefaults__, "narrow_widths", WIDTHS)  # type: ignore[misc]
    return shutil.copytree(REPOSITORY / f"tests/fixtures/run-0.1-{request.param}", tmp_path / "run")


def logits(run: Path) -> Tensor:
    images = (torch.arange(3 * 64 * 64).reshape(1, 3, 64, 64) * 37 % 256).float() / 255
    words = torch.tensor([[0, 5, 9, 17]])
    word_mask = torch.tensor([[False, True, True, True]])
    with torch.no_grad():
        return load_model(run)[0](images, words, word_mask)[0, 0, ::4, ::4]


def test_model_and_options_load(run: Path) -> None:
    expected = load_file(run / "expected.safetensors")
    torch.testing.assert_close(logits(run), expected["logits"], rtol=1e-4, atol=1e-5)
    options = read_options(run)
    assert (options.images_per_step, options.expressions_per_image) == (2, 2)
    assert (options.examples, options.ema_decay, options.validate_every) == (0, 0.0, 0)


def test_evaluates(run: Path) -> None:
    assert main(["evaluate", str(run), "--scenes=3", "--examples=0", "--num-workers=0"]) == 0
    assert (run / "evaluation-scenes-val-native" / "sentences.csv").is_file()


def test_resumes(run: Path) -> None:
    expected = load_file(run / "expected.safetensors")
    assert main(["train", f"--run-dir={run}", "--resume", "--num-workers=0", "--examples=0"]) == 0
    torch.testing.assert_close(logits(run), expected["resumed"], rtol=1e-3, atol=1e-4)
    assert json.loads((run / "metrics.jsonl").read_text())["step"] == 3


def test_resuming_with_weight_decay_on_all_parameters_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "options.json"
    content = json.loads(path.read_text())
    content["recipe"]["weight_decay"] = 5e-4
    path.write_text(json.dumps(content))
    assert main(["train", f"--run-dir={run}", "--resume"]) == 1
    assert "version 0.1, whose weight decay acted on all parameters" in capsys.readouterr().err
