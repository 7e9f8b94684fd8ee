"""What CMSA's levels and the whole model cost on the CPU, before and after folding the convolution behind a level.

    python -m benchmarks.level --json benchmarks/results/level-cpu.json

One 320 px image and an expression of 20 words, float32, the paper's widths, random weights. "Before" builds a
level's result and then applies the 1x1 convolution of the gated fusion; "after" is `CMSA.project`, as `CMSAModel`
calls it; "folded" are `FoldedLevel` and `FoldedCMSAModel`, for inference, the folding itself not counted.
The backbone's forward is the measure of all. "One more expression" is what follows once the image is encoded. All
cases run in one process, interleaved, and medians are quoted. Peak memory is measured in a fresh process for each
case.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmsa_fast.models.cmsa import CMSAModel
from cmsa_fast.models.folded_cmsa import FoldedCMSAModel
from cmsa_fast.nn import CMSA, FoldedLevel

from .attention import machine, peak_mib

SIZE, WORDS, VOCABULARY = 320, 20, 12112  # the last of the list the paper's code published
PLACES = (SIZE // 8) ** 2
WORD_CHANNELS, ATTENTION_CHANNELS, FUSED_CHANNELS = 1000, 512, 500
LEVELS = {"Res3": 512, "Res4": 1024, "Res5": 2048}
FORMS = ("before", "after", "folded")
PASSES = ("forward", "forward + backward")
EXPRESSION = "one more expression"
GOAL = 0.35  # of the backbone's forward, for the three levels' together as they are for inference

NAMES = (
    "backbone forward",
    *(
        f"{part} {form} {passes}"
        for part in (*LEVELS, "model")
        for passes in PASSES
        for form in FORMS
        if passes == "forward" or form != "folded"
    ),
    f"model after {EXPRESSION}",
    f"model folded {EXPRESSION}",
)


def build(name: str) -> Callable[[], object]:
    """A function that does one of NAMES once."""
    part, _, rest = name.partition(" ")
    form, _, passes = rest.partition(" ")
    if part == "backbone":
        model, images, _ = _model()
        return lambda: _without_gradient(lambda: model.backbone(images))
    if passes == EXPRESSION:
        model, images, ids = _model()
        answering = FoldedCMSAModel(model) if form == "folded" else model
        features = _without_gradient(lambda: answering.encode_image(images))
        return lambda: _without_gradient(lambda: answering.segment(features, ids))
    if part == "model":
        model, images, ids = _model()
        whole: Callable[..., Tensor] = _model_before if form == "before" else model
        run = functools.partial(FoldedCMSAModel(model) if form == "folded" else whole, images, ids)
        leaves: Iterable[Tensor] = (p for p in model.parameters() if p.requires_grad)
        shape = (1, 1, SIZE, SIZE)
    else:
        attention, convolution, visual, words = draw(part)
        level = prepare_level(form, attention, convolution)
        run = functools.partial(level, visual, words)
        leaves = (visual, words, *attention.parameters(), *convolution.parameters())
        shape = (1, FUSED_CHANNELS, *visual.shape[2:])
    if passes == "forward":
        return lambda: _without_gradient(run)
    inputs = list(leaves)
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return lambda: torch.autograd.grad(run(), inputs, upstream)


def prepare_level(form: str, attention: CMSA, convolution: nn.Conv2d) -> Callable[..., Tensor]:
    """Of visual features and words, a level's features behind the fusion's convolution, [B, 500, H, W]."""
    if form == "folded":
        return FoldedLevel(attention, convolution.weight, convolution.bias)
    if form == "after":
        return functools.partial(
            attention.project, weight=convolution.weight, bias=convolution.bias
        )
    return lambda visual, words: convolution(attention(visual, words))


@functools.cache
def draw(name: str) -> tuple[CMSA, nn.Conv2d, Tensor, Tensor]:
    """One of LEVELS: CMSA, the convolution behind it, visual features and words."""
    torch.manual_seed(0)
    attention = CMSA(LEVELS[name], WORD_CHANNELS, ATTENTION_CHANNELS)
    convolution = nn.Conv2d(attention.out_channels, FUSED_CHANNELS, 1)
    visual = torch.rand(1, LEVELS[name], SIZE // 8, SIZE // 8, requires_grad=True)
    words = torch.randn(1, WORDS, WORD_CHANNELS, requires_grad=True)
    return attention, convolution, visual, words


@functools.cache
def _model() -> tuple[CMSAModel, Tensor, Tensor]:
    torch.manual_seed(0)
    model = CMSAModel(
        VOCABULARY,
        word_channels=WORD_CHANNELS,
        attention_channels=ATTENTION_CHANNELS,
        fused_channels=FUSED_CHANNELS,
    )
    return model.eval(), torch.rand(1, 3, SIZE, SIZE), torch.randint(VOCABULARY, (1, WORDS))


def _model_before(images: Tensor, ids: Tensor) -> Tensor:
    """`CMSAModel.forward` with every level's result built."""
    model = _model()[0]
    features = model.encode_image(images)
    words = model.words(ids)
    levels = [
        attention(visual, words)
        for attention, visual in zip(model.attention, features.levels, strict=True)
    ]
    logits = model.mask(model.fusion(levels))
    return F.interpolate(logits, size=features.size, mode="bilinear", align_corners=False)


