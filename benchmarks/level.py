"""Time and memory of CMSA's levels and of the whole model on the CPU, with and without the folded convolution.

    python -m benchmarks.level --json benchmarks/results/level-cpu.json

One 320 px image and an expression of 20 words, float32, the paper's widths, random weights. "Before" computes a
level's result and then applies the 1x1 convolution of the gated fusion; "after" is `CMSA.project`, as `CMSAModel`
calls it; "folded" is `FoldedLevel` or `FoldedCMSAModel`, without the time of folding.
"One more expression" is the time of an expression whose image is already encoded. All cases run interleaved in one
process, and medians are reported. Peak memory is measured in a new process for each case.
"""

import functools
import statistics
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmsa_fast.models.cmsa import CMSAModel
from cmsa_fast.models.folded_cmsa import FoldedCMSAModel
from cmsa_fast.nn import CMSA, FoldedLevel

from .measuring import added_peak_mib, machine, run_command, summarize, time_interleaved

SIZE, WORDS, VOCABULARY = 320, 20, 12112  # the size of the word list of the paper's code
PLACES = (SIZE // 8) ** 2
WORD_CHANNELS, ATTENTION_CHANNELS, FUSED_CHANNELS = 1000, 512, 500
LEVELS = {"Res3": 512, "Res4": 1024, "Res5": 2048}
FORMS = ("before", "after", "folded")
PASSES = ("forward", "forward + backward")
EXPRESSION = "one more expression"
GOAL = 0.35  # upper limit: forward of the three folded levels as a share of the backbone's
ROUNDS = 9

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
    """A function that runs one of NAMES once."""
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
        whole: Callable[..., Tensor] = _forward_before if form == "before" else model
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
    """A function of visual features and words that returns a level after the convolution, [B, 500, H, W]."""
    if form == "folded":
        return FoldedLevel(attention, convolution.weight, convolution.bias)
    if form == "after":
        return functools.partial(attention.project, weight=convolution.weight, bias=convolution.bias)
    return lambda visual, words: convolution(attention(visual, words))


@functools.cache
def draw(name: str) -> tuple[CMSA, nn.Conv2d, Tensor, Tensor]:
    """For one of LEVELS: CMSA, the convolution that follows it, visual features and words."""
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


def _forward_before(images: Tensor, ids: Tensor) -> Tensor:
    """`CMSAModel.forward` with the full result of every level."""
    model = _model()[0]
    features = model.encode_image(images)
    words = model.words(ids)
    levels = [attention(visual, words) for attention, visual in zip(model.attention, features.levels, strict=True)]
    logits = model.mask(model.fusion(levels))
    return F.interpolate(logits, size=features.size, mode="bilinear", align_corners=False)


def _without_gradient(run: Callable[[], Any]) -> Any:
    with torch.no_grad():
        return run()


def collect(rounds: int = ROUNDS) -> dict[str, Any]:
    """Measure times, the levels' share of the backbone, and memory."""
    seconds = time_interleaved({name: build(name) for name in NAMES}, rounds)
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
            name: {**summarize(times), "peak_mib": added_peak_mib(build, name)} for name, times in seconds.items()
        },
        "levels_share_of_backbone": {form: levels_share(median, form) for form in FORMS},
        "goal": GOAL,
    }


def levels_share(median: dict[str, float], form: str) -> float:
    """Forward time of the three levels divided by that of the backbone."""
    levels = sum(median[f"{name} {form} forward"] for name in LEVELS)
    return levels / median["backbone forward"]


def format_table(figures: dict[str, Any]) -> str:
    rows = figures["cases"]
    lines = [f"{'':26}" + "".join(f"{form:>22}" for form in FORMS)]
    for part in (*LEVELS, "model"):
        for passes in (*PASSES, EXPRESSION):
            found = [rows.get(f"{part} {form} {passes}") for form in FORMS]
            if any(found):
                cells = "".join(
                    f"{row['median_s'] * 1e3:>9.1f} ms{row['peak_mib']:>6.0f} MiB" if row else f"{'':22}"
                    for row in found
                )
                lines.append(f"{f'{part} {passes}':26}{cells}")
    backbone = rows["backbone forward"]
    lines.append(f"{'backbone forward':26}{backbone['median_s'] * 1e3:>8.1f} ms, {backbone['peak_mib']:.0f} MiB")
    share = figures["levels_share_of_backbone"]
    lines.append(
        "three levels' forward as a share of the backbone's: "
        + ", ".join(f"{share[form]:.1%} {form}" for form in FORMS)
        + f"; goal {figures['goal']:.0%} folded"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(__doc__, collect, format_table, ROUNDS)
