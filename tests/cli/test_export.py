"""`cmsa-fast export`: the files of the shipped model, the script of docs/export.md, and errors."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.commands import failed

from cmsa_fast.cli import main
from cmsa_fast.cli.scenes import evaluation_scenes
from cmsa_fast.data.vocabulary import Vocabulary
from cmsa_fast.predictor import Predictor

PAGE = Path(__file__).parents[2] / "docs" / "export.md"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model as an ONNX file."""
    path = tmp_path_factory.mktemp("demo") / "demo.onnx"
    assert main(["export", "demo", "--format", "onnx", "--out", str(path)]) == 0
    return path


@pytest.mark.slow
def test_the_description_says_how_to_prepare_inputs(demo: Path) -> None:
    assert sorted(path.name for path in demo.parent.iterdir()) == ["demo.onnx", "demo.onnx.json"]
    config = Predictor.from_pretrained("demo").config
    description = json.loads(demo.with_name("demo.onnx.json").read_text(encoding="utf-8"))
    assert description["kind"] == "onnx"
    assert description["vocabulary"] == list(config.tokens)
    assert description["image"]["size"] == config.size
    rules = description["expression"]
    assert (rules["max_words"], rules["pad_id"]) == (config.max_words, Vocabulary.PAD_ID)
    assert 0 < description["check"]["relative_error"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(70, 128), (128, 50), (300, 200)], ids=str)
def test_the_script_of_the_documentation_reproduces_the_mask(
    demo: Path, shape: tuple[int, int], tmp_path: Path
) -> None:
    (script,) = re.findall(r"```python\n(.+?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    scene = evaluation_scenes(2, 128)[0]
    pixels = Image.fromarray(scene.image.permute(1, 2, 0).numpy()).resize(shape[::-1])
    pixels.save(tmp_path / "scene.png")
    expression = f"{scene.expression}, Zyzzyva."  # punctuation and an unknown word
    arguments = [str(demo), str(tmp_path / "scene.png"), expression, str(tmp_path / "mask.png")]
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    predictor = Predictor.from_pretrained("demo")
    predictor.set_image(tmp_path / "scene.png")
    expected = predictor.predict(expression)
    mask = np.asarray(Image.open(tmp_path / "mask.png"))
    assert mask.shape == shape
    assert expected.mask.any()
    differ = mask != expected.mask.numpy()
    assert (np.abs(expected.probability.numpy()[differ] - 0.5) < 1e-5).all()


@pytest.mark.slow
def test_torch_export_writes_beside_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--format", "torch-export"]) == 0
    assert (run / "model.pt2").stat().st_size > 10_000
    assert json.loads((run / "model.pt2.json").read_text(encoding="utf-8"))["kind"] == "torch-export"
    assert "Its logits equal those of the model up to" in capsys.readouterr().out


@pytest.mark.slow
def test_nothing_is_written_if_the_program_differs(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmsa_fast.export.check.TOLERANCE", 0.0)
    before = sorted(run.iterdir())
    message = failed(capsys, "export", run, "--format", "torch-export")
    assert message.startswith("The exported program is not the model")
    assert sorted(run.iterdir()) == before


def test_errors_come_before_the_work(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(*words: object) -> str:
        return failed(capsys, "export", *words)

    assert "nowhere" in export("nowhere", "--format", "torch-export", "--out", run / "new.pt2")
    assert "--out must be a file in an existing folder" in export(
        run, "--format", "torch-export", "--out", run / "missing" / "model.pt2"
    )
    unwritable = Path("/proc/model.pt2")
    if unwritable.parent.is_dir():
        assert "in a folder that can be written to; /proc is not" in export(
            run, "--format", "torch-export", "--out", unwritable
        )
    for name in ("model.onnx", "model.onnx.json"):
        (run / name).write_text("")
        assert f"{run / name} exists, and an export overwrites nothing" in export(run, "--format", "onnx")
        (run / name).unlink()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'cmsa_fast[export]'" in export(run, "--format", "onnx")
    with pytest.raises(SystemExit) as stop:
        main(["export", str(run), "--format", "tflite"])
    assert stop.value.code == 2
