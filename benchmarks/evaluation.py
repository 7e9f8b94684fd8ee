"""Expressions a second of the full-size model on the CPU: an image encoded once for its expressions, or for each.

    python -m benchmarks.evaluation --json benchmarks/results/evaluation-cpu.json

Images of 320 px, seven expressions each (as many as an image of RefCOCO's validation split has), of one to eight
words, float32, random weights. All forms start from tensors and end with probabilities over the square:

- "once": what `cmsa_fast.evaluation.evaluate.evaluate` does, the folded model and all expressions of an image together;
- "each": the same model, which encodes the image again for each expression;
- "each, as trained": the model as it is trained, again for each expression.

All run in one process, interleaved, and medians are quoted. The results agree within the rounding of float32,
which is asserted before anything is timed.
"""

import copy
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cmsa_fast.data.batch import Batch
from cmsa_fast.data.types import Sample
from cmsa_fast.data.transforms import Letterbox
from cmsa_fast.evaluation.inference import predict_probabilities
from cmsa_fast.models import build_model, for_inference

from .attention import machine
from .command import run_command

SIZE, EXPRESSIONS, VOCABULARY = 320, 7, 12112
WIDTHS: dict[str, Any] = {
    "backbone": "resnet101",
    "word_channels": 1000,
    "attention_channels": 512,
    "fused_channels": 500,
}
LENGTHS = (1, 2, 2, 3, 4, 5, 8)  # mean 3.6, as measured over RefCOCO's validation split
ROUNDS = 7
GOAL = 3.0
FORMS = ("once", "each", "each, as trained")


@functools.cache
def model() -> nn.Module:
    """The paper's network with random weights."""
    torch.manual_seed(0)
    return build_model("cmsa", vocabulary_size=VOCABULARY, **WIDTHS).eval()


@functools.cache
def folded() -> Any:
    """The same, folded for inference."""
    return for_inference(model())


@functools.cache
def batch() -> Batch:
    """One image of noise and its expressions."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    longest = max(LENGTHS)
    words = torch.zeros(EXPRESSIONS, longest, dtype=torch.int64)
    word_mask = torch.zeros(EXPRESSIONS, longest, dtype=torch.bool)
    for row, length in enumerate(LENGTHS):
        words[row, -length:] = torch.randint(2, VOCABULARY, (length,), generator=generator)
        word_mask[row, -length:] = True
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    box = Letterbox(SIZE, SIZE, SIZE)
    samples = [Sample(image, mask, "", 0, index, index) for index in range(EXPRESSIONS)]
    return Batch(
        images=image[None] / 255,
        words=words,
        word_mask=word_mask,
        masks=mask.expand(EXPRESSIONS, -1, -1),
        image_index=torch.zeros(EXPRESSIONS, dtype=torch.int64),
        samples=samples,
        letterboxes=[box] * EXPRESSIONS,
    )


def run(form: str) -> list[Tensor]:
    """The probabilities of all expressions of the image, [320, 320] each."""
    whole = batch()
    if form == "once":
        return predict_probabilities(folded(), whole, "cpu")
    network = folded() if form == "each" else model()
    found = []
    for row in range(EXPRESSIONS):
        one = Batch(
            images=whole.images,
            words=whole.words[row : row + 1],
            word_mask=whole.word_mask[row : row + 1],
            masks=whole.masks[row : row + 1],
            image_index=whole.image_index[row : row + 1],
            samples=whole.samples[row : row + 1],
            letterboxes=whole.letterboxes[row : row + 1],
        )
        found += predict_probabilities(network, one, "cpu")
    return found


def check_parity() -> float:
    """The largest difference of a probability between the forms.

    Raises:
        RuntimeError: it is more than float32's rounding in a network this deep explains.
    """
    results = {form: torch.stack(run(form)) for form in FORMS}
    reference = copy.deepcopy(model()).double()
    exact = torch.stack(predict_probabilities(reference, _double(batch()), "cpu"))
    errors = {form: float((found - exact).abs().max()) for form, found in results.items()}
    allowed = 2 * errors["each, as trained"]
    for form, error in errors.items():
        if error > allowed:
            raise RuntimeError(
                f"form {form!r} errs by {error:.2e}; at most {allowed:.2e} is allowed."
            )
    return max(errors.values())


def _double(one: Batch) -> Batch:
    return Batch(
        images=one.images.double(),
        words=one.words,
        word_mask=one.word_mask,
        masks=one.masks,
        image_index=one.image_index,
        samples=one.samples,
        letterboxes=one.letterboxes,
    )


def collect(rounds: int = ROUNDS) -> dict[str, Any]:
    """All figures, as written to the JSON file."""
    error = check_parity()
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(rounds):
        for form in FORMS:
            seconds[form].append(_timed(functools.partial(run, form)))
    medians = {form: statistics.median(values) for form, values in seconds.items()}
    return {
        "machine": machine(),
        "sizes": {"size": SIZE, "lengths": LENGTHS, "vocabulary": VOCABULARY, **WIDTHS},
        "rounds": rounds,
        "largest_error": error,
        "cases": {
            form: {
                "median_s": medians[form],
                "fastest_s": min(values),
                "slowest_s": max(values),
                "expressions_per_second": EXPRESSIONS / medians[form],
            }
            for form, values in seconds.items()
        },
        "times_faster": {form: medians[form] / medians["once"] for form in FORMS[1:]},
        "goal": GOAL,
    }


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def format_table(figures: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [f"{'a image of 320 px, seven sentences':<38}{'median':>10}{'sentences/s':>13}"]
    for form, row in figures["cases"].items():
        lines.append(
            f"{'encoded ' + form:<38}{row['median_s']:>8.2f} s{row['sentences_per_second']:>13.2f}"
        )
    ratio = figures["times_faster"]["each"]
    lines.append(
        f"once is {ratio:.2f} times faster than each; goal {figures['goal']:g}: "
        f"{'reached' if ratio >= figures['goal'] else 'missed'}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(__doc__, collect, format_table)
