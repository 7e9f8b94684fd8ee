"""How well a model finds what sentences name, at the pictures' own size."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .data.batch import Batch, Collate, PictureBatchSampler
from .data.loading import BatchLoader
from .data.sample import ReferringDataset
from .metrics import SegmentationMetrics


@dataclass(frozen=True)
class Evaluation:
    """Metrics over all sentences, and over each kind of sentence.

    Attributes:
        sentences: how many were evaluated.
        overall: see `SegmentationMetrics.compute`.
        by_kind: the same for each label that was given.
        counts: sentences of each label.
    """

    sentences: int
    overall: dict[str, float]
    by_kind: dict[str, dict[str, float]]
    counts: dict[str, int]


@torch.no_grad()
def predict_batch(model: nn.Module, batch: Batch, device: torch.device | str) -> list[Tensor]:
    """Masks at the pictures' own size: logits brought back from the square, then cut at probability 0.5.

    Cutting after the resize keeps the outline smooth; the published evaluation resizes a cut mask and counts
    whatever is not zero, which thickens it.

    Returns:
        bool [H, W] for each sentence.
    """
    moved = batch.to(device)
    logits = model(moved.images, moved.words, moved.word_mask, moved.image_index)
    return [
        (letterbox.restore(one) > 0)[0].cpu()
        for letterbox, one in zip(batch.letterboxes, logits, strict=True)
    ]


def evaluate(
    model: nn.Module,
    dataset: ReferringDataset,
    collate: Collate,
    *,
    labels: Sequence[Sequence[str]] | None = None,
    device: torch.device | str = "cpu",
    pictures_per_batch: int = 16,
    num_workers: int = 0,
    title: str = "evaluate",
) -> Evaluation:
    """Measure a model on every sentence of a data set.

    Args:
        model: see `cmsa_fast.models.ReferringModel`.
        dataset: any split.
        collate: with the model's vocabulary and size.
        labels: for every sentence the kinds it is also counted under. None: its own kind, where it has one.
        device: where the model is.
        pictures_per_batch: pictures encoded at a time.
        num_workers: processes that read pictures.
        title: of the progress bar.

    Returns:
        The metrics; the model is left in the mode it was in.

    Raises:
        ValueError: labels does not have one entry for every sentence, or an item is damaged.
    """
    if labels is not None and len(labels) != len(dataset):
        raise ValueError(
            f"labels must have one entry for each of the {len(dataset)} sentences; got {len(labels)}."
        )
    was_training = model.training
    model.eval()
    batches = list(PictureBatchSampler(dataset.image_ids(), pictures_per_batch, 1, shuffle=False))
    loader = BatchLoader(dataset, batches, collate, num_workers=num_workers)
    overall, by_kind = SegmentationMetrics(), dict[str, SegmentationMetrics]()
    bar = tqdm(total=len(dataset), desc=title, unit="sentence", dynamic_ncols=True)
    try:
        with bar:
            for indices, batch in zip(batches, loader, strict=True):
                masks = predict_batch(model, batch, device)
                for index, mask, sample in zip(indices, masks, batch.samples, strict=True):
                    overall.update(mask, sample.mask)
                    kinds = (
                        labels[index] if labels is not None else [sample.kind] * bool(sample.kind)
                    )
                    for kind in kinds:
                        by_kind.setdefault(kind, SegmentationMetrics()).update(mask, sample.mask)
                bar.update(len(indices))
    finally:
        model.train(was_training)
    return Evaluation(
        overall.count,
        overall.compute(),
        {kind: metrics.compute() for kind, metrics in sorted(by_kind.items())},
        {kind: metrics.count for kind, metrics in sorted(by_kind.items())},
    )
