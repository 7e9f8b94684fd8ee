"""How well a model finds what expressions name, at the images' own size or as others measure it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..data.batch import Collate
from ..data.errors import ErrorCollector
from ..data.loader import BatchLoader
from ..data.sampler import ImageBatchSampler
from ..data.types import ReferringDataset, Sample
from ..data.vocabulary import tokenize
from ..models import for_inference
from ..models.base import ReferringModel
from ..system.processes import ALONE, Processes
from .conventions import Convention
from .generalized_metrics import GeneralizedMetrics
from .inference import (
    EXPRESSIONS_AT_ONCE,
    NATIVE,
    Refiner,
    group_by_image,
    predict_probabilities,
    predicted_mask,
)
from .metrics import SegmentationMetrics
from .results import LENGTH_GROUPS, SIZE_GROUPS, ExpressionResult, length_group, size_group

_PENDING = 64  # expressions whose images are kept while a refiner works


@dataclass(frozen=True)
class Evaluation:
    """Metrics over all expressions, and over groups of them.

    Attributes:
        expressions: how many were evaluated.
        overall: see `SegmentationMetrics.compute`.
        by_kind: the same for each label that was given.
        counts: expressions of each label.
        by_length: the same for expressions of some numbers of words.
        by_size: the same for objects of some sizes.
        generalized: see `GeneralizedMetrics.compute`; None where every expression names something.
        convention: the name of the convention they were measured under.
        unusable: expressions left out because their image or mask cannot be used.
        results: every expression, in the data set's order.
    """

    expressions: int
    overall: dict[str, float]
    by_kind: dict[str, dict[str, float]]
    counts: dict[str, int]
    by_length: dict[str, dict[str, float]] = field(default_factory=dict)
    by_size: dict[str, dict[str, float]] = field(default_factory=dict)
    generalized: dict[str, float | None] | None = None
    convention: str = NATIVE.name
    unusable: int = 0
    results: list[ExpressionResult] = field(default_factory=list, repr=False)

    def summary(self) -> dict[str, object]:
        """All but the single expressions, as JSON takes it."""
        return {name: value for name, value in vars(self).items() if name != "results"}


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
    keep: Callable[[ExpressionResult], object] = lambda result: None,
) -> Evaluation:
    """Measure a model on every expression of a data set, each exactly once.

    The figures are the same, to the bit, for any batch size and any number of processes: the model sees one
    image at a time, and what is added up are whole numbers.

    Args:
        model: see `cmsa_fast.models.base.ReferringModel`.
        dataset: any split.
        collate: with the model's vocabulary and size.
        convention: how predictions become masks and masks figures.
        refiner: sharpens probabilities before they are cut.
        labels: for every expression the kinds it is also counted under. None: its own kind, where it has one.
        device: where the model is.
        images_per_batch: images read at a time.
        num_workers: processes that read images.
        title: of the progress bar.
        problems: takes expressions whose image or mask cannot be used. None: the first one is an error.
        processes: who shares the work; every one gets the whole result.
        keep: called with each result of this process as soon as it is there.

    Returns:
        The metrics; the model is left in the mode it was in.

    Raises:
        ValueError: labels does not have one entry for every expression, an item is damaged, or none is usable.
    """
    if labels is not None and len(labels) != len(dataset):
        raise ValueError(
            f"labels must have one entry for each of the {len(dataset)} expressions; got {len(labels)}."
        )
    errors = errors or ErrorCollector(strict=True)
    before = errors.count
    image_ids = dataset.image_ids()
    sampler = ImageBatchSampler(image_ids, images_per_batch, EXPRESSIONS_AT_ONCE, shuffle=False)
    mine = list(sampler)[processes.rank :: processes.count]
    groups = group_by_image(
        image_ids
    )  # of all expressions: one that is left out must not move the others
    loader = BatchLoader(dataset, mine, collate, num_workers=num_workers, errors=errors)
    was_training = model.training
    model.eval()
    bar = tqdm(
        total=sum(len(indices) for indices in mine),
        desc=title,
        unit="sentence",
        dynamic_ncols=True,
        leave=None,  # removed at the end if it is shown below the bar of a training
        disable=not processes.is_first,
    )
    try:
        with bar:
            found = []
            for result in _measured(
                for_inference(model), loader, mine, groups, device, convention, refiner, bar.update
            ):
                found.append(result)
                keep(result)
    finally:
        model.train(was_training)
    lost = sum(processes.gather(errors.count - before))
    results = sorted(
        (result for part in processes.gather(found) for result in part),
        key=lambda result: result.index,
    )
    if len({result.index for result in results}) != len(results) or len(results) + lost != len(
        dataset
    ):
        raise RuntimeError(
            f"{len(results)} results and {lost} unusable expressions do not make {len(dataset)} expressions."
        )
    if not results:
        raise ValueError(f"None of the {len(dataset)} expressions can be evaluated.")
    return _evaluation(results, labels, convention, lost)


def _measured(
    model: Any,
    loader: BatchLoader,
    batches: list[list[int]],
    groups: list[int],
    device: torch.device | str,
    convention: Convention,
    refiner: Refiner | None,
    advance: Callable[[int], object],
) -> Iterator[ExpressionResult]:
    """The result of each expression; where a refiner works beside the model, as soon as it is done."""
    pending: deque[Callable[[], ExpressionResult]] = deque()
    for asked, (indices, batch) in zip(batches, loader.with_indices(), strict=True):
        advance(len(asked))
        if batch is None:
            continue
        probabilities = predict_probabilities(
            model, batch, device, [groups[index] for index in indices]
        )
        for index, probability, letterbox, sample in zip(
            indices, probabilities, batch.letterboxes, batch.samples, strict=True
        ):
            mask = predicted_mask(probability, letterbox, sample, convention, refiner)
            pending.append(_later(index, sample, mask, convention))
        while pending and (refiner is None or len(pending) > _PENDING):
            yield pending.popleft()()
    while pending:
        yield pending.popleft()()


def _later(
    index: int, sample: Sample, mask: Callable[[], Tensor], convention: Convention
) -> Callable[[], ExpressionResult]:
    return lambda: _result(index, sample, mask(), convention)


def _result(
    index: int, sample: Sample, prediction: Tensor, convention: Convention
) -> ExpressionResult:
    metrics = convention.metrics()
    metrics.update(prediction, convention.truth(sample.mask))
    height, width = sample.mask.shape
    return ExpressionResult(
        index=index,
        image_id=sample.image_id,
        ref_id=sample.ref_id,
        sent_id=sample.sent_id,
        expression=sample.expression,
        words=len(tokenize(sample.expression)),
        kind=sample.kind,
        names_nothing=sample.names_nothing,
        height=height,
        width=width,
        intersection=metrics.intersections[0],
        predicted=metrics.predicted[0],
        true=metrics.true[0],
        share=int(sample.mask.count_nonzero()) / sample.mask.numel(),
        iou=metrics.ious[0],
        convention=convention.name,
    )


def _evaluation(
    results: list[ExpressionResult],
    labels: Sequence[Sequence[str]] | None,
    convention: Convention,
    lost: int,
) -> Evaluation:
    kinds: dict[str, list[ExpressionResult]] = {}
    for result in results:
        own = [result.kind] * bool(result.kind)
        for kind in own if labels is None else labels[result.index]:
            kinds.setdefault(kind, []).append(result)
    generalized = None
    if any(result.names_nothing for result in results):
        measures = GeneralizedMetrics()
        for result in results:
            measures.add(result.intersection, result.predicted, result.true)
        generalized = measures.compute()
    return Evaluation(
        expressions=len(results),
        overall=figures(results, convention),
        by_kind={kind: figures(kinds[kind], convention) for kind in sorted(kinds)},
        counts={kind: len(kinds[kind]) for kind in sorted(kinds)},
        by_length=_grouped(results, length_group, LENGTH_GROUPS, convention),
        by_size=_grouped(results, size_group, SIZE_GROUPS, convention),
        generalized=generalized,
        convention=convention.name,
        unusable=lost,
        results=results,
    )


def figures(results: Iterable[ExpressionResult], convention: Convention) -> dict[str, float]:
    """The measures of some expressions, see `SegmentationMetrics.compute`."""
    metrics: SegmentationMetrics = convention.metrics()
    for result in results:
        metrics.add(result.intersection, result.predicted, result.true)
    return metrics.compute()


def _grouped(
    results: Iterable[ExpressionResult],
    group_of: Callable[[ExpressionResult], str],
    order: Sequence[str],
    convention: Convention,
) -> dict[str, dict[str, float]]:
    groups: dict[str, list[ExpressionResult]] = {}
    for result in results:
        groups.setdefault(group_of(result), []).append(result)
    return {
        name: {"sentences": len(groups[name]), **figures(groups[name], convention)}
        for name in order
        if name in groups
    }
