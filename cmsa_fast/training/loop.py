"""The training loop: batches by step, optimiser, schedule, checkpoints that go on to the bit."""

import json
import logging
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from tqdm import tqdm

from ..data.batch import Batch, Collate, ImageBatchSampler
from ..data.errors import ErrorCollector
from ..data.loader import BatchLoader
from ..data.types import ReferringDataset
from ..models.checkpoint import (
    STATE,
    WEIGHTS,
    ModelConfig,
    load_state,
    save_model,
    save_state,
    write_atomically,
)
from ..nn import dice_loss, segmentation_loss
from ..system.interrupts import interrupts_wait
from .recipe import Recipe

METRICS = "metrics.jsonl"
_LOG_EVERY = 10
_DIVERGED = "a lower learning_rate or longer warmup_steps usually helps. No file holds this step."
_logger = logging.getLogger(__name__)


class StepBatches(Sampler[list[int]]):
    """The batches of steps `start` to `steps`, epoch after epoch, the same whatever `start` is.

    One pass is the whole training, so workers of a loader live as long as it does.
    """

    def __init__(self, sampler: ImageBatchSampler, start: int, steps: int) -> None:
        super().__init__()
        self.sampler = sampler
        self.start = start
        self.steps = steps

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[int]]:
        epoch, skip = divmod(self.start, len(self.sampler))
        left = len(self)
        while left:
            self.sampler.set_epoch(epoch)
            batches = list(self.sampler)[skip : skip + left]
            yield from batches
            left -= len(batches)
            epoch, skip = epoch + 1, 0


@dataclass(frozen=True)
class Progress:
    """Where training stands.

    Attributes:
        step: steps taken.
        seconds: time spent in them, over all starts.
    """

    step: int
    seconds: float


