"""State of a training run: everything that a checkpoint holds, saved and restored together."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..data.types import ReferringDataset
from ..models.base import ReferringModel
from ..models.checkpoint import ModelConfig
from ..models.registry import model_options
from ..system.files import write_atomically
from .optimization import build_average, build_optimizer
from .recipe import Recipe

STATE = "checkpoint.pt"


@dataclass(eq=False)
class TrainingState:
    """Model, optimiser and progress of a training run."""

    model: ReferringModel  # the model that is trained
    optimizer: torch.optim.Optimizer  # its optimiser
    schedule: torch.optim.lr_scheduler.LRScheduler  # its learning-rate schedule
    average: AveragedModel | None  # the moving average of the model's weights, or None
    # Model configuration and size of the data set, which a restored checkpoint must have too.
    fingerprint: dict[str, Any]
    step: int = 0  # steps taken
    seconds: float = 0.0  # wall time of the training, validation included, over all starts
    losses: list[float] = field(default_factory=list)  # losses since the last line of metrics
    ious: list[float] = field(default_factory=list)  # IoU of the training batches since the last line of metrics
    validated: int = 0  # step of the last validation; 0: none yet
    best: tuple[int, float] | None = None  # step and overall IoU of the best validation; None: none yet

    @classmethod
    def start(cls, model: ReferringModel, recipe: Recipe, config: ModelConfig, dataset: ReferringDataset) -> Self:
        """The state before the first step."""
        optimizer, schedule = build_optimizer(model, recipe)
        # The backend is left out: all backends compute the same.
        options = {name: value for name, value in config.options.items() if name != "backend"}
        fingerprint = {**vars(config), "options": options, "sentences": len(dataset)}
        return cls(model, optimizer, schedule, build_average(model, recipe), fingerprint)

    @property
    def inference_model(self) -> nn.Module:
        """The model that is evaluated and saved: the average where there is one."""
        return self.model if self.average is None else self.average.module

    def add(self, loss: Tensor, iou: Tensor) -> None:
        """Add the loss and the IoU of a step to the next line of metrics."""
        self.losses.append(float(loss))
        self.ious.append(float(iou))

    def means(self) -> tuple[float, float]:
        """Mean loss and IoU since the last line of metrics."""
        return sum(self.losses) / len(self.losses), sum(self.ious) / len(self.ious)

    def save(self, path: Path) -> None:
        """Write the checkpoint atomically."""
        content = {
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "losses": self.losses,
            "ious": self.ious,
            "validated": self.validated,
            "best": self.best,
            "random": _random_state(),
            "data": self.fingerprint,
        }
        write_atomically(path, lambda target: torch.save(content, target))

    def restore(self, path: Path) -> None:
        """Load a checkpoint.

        Raises:
            FileNotFoundError: There is no checkpoint.
            ValueError: It is damaged, or was written by a run with another model, other data or another optimiser.
        """
        content = load_state(path)
        if not self._has_fingerprint(content.get("data")):
            raise ValueError(
                f"{path} was written with another model, vocabulary or number of expressions than this run "
                "has; a run must be resumed with the data it was started with."
            )
        try:
            groups = len(content["optimizer"]["param_groups"])
            if groups < len(self.optimizer.param_groups):
                raise ValueError(
                    "it was written by version 0.1, whose weight decay acted on all parameters; start anew"
                )
            self.model.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.schedule.load_state_dict(content["schedule"])
            if self.average is not None:
                self.average.load_state_dict(content["average"])
            self.losses, self.ious = list(content["losses"]), list(content["ious"])
            self.step, self.seconds = int(content["step"]), float(content["seconds"])
            # Version 0.1 had neither validation nor random states.
            self.validated, self.best = content.get("validated", 0), content.get("best")
            _restore_random_state(content.get("random", []))
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{path} does not fit this run: {error}") from error

    def _has_fingerprint(self, stored: Any) -> bool:
        """Compare fingerprints; an option that the model gained later had its default value."""
        if not isinstance(stored, dict) or not isinstance(stored.get("options"), dict):
            return False
        known = model_options(self.fingerprint["name"])
        defaults = {name: parameter.default for name, parameter in known.items()}
        old, new = ({**one, "options": defaults | one["options"]} for one in (stored, self.fingerprint))
        return old == new


def _random_state() -> list[Tensor]:
    """States of the global generators, of the CPU and of the CUDA devices; dropout draws from them."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return [torch.get_rng_state(), *cuda]


def _restore_random_state(states: list[Tensor]) -> None:
    if states:
        torch.set_rng_state(states[0])
    if torch.cuda.is_available() and len(states) == 1 + torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states[1:])


def load_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint without executing code from the file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or was not written by this library.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint to resume from: {path} does not exist.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # PyTorch's message is a page long and recommends to load the file unsafely.
        raise ValueError(
            f"{path} is not a readable checkpoint: it is damaged, or holds more than tensors and plain "
            f"containers ({type(error).__name__})."
        ) from error
    if not isinstance(content, dict) or "step" not in content:
        raise ValueError(f"{path} is not a checkpoint of this library.")
    return content
