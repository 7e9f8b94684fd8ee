"""Overall IoU, mean IoU and precision, against numbers worked out by hand and published ones."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cmsa_fast.data.refer import ReferDataset
from cmsa_fast.metrics import SegmentationMetrics


def row(pattern: str) -> Tensor:
    """One row of pixels, True at each "#"."""
    return torch.tensor([[mark == "#" for mark in pattern]])


def measured(*pairs: tuple[str, str]) -> SegmentationMetrics:
    metrics = SegmentationMetrics()
    for prediction, truth in pairs:
        metrics.update(row(prediction), row(truth))
    return metrics


def with_iou(intersection: int, union: int) -> tuple[str, str]:
    return "#" * intersection + "." * (union - intersection), "#" * union


def test_by_hand() -> None:
    metrics = measured(
        ("###..", ".###."),  # I 2, U 4
        ("#######...", "##########"),  # I 7, U 10
        ("##...", "...##"),  # I 0, U 4
        ("###", "###"),  # I 3, U 3
    )
    assert metrics.count == 4
    assert metrics.intersections == [2, 7, 0, 3]
    assert metrics.unions == [4, 10, 4, 3]
    assert metrics.ious == [0.5, 0.7, 0.0, 1.0]
    assert metrics.compute() == {
        "overall_iou": 12 / 21,
        "mean_iou": pytest.approx(2.2 / 4),
        "precision@0.5": 0.75,
        "precision@0.6": 0.5,
        "precision@0.7": 0.5,
        "precision@0.8": 0.25,
        "precision@0.9": 0.25,
    }


@pytest.mark.parametrize("tenths", [5, 6, 7, 8, 9])
def test_the_threshold_itself_passes(tenths: int) -> None:
    # 30 pixels: 0.6 * 30 is not a whole number in floating point, for one.
    at, below = measured(with_iou(3 * tenths, 30)), measured(with_iou(3 * tenths - 1, 30))
    assert at.compute()[f"precision@0.{tenths}"] == 1
    assert below.compute()[f"precision@0.{tenths}"] == 0


def test_two_axes() -> None:
    prediction, truth = torch.zeros(7, 9, dtype=torch.bool), torch.zeros(7, 9, dtype=torch.bool)
    prediction[1:5, 2:8] = True  # 24
    truth[3:7, 0:5] = True  # 20, of which 2 x 3 shared
    metrics = SegmentationMetrics()
    metrics.update(prediction, truth)
    assert (metrics.intersections, metrics.unions) == ([6], [38])


def test_the_arguments_are_left_alone() -> None:
    prediction, truth = row("##."), row(".##")
    SegmentationMetrics().update(prediction, truth)
    assert torch.equal(prediction, row("##."))
    assert torch.equal(truth, row(".##"))


def test_one_empty_mask_is_a_miss() -> None:
    metrics = measured(("...", ".##"), ("#..", "..."))
    assert metrics.ious == [0, 0]
    assert metrics.compute()["overall_iou"] == 0
    assert metrics.compute()["precision@0.5"] == 0


def test_two_empty_masks_are_right_and_add_nothing_to_the_sums() -> None:
    metrics = measured(("....", "...."), ("#.", "##"))
    assert metrics.ious == [1, 0.5]
    values = metrics.compute()
    assert values["overall_iou"] == 0.5
    assert values["mean_iou"] == 0.75
    assert values["precision@0.5"] == 1
    assert values["precision@0.9"] == 0.5


def test_only_empty_masks() -> None:
    assert set(measured(("..", ".."), ("...", "...")).compute().values()) == {1.0}


def test_arrays_and_tensors_agree() -> None:
    random = np.random.default_rng(0)
    prediction, truth = random.random((2, 13, 17)) < 0.5
    results = []
    for first in (prediction, torch.from_numpy(prediction)):
        for second in (truth, torch.from_numpy(truth)):
            metrics = SegmentationMetrics()
            metrics.update(first, second)
            results.append((metrics.intersections, metrics.unions))
    expected = ([int((prediction & truth).sum())], [int((prediction | truth).sum())])
    assert results == [expected] * 4


@pytest.mark.filterwarnings("error")
def test_arrays_in_any_layout() -> None:
    base = np.random.default_rng(1).random((17, 13)) < 0.5
    frozen = base.copy()
    frozen.flags.writeable = False
    for view in (base.T, base[::-1], base[:, ::-2], np.asfortranarray(base), frozen):
        metrics = SegmentationMetrics()
        metrics.update(view, np.ones(view.shape, dtype=bool))
        assert metrics.intersections == [int(view.sum())]


def test_counts_are_whole_python_numbers() -> None:
    metrics = measured(("##.", ".##"))
    assert type(metrics.intersections[0]) is int
    assert type(metrics.unions[0]) is int
    assert all(type(value) is float for value in metrics.compute().values())


def test_sums_beyond_float_precision_stay_exact() -> None:
    metrics = measured(("#", "#"))
    metrics.add(2**60, 2**60, 2**60)
    metrics.add(0, 1, 0)
    # In float64 the sums 2**60 + 1 and 2**60 + 2 would be one number; the masks differ in one pixel.
    assert sum(metrics.unions) - sum(metrics.intersections) == 1
    assert metrics.compute()["overall_iou"] == (2**60 + 1) / (2**60 + 2)


def test_merging_is_seeing_all_in_any_order() -> None:
    # A plain running sum of these IoUs depends on their order.
    pairs = [with_iou(7 * n % 23 % (n % 19 + 3), n % 19 + 3) for n in range(60)]
    pairs.append(("..", ".."))
    whole = measured(*pairs)
    left, right = measured(*pairs[40:]), measured(*pairs[:40])
    left.merge(right)
    assert left.count == whole.count == 61
    assert left.compute() == whole.compute() == measured(*reversed(pairs)).compute()
    assert right.count == 40
    right.merge(SegmentationMetrics())
    assert right.compute() == measured(*pairs[:40]).compute()


def test_merging_with_itself_counts_twice() -> None:
    metrics = measured(("#.", "##"))
    metrics.merge(metrics)
    assert metrics.intersections == [1, 1]


def test_merging_needs_metrics() -> None:
    with pytest.raises(TypeError, match="other must be a SegmentationMetrics"):
        SegmentationMetrics().merge({"overall_iou": 1.0})  # type: ignore[arg-type]


def test_nothing_seen_has_no_result() -> None:
    metrics = SegmentationMetrics()
    assert metrics.count == 0
    with pytest.raises(ValueError, match="at least one sentence"):
        metrics.compute()


GOOD = torch.zeros(3, 5, dtype=torch.bool)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (GOOD.float(), TypeError, "must have dtype bool, but it has torch.float32"),
        (GOOD.byte(), TypeError, "must have dtype bool"),
        (GOOD.numpy().astype(np.uint8), TypeError, "must have dtype bool, but it has uint8"),
        (GOOD.tolist(), TypeError, "must be a bool tensor or array"),
        (None, TypeError, "must be a bool tensor or array"),
        (GOOD[None], ValueError, r"must be \[H, W\], but its shape is \[1, 3, 5\]"),
        (GOOD[0].numpy(), ValueError, r"must be \[H, W\]"),
        (GOOD.T, ValueError, "must have one shape"),
    ],
)
def test_masks_of_the_wrong_kind_are_refused(
    bad: object, error: type[Exception], message: str
) -> None:
    metrics = SegmentationMetrics()
    with pytest.raises(error, match=message):
        metrics.update(bad, GOOD)  # type: ignore[arg-type]
    with pytest.raises(error, match=message):
        metrics.update(GOOD, bad)  # type: ignore[arg-type]
    assert metrics.count == 0


@pytest.mark.parametrize("model", ["base", "ours"])
def test_published_predictions(real: Path, model: str) -> None:
    folder = real / "refer" / "predictions"
    records = json.loads((folder / "published_iou.json").read_text())
    published = {(record["ref_id"], record["sent_id"]): record for record in records}
    metrics = SegmentationMetrics()
    expected = []
    for split in ("train", "val", "testA"):
        dataset = ReferDataset(real / "refer", "refcoco", "unc", split)
        for sample in (dataset[index] for index in range(len(dataset))):
            record = published.pop((sample.ref_id, sample.sent_id))
            with Image.open(folder / model / record["mask"]) as picture:
                metrics.update(np.array(picture) > 0, sample.mask)
            expected.append(record[model])
    assert not published
    assert metrics.count == 66
    assert metrics.intersections == [record["I"] for record in expected]
    assert metrics.unions == [record["U"] for record in expected]
    ious = [record["iou_native"] for record in expected]
    assert metrics.ious == pytest.approx(ious, rel=1e-12)
    values = metrics.compute()
    intersection, union = (sum(record[key] for record in expected) for key in "IU")
    assert values["overall_iou"] == pytest.approx(intersection / union, rel=1e-12)
    assert values["mean_iou"] == pytest.approx(math.fsum(ious) / 66, rel=1e-12)
    for tenths in (5, 6, 7, 8, 9):
        passed = sum(value >= tenths / 10 for value in ious)
        assert values[f"precision@0.{tenths}"] == passed / 66
