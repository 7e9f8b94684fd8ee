"""Speed, size and error of exported programs on the CPU: eager, torch.export, and ONNX in onnxruntime.

    python -m benchmarks.export --json benchmarks/results/export-cpu.json

One image and an expression of 20 words, float32: the shipped demo model, and the network of the paper at 320 px
with random weights. Eager is the model as `Predictor` runs it. "Five expressions" are five of one image in one
call. The programs run in one process, in interleaved rounds; medians are reported. Errors are those of the
logits against eager, on the timed inputs.
"""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmsa_fast.export.program import (
    Inputs,
    Run,
    import_onnx,
    load_onnx,
    load_torch,
    save_onnx,
    save_torch,
    trace,
)
from cmsa_fast.models import for_inference
from cmsa_fast.models.base import ReferringModel
from cmsa_fast.models.checkpoint import ModelConfig, load_pretrained

from .measuring import machine, run_command, summarize, time_interleaved

SIZE, WORDS, VOCABULARY = 320, 20, 12112  # the size of the word list of the paper's code
MODELS = ("demo", "paper")
FORMS = ("eager", "torch-export", "onnx")
BATCHES = {"one expression": 1, "five expressions": 5}
NAMES = tuple(f"{model} {form} {batch}" for model in MODELS for form in FORMS for batch in BATCHES)
ROUNDS = 5


def load(name: str) -> tuple[ReferringModel, ModelConfig]:
    """One of MODELS in eval mode, and its configuration."""
    if name == "demo":
        return load_pretrained("demo")
    torch.manual_seed(0)
    tokens = tuple(map(str, range(VOCABULARY)))
    config = ModelConfig("cmsa", {"vocabulary_size": VOCABULARY}, tokens, SIZE, WORDS)
    return config.build().eval(), config


def export(model: ReferringModel, config: ModelConfig, folder: Path) -> dict[str, tuple[Path, Run]]:
    """The programs of a model, by form: the file and a function that runs it."""
    program = trace(model, config.size)
    files = {form: folder / form for form in FORMS[1:]}
    save_torch(program, files["torch-export"])
    save_onnx(program, model, files["onnx"])
    return {
        "torch-export": (files["torch-export"], load_torch(files["torch-export"])),
        "onnx": (files["onnx"], load_onnx(files["onnx"])),
    }


def draw(config: ModelConfig, expressions: int) -> Inputs:
    """An image and its expressions, without padding."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(len(config.tokens), (expressions, WORDS), generator=generator)
    image = torch.rand(1, 3, config.size, config.size, generator=generator)
    return image, words, torch.ones_like(words).bool(), torch.zeros(expressions, dtype=torch.int64)


@torch.no_grad()
def _run_eager(inference: ReferringModel, inputs: Inputs) -> Tensor:
    return inference(*inputs)[:, 0]


def collect(rounds: int = ROUNDS) -> dict[str, Any]:
    """Export both models and measure."""
    runs: dict[str, Callable[[], object]] = {}
    programs: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            model, config = load(name)
            programs[f"{name} eager"] = {
                "bytes": sum(part.numel() * part.element_size() for part in model.state_dict().values())
            }
            forms: dict[str, Run] = {"eager": functools.partial(_run_eager, for_inference(model))}
            place = Path(folder, name)
            place.mkdir()
            for form, (file, run) in export(model, config, place).items():
                forms[form] = run
                programs[f"{name} {form}"] = {"bytes": file.stat().st_size, "relative_error": 0.0}
            for batch, expressions in BATCHES.items():
                inputs = draw(config, expressions)
                expected = forms["eager"](inputs)
                for form, run in forms.items():
                    runs[f"{name} {form} {batch}"] = functools.partial(run, inputs)
                    if form != "eager":
                        error = float((run(inputs) - expected).norm() / expected.norm())
                        program = programs[f"{name} {form}"]
                        program["relative_error"] = max(program["relative_error"], error)
        seconds = time_interleaved(runs, rounds)
    return {
        "machine": {**machine(), "onnxruntime": import_onnx().__version__},
        "sizes": {"pixels": SIZE, "words": WORDS, "vocabulary": VOCABULARY},
        "rounds": rounds,
        "programs": programs,
        "cases": {name: summarize(seconds[name]) for name in NAMES},
    }


def format_table(figures: dict[str, Any]) -> str:
    lines = [f"{'':20}" + "".join(f"{batch:>18}" for batch in BATCHES) + f"{'file':>12}{'error':>10}"]
    for name in MODELS:
        for form in FORMS:
            program = figures["programs"][f"{name} {form}"]
            times = "".join(
                f"{figures['cases'][f'{name} {form} {batch}']['median_s'] * 1e3:>15.1f} ms" for batch in BATCHES
            )
            error = program.get("relative_error")
            shown = f"{error:.1e}" if error is not None else ""
            lines.append(f"{f'{name} {form}':20}{times}{program['bytes'] / 1e6:>9.1f} MB{shown:>10}")
    lines.append("File: of eager, its weights. Error: norm of the difference of the logits, relative to eager's.")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(__doc__, collect, format_table, ROUNDS)
