"""`cmsa-fast predict`: masks of expressions in images of one's own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from .data_options import without_default

if TYPE_CHECKING:
    from torch import Tensor

    from ..predictor import EncodedImage, Prediction, Predictor

PREDICTIONS = "predictions.json"
_LISTED = 20  # images whose expressions are printed

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Model, images and expressions."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Folder of a training run, model folder or .safetensors file; demo: the model that is part of the package;
    OWNER/NAME: a model on the Hugging Face Hub."""

    image: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="IMAGE")]
    """Image file, folder of images, or pattern in quotes such as "photos/**/*.jpg"."""

    expressions: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="EXPRESSION ...", help_behavior_hint="(required)"),
    ]
    """Expressions, each in quotes. Arguments that are files, or end like image files, are further images."""

    out: Annotated[Path | None, without_default("PATH", "default: a new folder, predictions")] = None
    """Folder for overlays, masks and predictions.json; must be empty or not exist."""

    crf: bool = False
    """Refine every prediction with a dense CRF with the published parameters."""

    device: str = "auto"
    """Where to compute: cpu, cuda, cuda:1, ...; auto: CUDA if available."""


@dataclass(frozen=True)
class PredictResult:
    """Result of `run_predict`."""

    folder: Path
    images: list[dict[str, Any]]  # the entries of predictions.json
    errors: list[str]  # one line for each image that could not be read

    @property
    def exit_status(self) -> int:
        """0 if all images were predicted, 3 if some could not be read, 1 if none could."""
        if not self.errors:
            return 0
        return 3 if self.images else 1


def run_predict(options: PredictOptions) -> PredictResult:
    """Predict as `cmsa-fast predict` does.

    An image that cannot be read is reported, and the others are predicted. If the command is stopped,
    predictions.json holds the images that were done.
    """
    from tqdm import tqdm

    from ..data.errors import one_line
    from ..data.vocabulary import tokenize
    from ..evaluation.crf import import_densecrf
    from ..predictor import Predictor
    from ..system.files import write_json
    from ..system.processes import ALONE, select_device
    from .evaluation_folder import evaluation_folder
    from .image_files import split_arguments, unique_names

    images, expressions = split_arguments(options.image, options.expressions)
    for expression in expressions:
        tokenize(expression)
    if options.crf:
        import_densecrf()
    predictor = Predictor.from_pretrained(options.run, select_device(options.device))
    done: list[dict[str, Any]] = []
    errors: list[str] = []
    with (
        evaluation_folder(options.out, Path(), "predictions", ALONE) as folder,
        _warnings_of_the_first_image() as silence,
    ):
        try:
            names = unique_names(images)
            bar = tqdm(images, desc="predict", unit="image", dynamic_ncols=True, disable=len(images) == 1)
            for path, name in zip(bar, names, strict=True):
                started = time.perf_counter()
                try:
                    encoded = predictor.encode(path)
                except (OSError, ValueError) as error:
                    errors.append(one_line(error))
                    _logger.warning("%s", errors[-1])
                    continue
                seconds = time.perf_counter() - started
                entry = {"image": str(path), **_size(encoded), "encoding_seconds": round(seconds, 4)}
                done.append(entry | _predict(predictor, encoded, expressions, folder, name, options.crf))
                silence()
        finally:
            if done:
                content = {"model": options.run, "device": str(predictor.device), "crf": options.crf}
                write_json(folder / PREDICTIONS, {**content, "images": done, "errors": errors})
    return PredictResult(folder, done, errors)


def format_predict(result: PredictResult) -> str:
    """The shares of the images that the masks cover, and where everything is."""
    from ..data.errors import shorten

    lines = []
    for entry in result.images[:_LISTED]:
        lines.append(f"{entry['image']} ({entry['width']} x {entry['height']})")
        for one in entry["predictions"]:
            expression = shorten(one["expression"])
            lines.append(f"  {_percent(one['share']):>8}  {expression}")
    if len(result.images) > _LISTED:
        lines.append(f"and {len(result.images) - _LISTED} more images")
    if result.errors:
        lines.append(f"{len(result.errors)} of {len(result.errors) + len(result.images)} images could not be read")
    if result.images:
        lines.append(f"Overlays, masks and {PREDICTIONS} are in {result.folder}")
    return "\n".join(lines)


def _predict(
    predictor: Predictor, encoded: EncodedImage, expressions: Sequence[str], folder: Path, name: str, crf: bool
) -> dict[str, Any]:
    """Write the masks and overlays of an image; its part of predictions.json."""
    from PIL import Image

    from ..evaluation.drawing import PALETTE, draw_masks
    from ..evaluation.inference import EXPRESSIONS_AT_ONCE
    from ..evaluation.mask_files import encode_mask

    entries: list[dict[str, Any]] = []
    shown: list[tuple[Tensor, str]] = []
    seconds = 0.0
    # A few at a time: probabilities take more memory than masks.
    for start in range(0, len(expressions), EXPRESSIONS_AT_ONCE):
        started = time.perf_counter()
        predictions = predictor.segment(encoded, expressions[start : start + EXPRESSIONS_AT_ONCE])
        if crf:
            predictions = [_refined(prediction) for prediction in predictions]
        seconds += time.perf_counter() - started
        for prediction in predictions:
            mask, share = prediction.mask, float(prediction.mask.double().mean())
            file = f"{name}-mask-{len(entries) + 1}.png"
            Image.fromarray(mask.numpy()).convert("L").save(folder / file)
            entries.append(
                {
                    "expression": prediction.expression,
                    "words": list(prediction.tokens),
                    "unknown_words": list(prediction.unknown_words),
                    "share": share,
                    "mask": file,
                    "segmentation": encode_mask(mask),
                }
            )
            shown.append((mask, f"{prediction.expression} ({_percent(share)})"))
    overlays = []
    for start in range(0, len(shown), len(PALETTE)):
        number = f"-{start // len(PALETTE) + 1}" if start else ""
        overlays.append(f"{name}-overlay{number}.png")
        draw_masks(encoded.pixels, shown[start : start + len(PALETTE)]).save(folder / overlays[-1])
    return {"prediction_seconds": round(seconds, 4), "overlays": overlays, "predictions": entries}


def _refined(prediction: Prediction) -> Prediction:
    from ..evaluation.crf import refine
    from ..evaluation.inference import NATIVE

    refined = refine(prediction.image, prediction.probability)
    return replace(prediction, probability=refined, mask=NATIVE.prediction_at_own_size(refined))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share else "nothing"


def _size(encoded: EncodedImage) -> dict[str, int]:
    height, width = encoded.pixels.shape[1:]
    return {"width": width, "height": height}


@contextmanager
def _warnings_of_the_first_image() -> Iterator[Callable[[], None]]:
    """Yield a function after whose call the predictor's warnings, which repeat with each image, are not logged."""
    logger = logging.getLogger("cmsa_fast.predictor")
    level = logger.level
    try:
        yield lambda: logger.setLevel(logging.ERROR)
    finally:
        logger.setLevel(level)
