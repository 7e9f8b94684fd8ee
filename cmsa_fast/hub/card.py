"""Model card: the README.md of a shared model, filled in from the files of its run."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from string import Template
from typing import Any

import torch
from safetensors import safe_open

from .. import __version__
from ..evaluation.results import EVALUATION
from ..evaluation.score import percent
from ..models.base import ReferringModel
from ..models.checkpoint import WEIGHTS, ModelConfig
from ..models.registry import MODELS
from ..training.recipe import OPTIONS

_logger = logging.getLogger(__name__)
_TEMPLATE = Path(__file__).parent / "card.md"
_METRICS = ("overall_iou", "mean_iou", "precision@0.5", "precision@0.7", "precision@0.9")
# Options of the run that the card shows. The folders of somebody's machine are not among them, and of files only
# the name.
_ALWAYS = ("preset", "data", "seed", "freeze_backbone", "model_options")
_OF_SCENES = ("evaluate_scenes",)
_OF_FILES = ("name", "split_by", "text", "train_split", "evaluate_split", "exclude", "vocabulary", "glove")
_PATHS = ("exclude", "vocabulary", "glove", "backbone_weights")
_BACKBONES = {
    "none": "random weights",
    "imagenet": "torchvision's weights for ImageNet-1k; their licence is torchvision's to state",
    "voc-labels": "torchvision's DeepLabV3, trained on COCO train2017; its licence is torchvision's to state",
}

Evaluations = list[tuple[Path, dict[str, Any]]]


def model_card(
    name: str,
    model: ReferringModel,
    config: ModelConfig,
    weights: Path,
    *,
    license: str | None = None,
    dtype: torch.dtype | None = None,
) -> str:
    """The card of a model; what the files beside its weights do not say is called unknown.

    Args:
        name: Title, and what `Predictor.from_pretrained` is given.
        model: The loaded model.
        config: Its configuration.
        weights: File that the model was loaded from.
        license: Licence of the weights. None: not stated.
        dtype: Type in which the weights are shared. None: that of the file.

    Raises:
        ValueError: options.json or an evaluation.json is damaged.
    """
    options: dict[str, Any] = {}
    evaluations: Evaluations = []
    if weights.name == WEIGHTS:  # the files of a run are not about its other weights, such as the last ones
        options = _options(weights.parent / OPTIONS)
        evaluations = list(_evaluations(weights))
    stored = _stored_type(weights)
    shared = stored if dtype is None else str(dtype).removeprefix("torch.")
    on_scenes = options.get("data") == "scenes"
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        name=name,
        version=__version__,
        license_line="" if license is None else f"license: {license}\n",
        example="small red circle" if on_scenes else "man in the red coat",
        model=_model(model, config, shared),
        training=_training(options, evaluations),
        results=_results(evaluations, options, stored, shared),
        limits=_bullets(_limits(config, evaluations, on_scenes)),
        licenses=_bullets(_licenses(license, options)),
    )


def _options(path: Path) -> dict[str, Any]:
    """What the card shows of the options and the recipe of a run; empty if there is no options.json."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        options, recipe = content["options"], content["recipe"]
        names = (*_ALWAYS, *(_OF_SCENES if options["data"] == "scenes" else _OF_FILES))
        shown = {name: options.get(name) for name in names} | recipe
        return shown | {name: Path(shown[name]).name for name in _PATHS if shown.get(name)}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _evaluations(weights: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The evaluations in a run folder of exactly these weights, that of the training first."""
    for path in (weights.parent / EVALUATION, *sorted(weights.parent.glob(f"*/{EVALUATION}"))):
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            run = content.get("options", {}).get("run", "")
            evaluated = Path(run)
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        if path.parent != weights.parent and not run:
            continue  # scores of masks, not of a model
        if path.stat().st_mtime < weights.stat().st_mtime:
            _logger.warning("%s is older than %s and is not in the model card.", path, weights.name)
        elif evaluated.suffix != ".safetensors" or evaluated.name == WEIGHTS:
            yield path, content


def _stored_type(weights: Path) -> str:
    """The type of the floating-point weights in a file."""
    with safe_open(str(weights), framework="pt") as file:
        types = (file.get_slice(name).get_dtype() for name in file.keys())  # noqa: SIM118
        names = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
        return ", ".join(sorted({names[kind] for kind in types if kind in names}))


def _model(model: ReferringModel, config: ModelConfig, stored: str) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    rows = [
        ("network", f"`{config.name}`, {MODELS[config.name].summary}"),
        ("parameters", f"{parameters / 1e6:.2f} M, stored as {stored}"),
        ("image", f"fitted into a square of {config.size} x {config.size} pixels"),
        ("expression", f"at most {config.max_words} words; {len(config.tokens)} tokens in vocabulary.txt"),
    ]
    return _table(("", ""), [*rows, *_settings(config.options)])


def _training(options: Mapping[str, Any], evaluations: Evaluations) -> str:
    if not options:
        return f"Unknown: there was no {OPTIONS} beside the weights."
    given = {name: value for name, value in options.items() if value not in (None, "", [])}
    text = "Options and recipe of `cmsa-fast train`:\n\n" + _table(("option", "value"), _settings(given))
    for _, content in evaluations:
        if "steps" in content:  # the evaluation at the end of the training
            text += f"\n\nTraining took {content['steps']} steps."
            if content.get("best_step") is not None:
                data = "other scenes" if options["data"] == "scenes" else "expressions of the evaluation split"
                text += (
                    f" The weights are those of step {content['best_step']}, the best in validations on {data}."
                )
    return text


def _results(evaluations: Evaluations, options: Mapping[str, Any], stored: str, shared: str) -> str:
    if not evaluations:
        return f"Unknown: there was no {EVALUATION} of these weights beside them."
    rows = []
    for path, content in evaluations:
        try:
            title = content.get("title") or _title(options)
            if content.get("options", {}).get("crf"):
                title += ", with a dense CRF"
            total = content["expressions"] if "expressions" in content else content["sentences"]  # version 0.1
            counts = {title: total, **content["counts"]}
            metrics = {title: content["overall"], **content["by_kind"]}
            if content.get("shuffled"):
                control = "control: shuffled expressions"
                counts[control], metrics[control] = total, content["shuffled"]
            rows += [
                (name, content["convention"], counts[name], *(percent(values[metric]) for metric in _METRICS))
                for name, values in metrics.items()
            ]
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged, or of an earlier version: {error}") from error
    header = ("", "convention", "expressions", *(name.replace("_iou", " IoU") for name in _METRICS))
    text = _table(header, rows) + (
        "\n\nIn percent. overall IoU: sum of intersections over sum of unions; mean IoU: mean over expressions; "
        "precision@X: share of expressions with an IoU of at least X."
    )
    if shared != stored:
        text += f" Measured with {stored} weights, before they were stored as {shared}."
    return text


def _title(options: Mapping[str, Any]) -> str:
    """What the evaluation at the end of a training was on."""
    if options.get("data") == "scenes":
        return f"{options['evaluate_scenes']} unseen scenes"
    parts = (options.get("name") or options.get("data"), options.get("evaluate_split"))
    return " ".join(part for part in parts if part) or "unknown data"


def _limits(config: ModelConfig, evaluations: Evaluations, on_scenes: bool) -> Iterator[str]:
    if on_scenes:
        yield "It was trained only on drawn scenes of coloured shapes and knows nothing of photographs."
    yield f"A word that is not in vocabulary.txt becomes `<unk>`; words beyond {config.max_words} are cut off."
    for _, content in evaluations[:1]:
        if kinds := content["by_kind"]:
            weakest = min(kinds, key=lambda kind: kinds[kind]["overall_iou"])
            yield f"Of the kinds of expressions above, it is worst at this one: {weakest}."
        if missing := content.get("coverage", {}).get("missing"):
            yield f"{missing} expressions of the split could not be used and are in no figure."


def _licenses(license: str | None, options: Mapping[str, Any]) -> Iterator[str]:
    yield f"Weights: {license or 'not stated by whoever shared them'}."
    if not options:
        yield "Data: unknown."
    elif options["data"] == "scenes":
        yield "Data: drawn by cmsa_fast, which has the MIT licence."
    else:
        yield "Data: not recorded by the run; its publishers state it, for annotations and images separately."
    start = options.get("backbone_weights")
    yield f"Backbone: training started from {_BACKBONES.get(start, start) if start else 'unknown weights'}."
    if options.get("glove"):
        yield f"Word embedding: training started from {options['glove']}, whose publishers state its licence."


def _settings(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(f"`{name}`", f"`{json.dumps(value)}`") for name, value in values.items()]


def _table(header: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    lines = [tuple(header)]
    lines += [("---",) * len(lines[0]), *map(tuple, rows)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)