def learning_rate_factor(step: int, recipe: Recipe) -> float:
    """What the learning rate is multiplied by at a step: a linear rise, then (1 - progress) ** power."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return float((1 - min(progress, 1.0)) ** recipe.power)


def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, dice_weight: float
) -> tuple[Tensor, Tensor]:
    """One forward, backward and update.

    Returns:
        The loss, and the batch's overall IoU, as scalars on the model's device.

    Raises:
        FloatingPointError: the loss or a gradient is not finite; the parameters are left as they were.
    """
    logits = model(batch.images, batch.words, batch.word_mask, batch.image_index)
    loss = segmentation_loss(logits, batch.masks)
    if dice_weight:
        loss = loss + dice_weight * dice_loss(logits, batch.masks)
    if not torch.isfinite(loss):
        raise FloatingPointError(f"The loss became {loss.item()}; {_DIVERGED}")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    gradients = [one.grad for one in model.parameters() if one.grad is not None]
    if not torch.isfinite(nn.utils.get_total_norm(gradients)):
        raise FloatingPointError(f"The gradient is not finite; {_DIVERGED}")
    optimizer.step()
    with torch.no_grad():
        found = logits[:, 0] > 0
        union = (found | batch.masks).sum()
        iou = (found & batch.masks).sum() / union.clamp_min(1)
    return loss.detach(), iou


def train(
    model: nn.Module,
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
    resume: bool = False,
    errors: ErrorCollector | None = None,
) -> Progress:
    """Train a model in place and keep its weights, checkpoint and metrics in a folder.

    Args:
        model: on `device`; see `cmsa_fast.models.ReferringModel`.
        model_config: what the model was built from, kept with its weights.
        dataset: the training split.
        collate: with the model's vocabulary and size.
        recipe: batch, steps, learning rate and loss.
        folder: exists; gets model.safetensors, checkpoint.pt and metrics.jsonl (a JSON object a line: step, loss,
            iou, learning_rate, seconds; loss and iou are means since the line before).
        seed: of the order of images and the choice of expressions.
        device: where the model is.
        num_workers: processes that read or draw images.
        checkpoint_every: steps between checkpoints.
        resume: go on from the folder's checkpoint, to the same result as without a break.
        problems: takes expressions whose image or mask cannot be used; a step without any usable one changes
            nothing. None: the first one is an error.

    Returns:
        Where training ended.

    Raises:
        FloatingPointError: the loss or a gradient is not finite; checkpoint and weights stay as they were.
        FileNotFoundError, ValueError: there is no checkpoint to resume from, or it does not fit.
        ValueError: no expression can be used, in two passes over the data or in the whole training.
        KeyboardInterrupt: Ctrl-C, after the step under way; a checkpoint was written.
    """
    optimizer = torch.optim.Adam(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, recipe)
    )
    window = _Window()
    done = Progress(0, 0.0)
    if resume:
        state = load_state(folder / STATE)
        if state.get("data") != _fingerprint(model_config, dataset):
            raise ValueError(
                f"{folder / STATE} was made with another model, vocabulary or number of expressions than this "
                "run has; a run goes on with the data it was started with."
            )
        done = _restore(folder / STATE, state, model, optimizer, schedule, window)
        _keep_lines_until(folder / METRICS, done.step)

    def keep(progress: Progress) -> None:
        state = {
            "step": progress.step,
            "seconds": progress.seconds,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "losses": window.losses,
            "ious": window.ious,
            "data": _fingerprint(model_config, dataset),
        }
        save_state(folder / STATE, state)
        save_model(folder / WEIGHTS, model, model_config)

    sampler = ImageBatchSampler(
        dataset.image_ids(), recipe.images_per_step, recipe.expressions_per_image, seed=seed
    )
    loader = BatchLoader(
        dataset,
        StepBatches(sampler, done.step, recipe.steps),
        collate,
        num_workers=num_workers,
        pin_memory=torch.device(device).type == "cuda",
        errors=errors,
    )
    model.train()
    bar = tqdm(total=recipe.steps, initial=done.step, desc="train", unit="step", dynamic_ncols=True)
    started = time.perf_counter() - done.seconds
    unusable = 0  # steps in a row
    try:
        with bar, (folder / METRICS).open("a", encoding="utf-8") as lines:
            for batch in loader:
                unusable = unusable + 1 if batch is None else 0
                if unusable in (2 * len(sampler), recipe.steps):
                    raise ValueError(
                        f"No expression of {unusable} steps in a row could be used: look at the images of "
                        "the training split."
                    )
                with interrupts_wait():
                    rate = schedule.get_last_lr()[0]
                    if batch is not None:
                        window.add(
                            *training_step(model, optimizer, batch.to(device), recipe.dice_weight)
                        )
                    with warnings.catch_warnings():
                        # Said where the first step had no expression and so no optimizer.step().
                        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
                        schedule.step()
                    done = Progress(done.step + 1, time.perf_counter() - started)
                    bar.update()
                    if window.losses:
                        loss, iou = window.means()
                        bar.set_postfix({"loss": f"{loss:.3f}", "IoU": f"{iou:.3f}"}, refresh=False)
                    if window.losses and (done.step % _LOG_EVERY == 0 or done.step == recipe.steps):
                        row = {
                            "step": done.step,
                            "loss": round(loss, 6),
                            "iou": round(iou, 6),
                            "learning_rate": rate,
                            "seconds": round(done.seconds, 3),
                        }
                        window.clear()
                        lines.write(json.dumps(row) + "\n")
                        lines.flush()
                    if done.step % checkpoint_every == 0 or done.step == recipe.steps:
                        keep(done)
    except KeyboardInterrupt:
        keep(done)
        _logger.warning(
            "Stopped at step %d of %d; --run-dir %s --resume goes on.",
            done.step,
            recipe.steps,
            folder,
        )
        raise
    return done


@dataclass
class _Window:
    """Loss and IoU of the steps since the last line of metrics."""

    losses: list[float] = field(default_factory=list)
    ious: list[float] = field(default_factory=list)

    def add(self, loss: Tensor, iou: Tensor) -> None:
        self.losses.append(float(loss))
        self.ious.append(float(iou))

    def means(self) -> tuple[float, float]:
        return sum(self.losses) / len(self.losses), sum(self.ious) / len(self.ious)

    def clear(self) -> None:
        self.losses.clear()
        self.ious.clear()


def _fingerprint(config: ModelConfig, dataset: ReferringDataset) -> dict[str, Any]:
    """What must not change when a run goes on. The backend may: it computes the same."""
    options = {name: value for name, value in config.options.items() if name != "backend"}
    return {**vars(config), "options": options, "sentences": len(dataset)}


def _restore(
    path: Path,
    state: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    window: _Window,
) -> Progress:
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        window.losses, window.ious = list(state["losses"]), list(state["ious"])
        return Progress(int(state["step"]), float(state["seconds"]))
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not fit this model: {error}") from error


def _keep_lines_until(path: Path, step: int) -> None:
    """Drop metrics of steps after the checkpoint, which training takes again."""
    if not path.is_file():
        return
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        # A line without its end was cut off by whatever ended the run.
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} must hold a JSON object with a step on every line, but it is damaged: {error}"
        ) from error
    text = "".join(kept)
    write_atomically(path, lambda target: target.write_text(text, encoding="utf-8"))
