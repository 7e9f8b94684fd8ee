"""Time of one training step of the full-size model on the CPU, by backbone, CMSA and fusion.

    python -m benchmarks.paper_step --json benchmarks/results/paper-step-cpu.json

One 320 px image and an expression of 20 words, random weights. The backward of each stage is run separately,
from the gradient of the next stage. The fusion's 1x1 convolutions are folded into CMSA and counted there.
"""

import time
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from cmsa_fast.models.cmsa import CMSAModel
from cmsa_fast.nn import CMSA, segmentation_loss
from cmsa_fast.training.optimization import build_optimizer
from cmsa_fast.training.recipe import PRESETS

from .measuring import machine, peak_mib, run_command

_VOCABULARY = 12112  # the size of the word list of the paper's code


def step(model: CMSAModel, images: Tensor, words: Tensor, masks: Tensor) -> dict[str, list[float]]:
    """Seconds of the forward and of the backward of each stage."""
    seconds: dict[str, list[float]] = {}
    start = time.perf_counter()
    features = model.backbone(images)
    seconds["backbone"] = [time.perf_counter() - start]
    levels = [level.detach().requires_grad_() for level in features]

    start = time.perf_counter()
    vectors = model.words(words)
    outputs = [
        cast(CMSA, attention).project(level, vectors, weight=conv.weight, bias=conv.bias)
        for attention, conv, level in zip(
            model.attention, cast(Sequence[nn.Conv2d], model.fusion.project), levels, strict=True
        )
    ]
    seconds["CMSA"] = [time.perf_counter() - start]
    fused = [output.detach().requires_grad_() for output in outputs]

    start = time.perf_counter()
    logits = model.mask(model.fusion.fuse(fused))
    logits = torch.nn.functional.interpolate(logits, images.shape[2:], mode="bilinear")
    loss = segmentation_loss(logits, masks)
    seconds["fusion"] = [time.perf_counter() - start]

    start = time.perf_counter()
    loss.backward()
    seconds["fusion"].append(time.perf_counter() - start)
    start = time.perf_counter()
    torch.autograd.backward(outputs, [part.grad for part in fused])
    seconds["CMSA"].append(time.perf_counter() - start)
    start = time.perf_counter()
    torch.autograd.backward(features, [level.grad for level in levels])
    seconds["backbone"].append(time.perf_counter() - start)
    return seconds


def collect() -> dict[str, Any]:
    """Measure the second of two steps, and the optimizer's update."""
    recipe = PRESETS["paper"]
    torch.manual_seed(0)
    model = CMSAModel(_VOCABULARY).train()
    optimizer, _ = build_optimizer(model, recipe)
    images = torch.rand(1, 3, recipe.size, recipe.size)
    words = torch.randint(_VOCABULARY, (1, recipe.max_words))
    masks = torch.zeros(1, recipe.size, recipe.size, dtype=torch.bool)
    masks[:, 80:240, 80:240] = True
    for _ in range(2):
        optimizer.zero_grad()
        stages = step(model, images, words, masks)
        start = time.perf_counter()
        optimizer.step()
        update = time.perf_counter() - start
    return {
        "machine": machine(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "stages": {
            name: {"forward_s": forward, "backward_s": backward} for name, (forward, backward) in stages.items()
        },
        "optimizer_s": update,
        "peak_gib": peak_mib() / 1024,
    }


def format_table(figures: dict[str, Any]) -> str:
    stages = figures["stages"]
    total = sum(sum(stage.values()) for stage in stages.values()) + figures["optimizer_s"]
    lines = [f"{'':12}{'forward':>10}{'backward':>10}{'share':>8}"]
    for name, stage in stages.items():
        forward, backward = stage["forward_s"], stage["backward_s"]
        share = (forward + backward) / total
        lines.append(f"{name:12}{forward:>8.2f} s{backward:>8.2f} s{share:>8.0%}")
    update = figures["optimizer_s"]
    lines.append(f"{'optimizer':12}{update:>8.2f} s{'':>10}{update / total:>8.0%}")
    lines.append(f"{total:.1f} s a step, peak memory {figures['peak_gib']:.1f} GiB")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(__doc__, collect, format_table)
