"""The training loop: batches, steps, metrics, validation and checkpoints."""

import json
import logging
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data.batch import Batch, Collate
from ..data.errors import ErrorCollector
from ..data.loader import BatchLoader
from ..data.sampler import ImageBatchSampler, StepBatches
from ..data.types import ReferringDataset
from ..models.base import ReferringModel
from ..models.checkpoint import WEIGHTS, ModelConfig, load_model, save_model, write_config
from ..nn import dice_loss, segmentation_loss
from ..system.files import write_atomically
from ..system.processes import interrupts_deferred
from .recipe import Recipe
from .state import STATE, TrainingState

METRICS = "metrics.jsonl"
LAST = "last.safetensors"
Validate = Callable[[nn.Module], Mapping[str, float]]
_LOG_EVERY = 10
_DIVERGED = "a lower learning_rate or longer warmup_steps usually helps. No file contains this step."
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """Where training ended."""

    step: int  # steps taken
    seconds: float  # wall time of the training, validation included, over all starts
    # Step of the best validation, whose weights were kept; None: there was no validation.
    best_step: int | None = None


def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, dice_weight: float
) -> tuple[Tensor, Tensor]:
    """One forward pass, backward pass and update.

    Returns:
        The loss and the overall IoU of the batch, as scalars on the device of the model.

    Raises:
        FloatingPointError: The loss or a gradient is not finite; the parameters are unchanged.
    """
    logits = model(batch.images, batch.words, batch.word_mask, batch.image_index)
    loss = segmentation_loss(logits, batch.masks, batch.ignore)
    if dice_weight:
        loss = loss + dice_weight * dice_loss(logits, batch.masks, batch.ignore)
    if not torch.isfinite(loss):
        raise FloatingPointError(f"The loss became {loss.item()}; {_DIVERGED}")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not torch.isfinite(nn.utils.get_total_norm(gradients)):
        raise FloatingPointError(f"The gradient is not finite; {_DIVERGED}")
    optimizer.step()
    with torch.no_grad():
        predicted, true = logits[:, 0] > 0, batch.masks
        if batch.ignore is not None:
            predicted, true = predicted & ~batch.ignore, true & ~batch.ignore
        iou = (predicted & true).sum() / (predicted | true).sum().clamp_min(1)
    return loss.detach(), iou


