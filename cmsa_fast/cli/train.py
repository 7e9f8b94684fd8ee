"""The main job: data, model, training, evaluation and images, in that order."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from ..data.batch import Collate
from ..data.dataset import ShuffledExpressions, open_split
from ..data.errors import ErrorCollector
from ..data.exclusions import read_exclusions
from ..data.scenes.dataset import MOST_EXPRESSIONS, WORDS, ScenesDataset
from ..data.types import ReferringDataset
from ..data.vocabulary import Vocabulary, tokenize
from ..evaluation.evaluate import Evaluation, evaluate
from ..evaluation.examples import drawn_or_warned, examples_of
from ..evaluation.visualization import save_examples
from ..models import build_model
from ..models.checkpoint import ModelConfig
from ..nn import WordEmbedding
from ..training.loop import Progress, train
from ..training.recipe import Recipe
from .run_folder import (
    EVALUATION,
    EXAMPLES,
    choose_folder,
    resumed_options,
    write_json,
    write_options,
)
from .train_options import TrainOptions

_logger = logging.getLogger(__name__)

# Unseen scenes are the same for every seed of a training, so that runs can be compared.
_EVALUATION_SEED = 0
_EVALUATION_EXPRESSIONS = 2
WORD_ORDER = "relation, word order decides"
NO_WORD_ORDER = "relation, any word order"


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        folder: of the run.
        progress: steps and seconds of training.
        evaluation: on the evaluation split.
        shuffled: the same with the expressions shuffled among the images; None where there is one image only.
        overview: the sheet of example images; None where none were asked for.
        problems: one line for each record or image that could not be used.
    """

    folder: Path
    progress: Progress
    evaluation: Evaluation
    shuffled: Evaluation | None
    overview: Path | None
    errors: list[str] = field(default_factory=list)


def run_training(options: TrainOptions) -> Result:
    """Train, evaluate and draw, as `cmsa-fast train` does.

    Data and model are built, and with them most mistakes found, before anything is written.

    Raises:
        FileExistsError: the run folder already holds something.
        FileNotFoundError: data, weights or a checkpoint are not there.
        ValueError: an option is out of range or data are damaged.
        FloatingPointError: training diverged.
    """
    if options.resume:
        options = resumed_options(options)
        folder = options.run_dir or Path()
    else:
        folder = choose_folder(options)
    _check(options)
    device = chosen_device(options.device)
    recipe = options.recipe()

    torch.manual_seed(options.seed)
    errors = ErrorCollector(strict=options.strict)
    training, validation = _datasets(options, recipe, errors)
    vocabulary = _vocabulary(options, training)
    model, config = _model(options, recipe, vocabulary)
    model.to(device)
    collate = Collate(vocabulary, recipe.size, recipe.max_words)
    if options.data != "scenes":
        _log_words("training", training.expressions(), vocabulary, recipe.max_words)
        _log_words("evaluation", validation.expressions(), vocabulary, recipe.max_words)
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
        resume=options.resume,
        errors=errors,
    )
    return _evaluate(options, folder, progress, model, validation, collate, device, errors)


def _check(options: TrainOptions) -> None:
    recipe = options.recipe()
    options.check_data()
    for name, least in {
        "seed": 0,
        "num_workers": 0,
        "examples": 0,
        "checkpoint_every": 1,
        "evaluate_scenes": 2,
    }.items():
        if getattr(options, name) < least:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} must be at least {least}; got {getattr(options, name)}.")
    if options.seed >= 2**63:
        raise ValueError(f"--seed must be below 2**63; got {options.seed}.")
    if options.data == "scenes" and options.exclude is not None:
        raise ValueError("--exclude goes with --data refer and the other forms that are folders.")
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


