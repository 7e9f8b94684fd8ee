"""Evaluation of a model on a data set."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.batch import Collate
from ..data.errors import ErrorCollector
from ..data.loader import BatchLoader
from ..data.sampler import ImageBatchSampler
from ..data.types import ReferringDataset, Sample
from ..models import for_inference
from ..models.base import ReferringModel
from ..system.processes import ALONE, Processes
from .conventions import Convention
from .inference import EXPRESSIONS_AT_ONCE, NATIVE, Refiner, group_by_image, predicted_mask, segment_batch
from .results import ExpressionResult, measure
from .score import Evaluation, score

_PENDING = 64  # expressions whose images are kept while a refiner works


def evaluate(
    model: ReferringModel,
    dataset: ReferringDataset,
    collate: Collate,
    *,
    convention: Convention = NATIVE,
    refiner: Refiner | None = None,
    labels: Sequence[Sequence[str]] | None = None,
    device: torch.device | str = "cpu",
    images_per_batch: int = 4,
    num_workers: int = 0,
    title: str = "evaluate",
    errors: ErrorCollector | None = None,
    processes: Processes = ALONE,
    keep: Callable[[ExpressionResult, Tensor], object] = lambda result, predicted: None,
) -> Evaluation:
    """Evaluate a model on every expression of a data set, each exactly once.

    The metrics are bitwise identical for any batch size and any number of processes: the model gets one image
    at a time, and the sums are of integers.

    Args:
        model: On `device`; it is left in the mode it was in.
        dataset: Any split.
        collate: With the model's vocabulary and size.
        convention: How predictions become masks, and masks metrics.
        refiner: Refines probabilities before the threshold.
        labels: For every expression the labels it is also counted under. None: its kind, if it has one.
        device: The model's device.
        images_per_batch: Images read at a time.
        num_workers: Processes that read images.
        title: Title of the progress bar.
        errors: Collects expressions whose image or mask cannot be used. None: the first one is raised.
        processes: The processes that share the work; each returns the whole result.
        keep: Called with each result of this process, and the predicted mask at the convention's size, as soon as
            they are computed.

    Raises:
        ValueError: `labels` does not have one entry for every expression, an item is damaged, or none is
            usable.
    """
    if labels is not None and len(labels) != len(dataset):
        raise ValueError(
            f"labels must have one entry for each of the {len(dataset)} expressions; got {len(labels)}."
        )
    errors = errors or ErrorCollector(strict=True)
    image_ids = dataset.image_ids()
    sampler = ImageBatchSampler(image_ids, images_per_batch, EXPRESSIONS_AT_ONCE, shuffle=False)
    batches = list(sampler)[processes.rank :: processes.count]
    # Over all expressions, so that an unusable one does not change the groups of the others.
    groups = group_by_image(image_ids)
    loader = BatchLoader(dataset, batches, collate, num_workers=num_workers, errors=errors)
    was_training = model.training
    model.eval()
    bar = tqdm(
        total=sum(map(len, batches)),
        desc=title,
        unit="expression",
        dynamic_ncols=True,
        leave=None,  # removed at the end if it is shown below the bar of a training
        disable=not processes.is_first,
    )
    own: list[ExpressionResult] = []
    pending: deque[tuple[int, Sample, Callable[[], Tensor]]] = deque()

    def finish(most_pending: int) -> None:
        while len(pending) > most_pending:
            index, sample, mask = pending.popleft()
            predicted = mask()
            own.append(measure(index, sample, predicted, convention))
            keep(own[-1], predicted)

    try:
        network = for_inference(model)
        with bar:
            for requested, (indices, batch) in zip(batches, loader, strict=True):
                bar.update(len(requested))
                if batch is None:
                    continue
                chosen = [groups[index] for index in indices]
                outputs = segment_batch(network, batch, device, chosen)
                rows = zip(indices, outputs, batch.letterboxes, batch.samples, strict=True)
                for index, output, letterbox, sample in rows:
                    mask = predicted_mask(output.probability, letterbox, sample, convention, refiner)
                    pending.append((index, sample, mask))
                finish(_PENDING if refiner else 0)
            finish(0)
    finally:
        model.train(was_training)
    results = [result for part in processes.gather(own) for result in part]
    results.sort(key=lambda result: result.index)
    if not results:
        raise ValueError(f"None of the {len(dataset)} expressions can be evaluated.")
    return score(results, dataset, convention, labels)