def train(
    model: ReferringModel,
    model_config: ModelConfig,
    dataset: ReferringDataset,
    collate: Collate,
    recipe: Recipe,
    folder: Path,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    checkpoint_every: int = 200,
    validate: Validate | None = None,
    resume: bool = False,
    errors: ErrorCollector | None = None,
) -> Progress:
    """Train a model in place and keep its weights, checkpoints and metrics in a folder.

    Args:
        model: On `device`; afterwards it holds the weights of model.safetensors: those of the best validation, or
            without validation the last ones; with `recipe.ema_decay` their moving average.
        model_config: Configuration the model was built from, stored with its weights.
        dataset: The training split.
        collate: Has the vocabulary and input size of the model.
        recipe: Batch, steps, optimiser, schedule and loss.
        folder: Existing folder for the model (see `models.checkpoint`), checkpoint.pt and metrics.jsonl. Each line
            of metrics is a JSON object: step, loss, iou, learning_rate and seconds, where loss and iou are means
            since the line before; or step, validation and seconds. With validation, the last weights are in
            last.safetensors.
        seed: Seed of the order of images and the choice of expressions.
        device: Device of the model.
        num_workers: Processes that read or draw images.
        checkpoint_every: Steps between checkpoints.
        validate: Called every `recipe.validate_every` steps with the model to evaluate; returns its metrics, among
            them overall_iou, by which the best weights are chosen. None: no validation.
        resume: Continue from the checkpoint in the folder; the result is the same as without a break.
        errors: Collects expressions whose image or mask cannot be used; a step without a usable one changes
            nothing. None: the first one is raised.

    Returns:
        Where training ended.

    Raises:
        FloatingPointError: The loss or a gradient is not finite; checkpoint and weights are unchanged.
        FileNotFoundError, ValueError: There is no checkpoint to resume from, or it does not fit.
        ValueError: No expression can be used, in two passes over the data or in the whole training.
        KeyboardInterrupt: Ctrl-C, after the current step; a checkpoint was written.
    """
    on_cuda = torch.device(device).type == "cuda"
    state = TrainingState.start(model, recipe, model_config, dataset)
    if resume:
        state.restore(folder / STATE)
        _truncate_metrics(folder / METRICS, state)
    write_config(folder, model_config)

    def save() -> None:
        state.save(folder / STATE)
        target = WEIGHTS if state.best is None else LAST
        save_model(folder / target, state.inference_model, model_config)

    def validate_if_due(lines: TextIO) -> bool:
        """Keep the weights if they are the best so far; return whether a validation was due."""
        if validate is None or not _validation_due(state, recipe):
            return False
        # Training continues with the same random numbers as without validation.
        with torch.random.fork_rng(devices=[device] if on_cuda else []):
            metrics = dict(validate(state.inference_model))
        with interrupts_deferred():
            state.validated = state.step
            _write_line(lines, step=state.step, validation=metrics, seconds=elapsed())
            if state.best is None or metrics["overall_iou"] >= state.best[1]:
                state.best = (state.step, metrics["overall_iou"])
                save_model(folder / WEIGHTS, state.inference_model, model_config)
        return True

    sampler = ImageBatchSampler(
        dataset.image_ids(), recipe.images_per_step, recipe.expressions_per_image, seed=seed
    )
    loader = BatchLoader(
        dataset,
        StepBatches(sampler, state.step, recipe.steps),
        collate,
        num_workers=num_workers,
        pin_memory=on_cuda,
        errors=errors,
    )
    model.train()
    bar = tqdm(total=recipe.steps, initial=state.step, desc="train", unit="step", dynamic_ncols=True)
    started = time.perf_counter() - state.seconds

    def elapsed() -> float:
        return time.perf_counter() - started

    unusable = 0  # consecutive steps without a usable expression
    try:
        with bar, (folder / METRICS).open("a", encoding="utf-8") as lines:
            if validate_if_due(lines):  # Ctrl-C may have stopped the validation of the last step
                save()
            for _, batch in loader:
                unusable = unusable + 1 if batch is None else 0
                if unusable in (2 * len(sampler), recipe.steps):
                    raise ValueError(
                        f"None of the expressions of {unusable} consecutive steps could be used: check the "
                        "images of the training split."
                    )
                with interrupts_deferred():
                    rate = state.schedule.get_last_lr()[-1]
                    if batch is not None:
                        moved = batch.to(device)
                        state.add(*training_step(model, state.optimizer, moved, recipe.dice_weight))
                        if state.average is not None:
                            state.average.update_parameters(model)
                    with warnings.catch_warnings():
                        # Raised if the first step had no usable expression, hence no optimizer.step().
                        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
                        state.schedule.step()
                    state.step, state.seconds = state.step + 1, elapsed()
                    bar.update()
                    if state.losses:
                        loss, iou = state.means()
                        bar.set_postfix(_postfix(loss, iou, state), refresh=False)
                        if state.step % _LOG_EVERY == 0 or state.step == recipe.steps:
                            _write_line(
                                lines,
                                step=state.step,
                                loss=round(loss, 6),
                                iou=round(iou, 6),
                                learning_rate=rate,
                                seconds=state.seconds,
                            )
                            state.losses.clear()
                            state.ious.clear()
                validated = validate_if_due(lines)
                if validated or state.step % checkpoint_every == 0 or state.step == recipe.steps:
                    with interrupts_deferred():
                        save()
    except KeyboardInterrupt:
        save()
        _logger.warning(
            "Stopped at step %d of %d; --run-dir %s --resume continues.", state.step, recipe.steps, folder
        )
        raise
    if state.inference_model is not model or state.best is not None:
        model.load_state_dict(load_model(folder / WEIGHTS)[0].state_dict())
    return Progress(state.step, state.seconds, state.best[0] if state.best else None)


def _validation_due(state: TrainingState, recipe: Recipe) -> bool:
    if not recipe.validate_every or state.step in (0, state.validated):
        return False
    # After the last step only if there is an earlier one to compare it with.
    last = state.step == recipe.steps and state.best is not None
    return last or state.step % recipe.validate_every == 0


def _postfix(loss: float, iou: float, state: TrainingState) -> dict[str, str]:
    shown = {"loss": f"{loss:.3f}", "IoU": f"{iou:.3f}"}
    return shown if state.best is None else {**shown, "best": f"{state.best[1]:.3f}"}


def _write_line(lines: TextIO, *, seconds: float, **values: object) -> None:
    lines.write(json.dumps({**values, "seconds": round(seconds, 3)}) + "\n")
    lines.flush()


def _truncate_metrics(path: Path, state: TrainingState) -> None:
    """Remove the lines of steps and validations that training is going to repeat."""
    if not path.is_file():
        return
    try:
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            if not line.endswith("\n"):
                continue  # cut off when the run was killed
            row = json.loads(line)
            if row["step"] <= (state.validated if "validation" in row else state.step):
                kept.append(line)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} must hold a JSON object with a step on every line, but it is damaged: {error}"
        ) from error
    text = "".join(kept)
    write_atomically(path, lambda target: target.write_text(text, encoding="utf-8"))
