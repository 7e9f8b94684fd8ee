"""`cmsa-fast explain`: one figure of how a model comes to a mask."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from .data_options import without_default


@dataclass(frozen=True, kw_only=True)
class ExplainOptions:
    """Model, image and expression."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Folder of a training run, model folder or .safetensors file; demo: the model that is part of the package;
    OWNER/NAME: a model on the Hugging Face Hub."""

    image: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IMAGE")]
    """Image file."""

    expression: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="EXPRESSION")]
    """The expression, in quotes."""

    out: Annotated[Path | None, without_default("FILE", "default: a new file, explanation.png")] = None
    """PNG file to write; must not exist."""

    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:1, ...; auto: CUDA if available."""


def run_explain(options: ExplainOptions) -> Path:
    """Draw the figure.

    Returns:
        Its path.

    Raises:
        FileExistsError: --out exists.
    """
    from ..evaluation.explanation import draw_explanation
    from ..predictor import Predictor
    from ..system.processes import select_device

    predictor = Predictor.from_pretrained(options.run, select_device(options.device))
    predictor.set_image(options.image)
    figure = draw_explanation(predictor.predict(options.expression))
    path = options.out or _new_file("explanation")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        figure.save(file, "PNG")
    return path


def _new_file(stem: str) -> Path:
    names = itertools.chain([f"{stem}.png"], (f"{stem}-{count}.png" for count in itertools.count(2)))
    return next(path for path in map(Path, names) if not path.exists())
