"""Time and memory of `cmsa-fast score` on a set as large as RefCOCO's validation split, under every convention.

    python -m benchmarks.score --json benchmarks/results/score-cpu.json

Builds 3811 references with 10 834 expressions about 1527 images in a temporary folder, and a prediction for each
expression: as JSON Lines, as PNG files, and as JSON Lines of 480 x 480 masks for lavt alone. Every run takes place
in a new process, whose start and imports are not timed, the forms in turn.
"""

import json
import tempfile
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cmsa_fast.cli import main
from cmsa_fast.data import load
from cmsa_fast.evaluation.conventions import CONVENTIONS
from cmsa_fast.evaluation.mask_files import encode_mask

from .data_loading import build
from .measuring import in_fresh_process, machine, peak_mib, run_command, summarize

REFERENCES = 3811
EXPRESSIONS = 10_834
ROUNDS = 3
FORMS = {"masks.jsonl": "all", "png": "all", "lavt.jsonl": "lavt"}  # and the convention


def predicted(true: Tensor, random: np.random.Generator) -> Tensor:
    """The true mask, moved by up to 12 pixels, with a ragged outline and a few stray pixels."""
    rows, columns = random.integers(-12, 13, 2).tolist()
    mask = true.roll((rows, columns), (0, 1))
    ragged = mask.roll(1, 0) ^ mask.roll(1, 1)
    noise = torch.from_numpy(random.random(mask.shape, np.float32))
    return (mask ^ (ragged & (noise < 0.5))) | (noise > 0.9995)


def write_predictions(root: Path, folder: Path) -> dict[str, float]:
    """Write the predictions in every form; returns their size in MB."""
    dataset, random = load("refer", root, "train"), np.random.default_rng(0)
    lavt = CONVENTIONS["lavt"]
    (folder / "png").mkdir()
    with (folder / "masks.jsonl").open("w") as own, (folder / "lavt.jsonl").open("w") as stretched:
        for index in range(len(dataset)):
            sample = dataset.without_pixels(index)
            mask = predicted(sample.mask, random)
            for file, one in ((own, mask), (stretched, lavt.prediction_at_own_size(mask.float()))):
                file.write(json.dumps({"sent_id": sample.sent_id, "segmentation": encode_mask(one)}) + "\n")
            pixels = mask.numpy().astype(np.uint8) * 255
            Image.fromarray(pixels).save(folder / "png" / f"{sample.sent_id}.png")
    size = {path.name: path.stat().st_size for path in folder.glob("*.jsonl")}
    size["png"] = sum(path.stat().st_size for path in (folder / "png").iterdir())
    return {name: size[name] / 1e6 for name in FORMS}


def score_once(predictions: Path, root: Path, convention: str, out: Path) -> tuple[float, float]:
    """Seconds, and peak memory of the process in MiB."""
    command = ["score", str(predictions), "--data=refer", f"--root={root}", "--split=train"]
    start = time.perf_counter()
    with redirect_stdout(StringIO()):
        status = main([*command, f"--convention={convention}", f"--out={out}"])
    seconds = time.perf_counter() - start
    if status:
        raise RuntimeError(f"cmsa-fast score {predictions.name} failed.")
    return seconds, peak_mib()


def collect(rounds: int = ROUNDS, references: int = REFERENCES, expressions: int = EXPRESSIONS) -> dict[str, Any]:
    """Measure time and peak memory of every form."""
    runs: dict[str, list[tuple[float, float]]] = {form: [] for form in FORMS}
    with tempfile.TemporaryDirectory() as name:
        root, folder = Path(name, "data"), Path(name, "predictions")
        folder.mkdir()
        build(root, references, expressions)
        megabytes = write_predictions(root, folder)
        for number in range(rounds):
            for form, convention in FORMS.items():
                out = Path(name, f"{form}-{number}")
                runs[form].append(in_fresh_process(score_once, folder / form, root, convention, out))
    return {
        "machine": machine(),
        "sizes": {"references": references, "expressions": expressions},
        "rounds": rounds,
        "cases": {
            form: {
                "convention": convention,
                "file_mb": megabytes[form],
                **summarize([seconds for seconds, _ in runs[form]]),
                "peak_mib": max(peak for _, peak in runs[form]),
            }
            for form, convention in FORMS.items()
        },
    }


def format_table(figures: dict[str, Any]) -> str:
    lines = [f"{'':14}{'convention':>12}{'files':>11}{'median':>10}{'peak':>10}"]
    for form, row in figures["cases"].items():
        lines.append(
            f"{form:14}{row['convention']:>12}{row['file_mb']:>8.1f} MB{row['median_s']:>8.1f} s"
            f"{row['peak_mib']:>6.0f} MiB"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(__doc__, collect, format_table, ROUNDS)