def chosen_device(name: str) -> torch.device:
    """The device that --device names.

    Raises:
        ValueError: it cannot be used here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used here: {error}") from error
    return device


def _datasets(
    options: TrainOptions, recipe: Recipe, errors: ErrorCollector
) -> tuple[ReferringDataset, ReferringDataset]:
    if options.data == "scenes":
        training = ScenesDataset(
            recipe.steps * recipe.images_per_step,  # no scene is seen twice
            seed=options.seed,
            split="train",
            size=recipe.size,
            expressions_per_scene=recipe.expressions_per_image,
        )
        return training, unseen_scenes(options.evaluate_scenes, recipe.size)
    source = options.source()
    exclude = None if options.exclude is None else read_exclusions(options.exclude)
    return (
        open_split(source, options.train_split, for_training=True, exclude=exclude, errors=errors),
        open_split(source, options.evaluate_split, errors=errors),
    )


def unseen_scenes(count: int, size: int) -> ScenesDataset:
    """The scenes that every run on scenes is evaluated on, whatever its seed."""
    return ScenesDataset(
        count,
        seed=_EVALUATION_SEED,
        split="val",
        size=size,
        expressions_per_scene=_EVALUATION_EXPRESSIONS,
    )


def _vocabulary(options: TrainOptions, training: ReferringDataset) -> Vocabulary:
    if options.vocabulary is not None:
        return Vocabulary.from_file(options.vocabulary)
    if options.data == "scenes":
        return Vocabulary.from_expressions(WORDS)
    return Vocabulary.from_expressions(training.expressions())


def _log_words(split: str, expressions: list[str], vocabulary: Vocabulary, most: int) -> None:
    """Say beforehand what the model will not read; counts made by workers stay in the workers."""
    known = set(vocabulary.tokens)
    tokenized = [tokenize(expression) for expression in expressions]
    cut = sum(len(tokens) > most for tokens in tokenized)
    unknown = sum(token not in known for tokens in tokenized for token in tokens[:most])
    if cut:
        _logger.warning(
            "%d of %d %s expressions are longer than %d words and are cut",
            cut,
            len(expressions),
            split,
            most,
        )
    if unknown:
        _logger.warning("%d words of %s expressions are not in the vocabulary", unknown, split)


def _model(
    options: TrainOptions, recipe: Recipe, vocabulary: Vocabulary
) -> tuple[nn.Module, ModelConfig]:
    table = None
    if options.glove is not None:
        table = WordEmbedding.from_glove(options.glove, vocabulary.tokens)
    model_options = {
        "vocabulary_size": len(vocabulary),
        "backbone": recipe.backbone,
        "word_channels": recipe.word_channels if table is None else table.embedding_dim,
        "attention_channels": recipe.attention_channels,
        "fused_channels": recipe.fused_channels,
        "backend": options.backend,
    }
    # A run that goes on takes its backbone from the checkpoint.
    fresh = recipe.backbone_weights != "none" and not options.resume
    weights = recipe.backbone_weights if fresh else None
    model = build_model(options.model, **model_options, backbone_weights=weights)
    if table is not None:
        model.words = table
    config = ModelConfig(
        options.model, model_options, vocabulary.tokens, recipe.size, recipe.max_words
    )
    return model, config


def _evaluate(
    options: TrainOptions,
    folder: Path,
    progress: Progress,
    model: nn.Module,
    validation: ReferringDataset,
    collate: Collate,
    device: torch.device,
    errors: ErrorCollector,
) -> Result:
    evaluation = evaluate(
        model,
        validation,
        collate,
        labels=scene_labels(validation),
        device=device,
        num_workers=options.num_workers,
        errors=errors,
    )
    shuffled: Evaluation | None = None

    def write() -> None:
        content = {
            **evaluation.summary(),
            "shuffled": None if shuffled is None else shuffled.overall,
            "steps": progress.step,
            "training_seconds": round(progress.seconds, 1),
            "problems": errors.messages,
        }
        write_json(folder / EVALUATION, content)

    write()  # what is found does not wait for the second half
    if len(set(validation.image_ids())) > 1:
        shuffled = evaluate(
            model,
            ShuffledExpressions(validation),
            collate,
            device=device,
            num_workers=options.num_workers,
            title="evaluate, expressions shuffled",
            errors=ErrorCollector(strict=options.strict),
        )
        write()
    overview = None
    if options.examples:
        chosen = _spread([result.index for result in evaluation.results], options.examples)
        overview = drawn_or_warned(
            lambda: save_examples(
                examples_of(model, [validation[i] for i in chosen], collate, device),
                folder / EXAMPLES,
            )
        )
    return Result(folder, progress, evaluation, shuffled, overview, errors.messages)


def scene_labels(dataset: ReferringDataset) -> list[list[str]] | None:
    """Kinds of the scenes' expressions; relations also by whether a bag of words says which object is meant."""
    if not isinstance(dataset, ScenesDataset):
        return None
    labels = [[kind] for kind in dataset.kinds()]
    for index, kinds in enumerate(labels):
        if kinds == ["relation"]:
            kinds.append(WORD_ORDER if dataset.order_sensitive(index) else NO_WORD_ORDER)
    return labels


def _spread(places: Sequence[int], most: int) -> list[int]:
    """Up to `most` of them, evenly apart."""
    most = min(len(places), most)
    return [places[(index * len(places)) // most] for index in range(most)]
