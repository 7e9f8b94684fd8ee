"""The main job: data, model, training, evaluation and pictures, in that order."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .checkpoint import ModelConfig
from .config import Recipe, TrainOptions
from .data.batch import Batch, Collate
from .data.refer import ReferDataset
from .data.sample import ReferringDataset
from .data.scenes import MOST_SENTENCES, WORDS, ScenesDataset
from .data.shuffled import ShuffledSentences
from .data.vocabulary import Vocabulary, tokenize
from .evaluation import Evaluation, evaluate
from .inference import predict_batch
from .models import ExplainsWords, build_model
from .nn import WordTable
from .plots import Example, save_examples
from .run_folder import (
    EVALUATION,
    PICTURES,
    choose_folder,
    resumed_options,
    write_json,
    write_options,
)
from .training import Progress, train

_LOG = logging.getLogger(__name__)

# Unseen scenes are the same for every seed of a training, so that runs can be compared.
_EVALUATION_SEED = 0
_EVALUATION_SENTENCES = 2
WORD_ORDER = "relation, word order decides"
NO_WORD_ORDER = "relation, any word order"


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        folder: of the run.
        progress: steps and seconds of training.
        evaluation: on the evaluation split.
        shuffled: the same with the sentences shuffled among the pictures; None where there is one picture only.
        overview: the sheet of example pictures; None where none were asked for.
    """

    folder: Path
    progress: Progress
    evaluation: Evaluation
    shuffled: Evaluation | None
    overview: Path | None


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
    device = _device(options.device)
    recipe = options.recipe()

    torch.manual_seed(options.seed)
    training, validation = _datasets(options, recipe)
    vocabulary = _vocabulary(options, training)
    model, config = _model(options, recipe, vocabulary)
    model.to(device)
    collate = Collate(vocabulary, recipe.size, recipe.max_words)
    if options.data == "refer":
        _log_words("training", training.sentences(), vocabulary, recipe.max_words)
        _log_words("evaluation", validation.sentences(), vocabulary, recipe.max_words)
    _LOG.info(
        "%d training sentences, %d words, %.2f M parameters, on %s; run folder %s",
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
    )
    return _evaluate(options, folder, progress, model, validation, collate, device)


def _check(options: TrainOptions) -> None:
    recipe = options.recipe()
    if options.data == "refer" and options.root is None:
        raise ValueError("--data refer needs --root, the folder with the data set and its images.")
    if options.data == "scenes" and options.root is not None:
        raise ValueError("--root goes with --data refer; --data scenes draws its pictures itself.")
    for name, least in {
        "seed": 0,
        "num_workers": 0,
        "pictures": 0,
        "checkpoint_every": 1,
        "evaluate_scenes": 2,
    }.items():
        if getattr(options, name) < least:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} must be at least {least}; got {getattr(options, name)}.")
    if options.seed >= 2**63:
        raise ValueError(f"--seed must be below 2**63; got {options.seed}.")
    if options.data == "scenes" and recipe.sentences_per_picture > MOST_SENTENCES:
        raise ValueError(
            f"--sentences-per-picture must be at most {MOST_SENTENCES} with --data scenes; "
            f"got {recipe.sentences_per_picture}."
        )
    if recipe.warmup_steps >= recipe.steps:
        _LOG.warning(
            "The learning rate only rises: --warmup-steps %d is not less than --steps %d.",
            recipe.warmup_steps,
            recipe.steps,
        )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used here: {error}") from error
    return device


def _datasets(options: TrainOptions, recipe: Recipe) -> tuple[ReferringDataset, ReferringDataset]:
    if options.data == "scenes":
        training = ScenesDataset(
            recipe.steps * recipe.pictures_per_step,  # no scene is seen twice
            seed=options.seed,
            split="train",
            size=recipe.size,
            sentences_per_scene=recipe.sentences_per_picture,
        )
        validation = ScenesDataset(
            options.evaluate_scenes,
            seed=_EVALUATION_SEED,
            split="val",
            size=recipe.size,
            sentences_per_scene=_EVALUATION_SENTENCES,
        )
        return training, validation
    root = options.root or Path()
    return (
        ReferDataset(root, options.name, options.split_by, options.train_split),
        ReferDataset(root, options.name, options.split_by, options.evaluate_split),
    )


