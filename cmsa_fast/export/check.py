"""Comparison of an exported program with its model on random inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from ..models import for_inference
from ..models.base import ReferringModel
from ..models.checkpoint import ModelConfig
from .program import Inputs, Run

# Rounding in another order changes the logits of a network by 1e-7 to 1e-5 of their norm.
TOLERANCE = 1e-4

# Numbers of images and expressions, each with one word and with several.
_BATCHES = ((1, 1), (2, 3))


class Agreement(NamedTuple):
    """The largest differences over all inputs.

    Attributes:
        relative_error: Norm of the difference of the logits, relative to the norm of the model's logits.
        probability_error: Of any pixel.
    """

    relative_error: float
    probability_error: float


@torch.no_grad()
def compare(model: ReferringModel, config: ModelConfig, run: Run) -> Agreement:
    """Run a program and its model on the same inputs, of several sizes.

    Args:
        model: In eval mode on the CPU.
        config: Its configuration.
        run: The program, loaded by `load_torch` or `load_onnx`.

    Raises:
        ValueError: The relative error exceeds `TOLERANCE`, or the program's logits are not finite or have another
            shape.
    """
    inference = for_inference(model)
    errors = []
    for inputs in _inputs(config):
        expected, actual = inference(*inputs)[:, 0], run(inputs)
        if actual.shape != expected.shape:
            raise ValueError(
                f"The exported program is not the model: its logits have shape {list(actual.shape)}, and those of "
                f"the model {list(expected.shape)}."
            )
        difference = (actual - expected).norm() / expected.norm()
        errors.append([float(difference), float((actual.sigmoid() - expected.sigmoid()).abs().max())])
    agreement = Agreement(*torch.tensor(errors, dtype=torch.float64).amax(0).tolist())  # NaN remains
    if not agreement.relative_error <= TOLERANCE:
        raise ValueError(
            f"The exported program is not the model: its logits differ by {agreement.relative_error:.1e} of their "
            f"norm, and at most {TOLERANCE:.0e} is allowed."
        )
    return agreement


def _inputs(config: ModelConfig) -> Iterator[Inputs]:
    generator = torch.Generator().manual_seed(0)
    for images, expressions in _BATCHES:
        for words in sorted({1, config.max_words}):
            mask = torch.rand(expressions, words, generator=generator) < 0.7
            mask[:, -1] = True
            yield (
                torch.rand(images, 3, config.size, config.size, generator=generator),
                torch.randint(len(config.tokens), (expressions, words), generator=generator),
                mask,
                torch.randint(images, (expressions,), generator=generator),
            )
