"""Expressions per second of the full-size model on the CPU, when an image is encoded once or for each expression.

    python -m benchmarks.evaluation --json benchmarks/results/evaluation-cpu.json

One image of 320 px with seven expressions (the mean number of an image in RefCOCO's validation split) of one to
eight words, float32, random weights. All forms start from tensors and end with probabilities over the square:

- "once": as in `cmsa-fast evaluate`, the folded model and all expressions of the image together;
- "each": the same model, which encodes the image again for each expression;
- "each, as trained": the model without folding, which encodes the image again for each expression.

All run interleaved in one process, and medians are reported. Before anything is timed, the results are checked to
agree within the rounding of float32.
"""

import copy
import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor

from cmsa_fast.data.batch import Batch
from cmsa_fast.data.transforms import Letterbox
from cmsa_fast.data.types import Sample
from cmsa_fast.evaluation.inference import segment_batch
from cmsa_fast.models import build_model, for_inference
from cmsa_fast.models.base import ReferringModel

from .measuring import machine, run_command, summarize, time_interleaved

SIZE, EXPRESSIONS, VOCABULARY = 320, 7, 12112
WIDTHS: dict[str, Any] = {
    "backbone": "resnet101",
    "word_channels": 1000,
    "attention_channels": 512,
    "fused_channels": 500,
}
LENGTHS = (1, 2, 2, 3, 4, 5, 8)  # mean 3.6, as measured over RefCOCO's validation split
ROUNDS = 7
GOAL = 3.0  # times that "once" is to be faster than "each"
FORMS = ("once", "each", "each, as trained")


@functools.cache
def model() -> ReferringModel:
    """The paper's network with random weights."""
    torch.manual_seed(0)
    return build_model("cmsa", vocabulary_size=VOCABULARY, **WIDTHS).eval()


@functools.cache
def folded() -> Any:
    """`model()` folded for inference."""
    return for_inference(model())


@functools.cache
def batch() -> Batch:
    """One image of noise and its expressions."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    words = torch.zeros(EXPRESSIONS, max(LENGTHS), dtype=torch.int64)
    word_mask = torch.zeros(words.shape, dtype=torch.bool)
    for row, length in enumerate(LENGTHS):
        words[row, -length:] = torch.randint(2, VOCABULARY, (length,), generator=generator)
        word_mask[row, -length:] = True
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    return Batch(
        images=image[None] / 255,
        words=words,
        word_mask=word_mask,
        masks=mask.expand(EXPRESSIONS, -1, -1),
        ignore=None,
        image_index=torch.zeros(EXPRESSIONS, dtype=torch.int64),
        samples=[Sample(image, mask, "", 0, index, index) for index in range(EXPRESSIONS)],
        letterboxes=[Letterbox(SIZE, SIZE, SIZE)] * EXPRESSIONS,
    )


def predict(network: ReferringModel, expressions: Batch) -> list[Tensor]:
    """The probabilities of each expression of a batch, [S, S]."""
    return [output.probability for output in segment_batch(network, expressions, "cpu")]


def run(form: str) -> list[Tensor]:
    """The probabilities of all expressions of the image, [320, 320] each."""
    whole = batch()
    if form == "once":
        return predict(folded(), whole)
    network = folded() if form == "each" else model()
    fields = ("words", "word_mask", "masks", "image_index", "samples", "letterboxes")
    probabilities = []
    for row in range(EXPRESSIONS):
        one = {field: getattr(whole, field)[row : row + 1] for field in fields}
        probabilities += predict(network, dataclasses.replace(whole, **one))
    return probabilities


def check_parity() -> float:
    """The largest error of a probability against float64, over all forms.

    Raises:
        RuntimeError: A form's error is more than twice that of "each, as trained".
    """
    results = {form: torch.stack(run(form)) for form in FORMS}
    double = dataclasses.replace(batch(), images=batch().images.double())
    exact = torch.stack(predict(copy.deepcopy(model()).double(), double))
    errors = {form: float((result - exact).abs().max()) for form, result in results.items()}
    allowed = 2 * errors["each, as trained"]
    for form, error in errors.items():
        if error > allowed:
            raise RuntimeError(f"form {form!r} has an error of {error:.2e}; at most {allowed:.2e} is allowed.")
    return max(errors.values())


def collect(rounds: int = ROUNDS) -> dict[str, Any]:
    """Check parity, then measure all forms."""
    error = check_parity()
    seconds = time_interleaved({form: functools.partial(run, form) for form in FORMS}, rounds)
    cases = {form: summarize(times) for form, times in seconds.items()}
    for row in cases.values():
        row["expressions_per_second"] = EXPRESSIONS / row["median_s"]
    once = cases["once"]["median_s"]
    return {
        "machine": machine(),
        "sizes": {"size": SIZE, "lengths": LENGTHS, "vocabulary": VOCABULARY, **WIDTHS},
        "rounds": rounds,
        "largest_error": error,
        "cases": cases,
        "times_faster": {form: cases[form]["median_s"] / once for form in FORMS[1:]},
        "goal": GOAL,
    }


def format_table(figures: dict[str, Any]) -> str:
    lines = [f"{'an image of 320 px, seven expressions':<38}{'median':>10}{'expressions/s':>15}"]
    for form, row in figures["cases"].items():
        rate = row["expressions_per_second"]
        lines.append(f"{'encoded ' + form:<38}{row['median_s']:>8.2f} s{rate:>15.2f}")
    ratio = figures["times_faster"]["each"]
    lines.append(
        f"once is {ratio:.2f} times faster than each; goal {figures['goal']:g}: "
        f"{'reached' if ratio >= figures['goal'] else 'missed'}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(__doc__, collect, format_table, ROUNDS)
