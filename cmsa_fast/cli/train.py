"""`cmsa-fast train`: opens the data, builds the model, trains it, evaluates it and draws examples."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..data.batch import Collate
from ..data.dataset import ShuffledExpressions, open_split
from ..data.errors import ErrorCollector
from ..data.exclusions import read_exclusions
from ..data.scenes.dataset import MOST_EXPRESSIONS, WORDS, ScenesDataset
from ..data.types import ReferringDataset, Sample
from ..data.vocabulary import Vocabulary, tokenize
from ..evaluation.evaluate import Evaluation, evaluate
from ..evaluation.results import EVALUATION
from ..evaluation.visualization import draw_or_warn, predict_examples, save_examples
from ..models import build_model
from ..models.base import ReferringModel
from ..models.checkpoint import ModelConfig
from ..models.registry import model_options
from ..nn import WordEmbedding
from ..system.files import write_json
from ..system.processes import select_device
from ..training.loop import Progress, Validate, train
from ..training.recipe import Recipe
from .data_options import check_least, option
from .run_folder import EXAMPLES, choose_folder, resumed_options, write_options
from .scenes import evaluation_scenes, scene_labels, validation_scenes
from .train_options import TrainOptions

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """Result of a run."""

    folder: Path  # the run folder
    progress: Progress  # steps and seconds of training
    evaluation: Evaluation  # metrics on the evaluation split
    # Control: metrics with the expressions shuffled among the images; None if there is one image only.
    shuffled: Evaluation | None
    overview: Path | None  # sheet of example images; None if none were drawn
    errors: list[str] = field(default_factory=list)  # one line for each record or image that could not be used


def run_training(options: TrainOptions) -> Result:
    """Train, evaluate and draw, as `cmsa-fast train` does.

    Data and model are built before anything is written, so that most mistakes leave no run folder behind.
    """
    if options.resume:
        options = resumed_options(options)
        folder = options.run_dir or Path()
    else:
        folder = choose_folder(options)
    _check(options)
    device = select_device(options.device)
    recipe = options.recipe()

    torch.manual_seed(options.seed)
    errors = ErrorCollector(strict=options.strict)
    training, evaluated = _datasets(options, recipe, errors)
    vocabulary = _vocabulary(options, training)
    model, config = _model(options, recipe, vocabulary)
    model.to(device)
    collate = Collate(vocabulary, recipe.size, recipe.max_words)
    if options.data != "scenes":
        _log_words("training", training.expressions(), vocabulary, recipe.max_words)
        _log_words("evaluation", evaluated.expressions(), vocabulary, recipe.max_words)
    _logger.info(
        "%d training expressions, %d words, %.2f M parameters, on %s; run folder %s",
        len(training),
        len(vocabulary),
        sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        device,
        folder,
    )

    folder.mkdir(parents=True, exist_ok=True)
    if not options.resume:
        write_options(folder, options)
    progress = train(
        model,
        config,
        training,
        collate,
        recipe,
        folder,
        seed=options.seed,
        device=device,
        num_workers=options.num_workers,
        checkpoint_every=options.checkpoint_every,
        validate=_validation(options, recipe, evaluated, collate, device),
        resume=options.resume,
        errors=errors,
    )
    return _evaluate(options, folder, progress, model, evaluated, collate, device, errors)


def _check(options: TrainOptions) -> None:
    recipe = options.recipe()
    options.check_data()
    check_least(options, seed=0, num_workers=0, examples=0)
    check_least(options, checkpoint_every=1, validate_expressions=1, evaluate_scenes=2)
    if options.seed >= 2**63:
        raise ValueError(f"--seed must be below 2**63; got {options.seed}.")
    if options.data == "scenes" and options.exclude is not None:
        raise ValueError("--exclude cannot be used with --data scenes.")
    if options.data == "scenes" and recipe.expressions_per_image > MOST_EXPRESSIONS:
        raise ValueError(
            f"--expressions-per-image must be at most {MOST_EXPRESSIONS} with --data scenes; "
            f"got {recipe.expressions_per_image}."
        )
    if recipe.warmup_steps >= recipe.steps:
        _logger.warning(
            "The learning rate only rises: --warmup-steps %d is not less than --steps %d.",
            recipe.warmup_steps,
            recipe.steps,
        )


def _datasets(
    options: TrainOptions, recipe: Recipe, errors: ErrorCollector
) -> tuple[ReferringDataset, ReferringDataset]:
    """The training and the evaluation split."""
    if options.data == "scenes":
        training = ScenesDataset(
            recipe.steps * recipe.images_per_step,  # every scene is seen once
            seed=options.seed,
            split="train",
            size=recipe.size,
            expressions_per_scene=recipe.expressions_per_image,
        )
        return training, evaluation_scenes(options.evaluate_scenes, recipe.size)
    source = options.source()
    exclude = None if options.exclude is None else read_exclusions(options.exclude)
    return (
        open_split(source, options.train_split, for_training=True, exclude=exclude, errors=errors),
        open_split(source, options.evaluate_split, errors=errors),
    )


def _vocabulary(options: TrainOptions, training: ReferringDataset) -> Vocabulary:
    if options.vocabulary is not None:
        return Vocabulary.from_file(options.vocabulary)
    if options.data == "scenes":
        return Vocabulary.from_expressions(WORDS)
    return Vocabulary.from_expressions(training.expressions())


def _log_words(split: str, expressions: list[str], vocabulary: Vocabulary, most: int) -> None:
    """Warn about words that the model does not see: cut off, or not in the vocabulary."""
    known = set(vocabulary.tokens)
    tokenized = [tokenize(expression) for expression in expressions]
    cut = sum(len(tokens) > most for tokens in tokenized)
    unknown = sum(token not in known for tokens in tokenized for token in tokens[:most])
    if cut:
        _logger.warning(
            "%d of %d %s expressions are longer than %d words and are cut", cut, len(expressions), split, most
        )
    if unknown:
        _logger.warning("%d words of %s expressions are not in the vocabulary", unknown, split)


def _model(options: TrainOptions, recipe: Recipe, vocabulary: Vocabulary) -> tuple[ReferringModel, ModelConfig]:
    """Build the model; of the common options it gets those that its constructor has."""
    embedding = None
    if options.glove is not None:
        embedding = WordEmbedding.from_glove(options.glove, vocabulary.tokens)
    common: dict[str, Any] = {
        "vocabulary_size": len(vocabulary),
        "backbone": recipe.backbone,
        "word_channels": recipe.word_channels if embedding is None else embedding.embedding_dim,
        "attention_channels": recipe.attention_channels,
        "fused_channels": recipe.fused_channels,
        "mask_scale": recipe.mask_scale,
        "backend": options.backend,
    }
    if options.freeze_backbone:
        common["freeze_backbone"] = True
    known = model_options(options.model)
    for name in (*common, "backbone_weights"):
        given = getattr(options, name, None) not in (None, "auto")
        if given and name not in known and not options.resume:
            raise ValueError(f"{option(name)} cannot be used: --model {options.model} has no such option.")
    chosen = {name: value for name, value in common.items() if name in known}
    chosen.update(options.further_model_options(reserved={*common, "backbone_weights"}))
    weights = {}
    # A resumed run takes the backbone from its checkpoint.
    if "backbone_weights" in known and recipe.backbone_weights != "none" and not options.resume:
        weights["backbone_weights"] = recipe.backbone_weights
    model = build_model(options.model, **chosen, **weights)
    if embedding is not None:
        if not isinstance(getattr(model, "words", None), WordEmbedding):
            raise ValueError(f"--glove needs a word embedding, and --model {options.model} has none.")
        model.words = embedding
    config = ModelConfig(options.model, chosen, vocabulary.tokens, recipe.size, recipe.max_words)
    return model, config


class _Subset:
    """Up to `most` items of a data set, evenly spaced."""

    def __init__(self, dataset: ReferringDataset, most: int) -> None:
        self.dataset = dataset
        self.indices = _evenly(len(dataset), most)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[self.indices[index]]

    def expressions(self) -> list[str]:
        expressions = self.dataset.expressions()
        return [expressions[index] for index in self.indices]

    def image_ids(self) -> list[int]:
        image_ids = self.dataset.image_ids()
        return [image_ids[index] for index in self.indices]


def _validation(
    options: TrainOptions, recipe: Recipe, evaluated: ReferringDataset, collate: Collate, device: torch.device
) -> Validate:
    """Evaluation of the model on a few expressions, during training."""
    dataset: ReferringDataset
    if options.data == "scenes":
        dataset = validation_scenes(options.validate_expressions, recipe.size)
    else:
        dataset = _Subset(evaluated, options.validate_expressions)
    # One for all validations, to log each error once.
    errors = ErrorCollector(strict=options.strict)

    def validate(model: Any) -> Mapping[str, float]:
        return evaluate(
            model,
            dataset,
            collate,
            device=device,
            num_workers=options.num_workers,
            title="validate",
            errors=errors,
        ).overall

    return validate


def _evaluate(
    options: TrainOptions,
    folder: Path,
    progress: Progress,
    model: ReferringModel,
    dataset: ReferringDataset,
    collate: Collate,
    device: torch.device,
    errors: ErrorCollector,
) -> Result:
    measure = partial(evaluate, model, collate=collate, device=device, num_workers=options.num_workers)
    evaluation = measure(dataset, labels=scene_labels(dataset), errors=errors)
    shuffled: Evaluation | None = None

    def write() -> None:
        content = {
            **evaluation.summary(),
            "shuffled": None if shuffled is None else shuffled.overall,
            "steps": progress.step,
            "best_step": progress.best_step,
            "training_seconds": round(progress.seconds, 1),
            "errors": errors.messages,
        }
        write_json(folder / EVALUATION, content)

    write()  # before the control, which may be interrupted
    if len(set(dataset.image_ids())) > 1:
        shuffled = measure(
            ShuffledExpressions(dataset),
            title="evaluate, expressions shuffled",
            errors=ErrorCollector(strict=options.strict),
        )
        write()
    overview = None
    if options.examples:
        results = evaluation.results
        chosen = [results[i].index for i in _evenly(len(results), options.examples)]
        overview = draw_or_warn(
            lambda: save_examples(
                predict_examples(model, [dataset[i] for i in chosen], collate, device), folder / EXAMPLES
            )
        )
    return Result(folder, progress, evaluation, shuffled, overview, errors.messages)


def _evenly(length: int, most: int) -> list[int]:
    """Up to `most` indices below `length`, evenly spaced."""
    most = min(length, most)
    return [(index * length) // most for index in range(most)]