def _vocabulary(options: TrainOptions, training: ReferringDataset) -> Vocabulary:
    if options.vocabulary is not None:
        return Vocabulary.from_file(options.vocabulary)
    if options.data == "scenes":
        return Vocabulary.from_sentences(WORDS)
    return Vocabulary.from_sentences(training.sentences())


def _log_words(split: str, sentences: list[str], vocabulary: Vocabulary, most: int) -> None:
    """Say beforehand what the model will not read; counts made by workers stay in the workers."""
    known = set(vocabulary.tokens)
    tokenized = [tokenize(sentence) for sentence in sentences]
    cut = sum(len(tokens) > most for tokens in tokenized)
    unknown = sum(token not in known for tokens in tokenized for token in tokens[:most])
    if cut:
        _LOG.warning(
            "%d of %d %s sentences are longer than %d words and are cut",
            cut,
            len(sentences),
            split,
            most,
        )
    if unknown:
        _LOG.warning("%d words of %s sentences are not in the vocabulary", unknown, split)


def _model(
    options: TrainOptions, recipe: Recipe, vocabulary: Vocabulary
) -> tuple[nn.Module, ModelConfig]:
    table = None
    if options.glove is not None:
        table = WordTable.from_glove(options.glove, vocabulary.tokens)
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
) -> Result:
    evaluation = evaluate(
        model,
        validation,
        collate,
        labels=_labels(validation),
        device=device,
        num_workers=options.num_workers,
    )
    shuffled = None
    if len(set(validation.image_ids())) > 1:
        shuffled = evaluate(
            model,
            ShuffledSentences(validation),
            collate,
            device=device,
            num_workers=options.num_workers,
            title="evaluate, sentences shuffled",
        )
    write_json(
        folder / EVALUATION,
        {
            **evaluation.summary(),
            "shuffled": None if shuffled is None else shuffled.overall,
            "steps": progress.step,
            "training_seconds": round(progress.seconds, 1),
        },
    )
    overview = None
    if options.pictures:
        chosen = _spread(len(validation), options.pictures)
        examples = _examples(model, [validation[i] for i in chosen], collate, device)
        overview = save_examples(examples, folder / PICTURES)
    return Result(folder, progress, evaluation, shuffled, overview)


def _labels(dataset: ReferringDataset) -> list[list[str]] | None:
    """Kinds of the scenes' sentences; relations also by whether a bag of words says which object is meant."""
    if not isinstance(dataset, ScenesDataset):
        return None
    labels = [[kind] for kind in dataset.kinds()]
    for index, kinds in enumerate(labels):
        if kinds == ["relation"]:
            kinds.append(WORD_ORDER if dataset.order_sensitive(index) else NO_WORD_ORDER)
    return labels


def _spread(count: int, most: int) -> list[int]:
    """Up to `most` indices below `count`, evenly apart."""
    most = min(count, most)
    return [(index * count) // most for index in range(most)]


@torch.no_grad()
def _examples(
    model: nn.Module, samples: Sequence, collate: Collate, device: torch.device
) -> list[Example]:
    model.eval()
    examples = []
    for sample in samples:
        batch: Batch = collate([sample])
        (prediction,) = predict_batch(model, batch, device)
        moved = batch.to(device)
        attention = None
        if isinstance(model, ExplainsWords):
            features = model.encode_image(moved.images)
            attention = model.word_attention(features, moved.words, moved.word_mask)[0].cpu()
        tokens = [collate.vocabulary.tokens[word] for word in batch.words[0].tolist()]
        examples.append(
            Example(sample.image, sample.mask, prediction, sample.sentence, tokens, attention)
        )
    return examples
