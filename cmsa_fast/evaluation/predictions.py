"""Scores of predicted masks from files, under several conventions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from ..data.dataset import RecordDataset
from ..data.errors import ErrorCollector, by
from ..data.types import ReferringDataset, Sample
from .conventions import Convention
from .mask_files import PredictedMask
from .results import ExpressionResult, measure
from .score import Evaluation, score

_SHOWN = 5


@dataclass(frozen=True)
class Scores:
    """The figures of a set of predictions, and what was done to the predictions.

    Attributes:
        evaluations: By name of the convention.
        predictions: Number of predictions given.
        missing: Expressions without a prediction, which count as empty masks.
        surplus: Predictions that count nowhere, because records or expressions were left out of the data set.
        resized: Predictions that were resized to their image.
        emptied: Predictions with fewer than `min_pixels` pixels, which count as empty masks.
    """

    evaluations: dict[str, Evaluation]
    predictions: int
    missing: int
    surplus: int
    resized: int
    emptied: int


def score_predictions(
    predictions: Sequence[PredictedMask],
    dataset: ReferringDataset,
    conventions: Sequence[Convention],
    *,
    labels: Sequence[Sequence[str]] | None = None,
    missing: Literal["error", "empty"] = "error",
    resize: bool = False,
    min_pixels: int = 0,
    errors: ErrorCollector | None = None,
) -> Scores:
    """Scores predicted masks on every expression of a data set, without reading the pixels of images.

    A prediction has the size of its image, or the size at which the convention compares masks (lavt: 480 x 480).

    Args:
        predictions: One for each expression, or one for all expressions of an object with the same text.
        dataset: Any split.
        conventions: How masks are compared; one evaluation each.
        labels: For every expression the labels it is also counted under. None: its kind, if it has one.
        missing: "empty": an expression without a prediction has an empty mask. "error": it is an error.
        resize: Resize masks of another size to that of their image, to the nearest pixels. False: an error.
        min_pixels: Masks with fewer pixels count as empty.
        errors: Collects expressions whose image or mask cannot be used. None: the first one is raised.

    Raises:
        ValueError: Predictions are missing, repeated, for no expression, of another size, or damaged (the message
            has their number and names the first), or no expression can be scored.
    """
    errors = errors or ErrorCollector(strict=True)
    assigned, surplus = _assign(predictions, dataset, missing)
    results: dict[str, list[ExpressionResult]] = {convention.name: [] for convention in conventions}
    wrong_sizes: list[str] = []
    takers: set[str] = set()  # conventions that compare masks of such a size
    damaged: list[str] = []
    resized = emptied = 0
    for index in tqdm(range(len(dataset)), desc="score", unit="expression", dynamic_ncols=True):
        sample = _sample(dataset, index, errors)
        if sample is None:
            continue
        height, width = sample.mask.shape
        prediction = assigned[index]
        try:
            size = prediction.size() if prediction else (height, width)
            fits = all(size in ((height, width), (one.side, one.side)) for one in conventions)
            if prediction and not fits and not resize:
                wrong_sizes.append(f"{prediction.where} is {by(size)} and its image {by((height, width))}")
                takers |= {one.name for one in conventions if size == (one.side, one.side)}
                continue
            mask = prediction.decode() if prediction else torch.zeros(size, dtype=torch.bool)
        except (ValueError, OSError) as error:
            damaged.append(str(error))
            continue
        resized += not fits
        if 0 < int(mask.count_nonzero()) < min_pixels:
            emptied += 1
            mask = torch.zeros_like(mask)
        for convention in conventions:
            predicted = _compared(mask, height, width, convention)
            results[convention.name].append(measure(index, sample, predicted, convention))
    _raise_if(
        _first(damaged, "predictions are not readable masks"),
        _first(
            wrong_sizes,
            "predictions have another size (height x width) than their image (--resize resizes them"
            + "".join(f", --convention {name} takes them as they are" for name in sorted(takers))
            + ")",
        ),
    )
    if not all(results.values()):
        raise ValueError(f"None of the {len(dataset)} expressions can be scored.")
    return Scores(
        {one.name: score(results[one.name], dataset, one, labels) for one in conventions},
        predictions=len(predictions),
        missing=sum(one is None for one in assigned),
        surplus=surplus,
        resized=resized,
        emptied=emptied,
    )


def _compared(mask: Tensor, height: int, width: int, convention: Convention) -> Tensor:
    """The prediction at the convention's size, from a mask of that size or, resized if need be, of the image's."""
    if mask.shape == (convention.side, convention.side):
        return mask
    if mask.shape != (height, width):
        values = mask[None, None].to(torch.uint8)
        mask = functional.interpolate(values, (height, width), mode="nearest-exact")[0, 0].bool()
    return mask if convention.side is None else convention.prediction_at_own_size(mask.float())


def _assign(
    predictions: Sequence[PredictedMask], dataset: ReferringDataset, missing: Literal["error", "empty"]
) -> tuple[list[PredictedMask | None], int]:
    """The prediction of every expression, and the number of predictions for expressions that were left out."""
    ids = _ids(dataset)
    places: dict[int | tuple[int, str], list[int]] = {}
    for index, ((_, ref_id, sent_id), expression) in enumerate(zip(ids, dataset.expressions(), strict=True)):
        places.setdefault(sent_id, []).append(index)
        places.setdefault((ref_id, _plain(expression)), []).append(index)
    given: dict[int | tuple[int, str], list[PredictedMask]] = {}
    for one in predictions:
        key = (one.ref_id or 0, _plain(one.expression)) if one.sent_id is None else one.sent_id
        given.setdefault(key, []).append(one)
    assigned: list[PredictedMask | None] = [None] * len(ids)
    surplus: list[str] = []
    repeated: list[str] = []
    contradictions: list[str] = []
    for key, entries in given.items():
        indices = places.get(key, [])
        if not indices:
            surplus += [f"{one.name} ({one.where})" for one in entries]
        elif len(entries) not in (1, len(indices)):
            repeated.append(f"{entries[0].name} ({entries[0].where} and {entries[1].where})")
        # One entry counts for all equal expressions; otherwise they are in the data set's order.
        for index, one in zip(indices, entries * (len(indices) if len(entries) == 1 else 1), strict=False):
            if (other := assigned[index]) is not None:
                repeated.append(f"{one.name} ({other.where} and {one.where})")
            assigned[index] = one
            for name, number, true in zip(
                ("image_id", "ref_id"), (one.image_id, one.ref_id), ids[index], strict=False
            ):
                if number not in (None, true):
                    contradictions.append(f"{one.where} has {name} {number}, and {one.name} is of {name} {true}")
    without = [f"sent_id {sent_id}" for (*_, sent_id), one in zip(ids, assigned, strict=True) if one is None]
    incomplete = isinstance(dataset, RecordDataset) and (
        dataset.report.unusable_records + dataset.report.empty_expressions
    )
    _raise_if(
        _first(repeated, "expressions have several predictions"),
        _first(contradictions, "predictions name another image or object than the data set"),
        _first([] if incomplete else surplus, "predictions are for no expression of the data set"),
        _first(
            [] if missing == "empty" else without,
            f"of {len(ids)} expressions have no prediction (--missing empty counts them as empty masks)",
        ),
    )
    return assigned, len(surplus)


def _ids(dataset: ReferringDataset) -> list[tuple[int, int, int]]:
    if isinstance(dataset, RecordDataset):
        return dataset.ids()
    samples = (dataset[index] for index in range(len(dataset)))
    return [(one.image_id, one.ref_id, one.sent_id) for one in samples]


def _sample(dataset: ReferringDataset, index: int, errors: ErrorCollector) -> Sample | None:
    """An item; None if it cannot be used, which `errors` then has."""
    with errors:
        return dataset.without_pixels(index) if isinstance(dataset, RecordDataset) else dataset[index]
    return None


def _plain(expression: str) -> str:
    """Text without differences in case, spaces and underscores, which file names may have for spaces."""
    return " ".join(expression.replace("_", " ").split()).casefold()


def _first(items: Sequence[str], what: str) -> str:
    """A sentence with the number of items and the first of them; empty without items."""
    if not items:
        return ""
    end = "; ..." if len(items) > _SHOWN else "."
    return f"{len(items)} {what}: {'; '.join(items[:_SHOWN])}{end}"


def _raise_if(*sentences: str) -> None:
    if any(sentences):
        raise ValueError(" ".join(filter(None, sentences)))