def _without_gradient(run: Callable[[], Any]) -> Any:
    with torch.no_grad():
        return run()


def measure(rounds: int) -> dict[str, list[float]]:
    """Seconds of every round of every case, the rounds interleaved, after one that does not count."""
    runs = {name: build(name) for name in NAMES}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_index in range(-1, rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if round_index >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_memory(name: str) -> float:
    """MiB that one run of a case adds to the peak of a fresh process."""
    command = [sys.executable, "-m", "benchmarks.level", "--peak-of", name]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(result.stdout)


def collect(rounds: int = 9) -> dict[str, Any]:
    """All figures: medians, the three levels' share of the backbone, memory."""
    seconds = measure(rounds)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "machine": machine(),
        "sizes": {
            "pixels": SIZE,
            "places": PLACES,
            "words": WORDS,
            "visual_channels": list(LEVELS.values()),
            "word_channels": WORD_CHANNELS,
            "attention_channels": ATTENTION_CHANNELS,
            "fused_channels": FUSED_CHANNELS,
        },
        "rounds": rounds,
        "cases": {
            name: {
                "median_s": median[name],
                "min_s": min(times),
                "max_s": max(times),
                "peak_mib": peak_memory(name),
            }
            for name, times in seconds.items()
        },
        "levels_share_of_backbone": {form: levels_share(median, form) for form in FORMS},
        "goal": GOAL,
    }


def levels_share(median: dict[str, float], form: str) -> float:
    """The three levels' forward together, by the backbone's."""
    levels = sum(median[f"{name} {form} forward"] for name in LEVELS)
    return levels / median["backbone forward"]


def format_table(figures: dict[str, Any]) -> str:
    """The figures for people."""
    rows = figures["cases"]
    lines = [f"{'':26}" + "".join(f"{form:>22}" for form in FORMS)]
    for part in (*LEVELS, "model"):
        for passes in (*PASSES, EXPRESSION):
            found = [rows.get(f"{part} {form} {passes}") for form in FORMS]
            if any(found):
                cells = "".join(
                    f"{row['median_s'] * 1e3:>9.1f} ms{row['peak_mib']:>6.0f} MiB"
                    if row
                    else f"{'':22}"
                    for row in found
                )
                lines.append(f"{f'{part} {passes}':26}{cells}")
    backbone = rows["backbone forward"]
    lines.append(
        f"{'backbone forward':26}{backbone['median_s'] * 1e3:>8.1f} ms, "
        f"{backbone['peak_mib']:.0f} MiB"
    )
    share = figures["levels_share_of_backbone"]
    lines.append(
        "three levels' forward as a share of the backbone's: "
        + ", ".join(f"{share[form]:.1%} {form}" for form in FORMS)
        + f"; goal {figures['goal']:.0%} folded"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--rounds", type=int, default=9, help="how often each case is measured")
    parser.add_argument("--peak-of", choices=NAMES, help="print the peak memory of one case")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds must be at least 1; got {arguments.rounds}.")
    if arguments.peak_of:
        run = build(arguments.peak_of)
        torch.randn(64, 64) @ torch.randn(64, 64)  # the libraries' own buffers
        before = peak_mib()
        run()
        print(peak_mib() - before)
        return
    figures = collect(arguments.rounds)
    print(format_table(figures))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
