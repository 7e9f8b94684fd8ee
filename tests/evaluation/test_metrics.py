"""Overall IoU, mean IoU and precision, against numbers worked out by hand and in fractions."""

from __future__ import annotations

import itertools
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

import cmsa_fast.evaluation
import cmsa_fast.metrics
from cmsa_fast.evaluation.metrics import GeneralizedMetrics, SegmentationMetrics


def row(pattern: str) -> Tensor:
    """One row of pixels, True at each "#"."""
    return torch.tensor([[mark == "#" for mark in pattern]])


def measured(*pairs: tuple[str, str]) -> SegmentationMetrics:
    metrics = SegmentationMetrics()
    for prediction, truth in pairs:
        metrics.update(row(prediction), row(truth))
    return metrics


def with_counts(*counts: tuple[int, int, int], **rules: float) -> SegmentationMetrics:
    metrics = SegmentationMetrics(**rules)  # type: ignore[arg-type]
    for intersection, predicted, true in counts:
        metrics.add(intersection, predicted, true)
    return metrics


def test_public_imports() -> None:
    assert cmsa_fast.evaluation.SegmentationMetrics is SegmentationMetrics
    assert cmsa_fast.metrics.SegmentationMetrics is SegmentationMetrics


def test_by_hand() -> None:
    metrics = measured(
        ("###..", ".###."),  # I 2, U 4
        ("#######...", "##########"),  # I 7, U 10
        ("##...", "...##"),  # I 0, U 4
        ("###", "###"),  # I 3, U 3
    )
    assert metrics.count == 4
    assert metrics.intersections == [2, 7, 0, 3]
    assert metrics.predicted == [3, 7, 2, 3]
    assert metrics.true == [3, 10, 2, 3]
    assert metrics.unions == [4, 10, 4, 3]
    assert metrics.ious == [0.5, 0.7, 0.0, 1.0]
    assert all(type(count) is int for count in metrics.intersections + metrics.unions)
    values = metrics.compute()
    assert all(type(value) is float for value in values.values())
    assert values == {
        "overall_iou": 12 / 21,
        "mean_iou": pytest.approx(2.2 / 4),
        "precision@0.5": 0.75,
        "precision@0.6": 0.5,
        "precision@0.7": 0.5,
        "precision@0.8": 0.25,
        "precision@0.9": 0.25,
    }


def test_one_empty_mask_is_a_miss() -> None:
    metrics = measured(("...", ".##"), ("#..", "..."))
    assert metrics.ious == [0, 0]
    assert set(metrics.compute().values()) == {0.0}


@pytest.mark.parametrize(("iou", "mean", "at_half"), [(1, 0.75, 1), (0, 0.25, 0.5)])
def test_two_empty_masks(iou: int, mean: float, at_half: float) -> None:
    metrics = with_counts((0, 0, 0), empty_union_iou=iou)
    assert set(metrics.compute().values()) == {float(iou)}
    metrics.add(1, 1, 2)
    assert metrics.ious == [iou, 0.5]
    values = metrics.compute()
    assert (values["overall_iou"], values["mean_iou"]) == (0.5, mean)
    assert (values["precision@0.5"], values["precision@0.9"]) == (at_half, iou / 2)


def test_arrays_and_tensors_on_any_device_agree() -> None:
    random = np.random.default_rng(0)
    masks = random.random((2, 13, 17)) < 0.5
    before = masks.copy()
    expected = ([int((masks[0] & masks[1]).sum())], [int((masks[0] | masks[1]).sum())])
    kinds = [lambda mask: mask, torch.from_numpy]
    if torch.cuda.is_available():
        kinds.append(lambda mask: torch.from_numpy(mask).cuda())
    for first, second in itertools.product(kinds, kinds):
        metrics = SegmentationMetrics()
        metrics.update(first(masks[0]), second(masks[1]))
        assert (metrics.intersections, metrics.unions) == expected
    assert np.array_equal(masks, before)


@pytest.mark.filterwarnings("error")
def test_arrays_in_any_layout() -> None:
    base = np.random.default_rng(1).random((17, 13)) < 0.5
    frozen = base.copy()
    frozen.flags.writeable = False
    for view in (base.T, base[::-1], base[:, ::-2], np.asfortranarray(base), frozen):
        metrics = SegmentationMetrics()
        metrics.update(view, np.ones(view.shape, dtype=bool))
        assert metrics.intersections == [int(view.sum())]


def test_sums_beyond_float_precision_are_exact() -> None:
    metrics = with_counts((1, 1, 1), (2**60, 2**60, 2**60), (0, 1, 0))
    # In float64 the sums 2**60 + 1 and 2**60 + 2 would be equal; the masks differ in one pixel.
    assert sum(metrics.unions) - sum(metrics.intersections) == 1
    assert metrics.compute()["overall_iou"] == (2**60 + 1) / (2**60 + 2)


def test_counts_are_equivalent_to_masks() -> None:
    random = np.random.default_rng(2)
    masks, counts = SegmentationMetrics(), SegmentationMetrics()
    for height, width in ((7, 13), (1, 1), (31, 17)):
        prediction, truth = random.random((2, height, width)) < random.random()
        masks.update(prediction, truth)
        # NumPy's integers are accepted, too.
        counts.add((prediction & truth).sum(), prediction.sum(), int(truth.sum()))
    assert counts.compute() == masks.compute()
    assert counts.unions == masks.unions
    assert all(type(count) is int for count in counts.intersections + counts.predicted)


def test_merge() -> None:
    metrics, other = measured(("#.", "##")), measured(("##", "##"), (".#", "##"))
    metrics.merge(other)
    assert metrics.intersections == [1, 2, 1]
    assert other.intersections == [2, 1]
    metrics.merge(metrics)
    assert metrics.intersections == [1, 2, 1, 1, 2, 1]


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        ({"overall_iou": 1.0}, TypeError, "other must be a SegmentationMetrics, but it is a dict"),
        (GeneralizedMetrics(), TypeError, "must be a SegmentationMetrics, but it is a Generalized"),
        (SegmentationMetrics(strict=True), ValueError, "other must have the same rules"),
    ],
)
def test_other_classes_and_rules_are_not_merged(other: object, error: type[Exception], message: str) -> None:
    metrics = measured(("#", "#"))
    with pytest.raises(error, match=message):
        metrics.merge(other)  # type: ignore[arg-type]
    assert metrics.count == 1


@pytest.mark.parametrize("metrics", [SegmentationMetrics(), GeneralizedMetrics()])
def test_no_expression_is_an_error(metrics: SegmentationMetrics | GeneralizedMetrics) -> None:
    assert metrics.count == 0
    with pytest.raises(ValueError, match="at least one expression"):
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
def test_wrong_masks(bad: object, error: type[Exception], message: str) -> None:
    metrics = SegmentationMetrics()
    for pair in ((bad, GOOD), (GOOD, bad)):
        with pytest.raises(error, match=message):
            metrics.update(*pair)  # type: ignore[arg-type]
    assert metrics.count == 0


@pytest.mark.parametrize(
    ("counts", "error", "message"),
    [
        ((1.0, 2, 3), TypeError, "intersection must be an integer, but it is a float"),
        ((1, True, 3), TypeError, "predicted must be an integer, but it is a bool"),
        ((1, 2, None), TypeError, "true must be an integer, but it is a NoneType"),
        ((-1, 2, 3), ValueError, "intersection must be at least 0 pixels, but it is -1"),
        ((3, 2, 3), ValueError, "at most predicted and true, but it is 3 with 2 and 3"),
        ((3, 4, 2), ValueError, "at most predicted and true"),
    ],
)
def test_wrong_counts(counts: tuple[int, int, int], error: type[Exception], message: str) -> None:
    metrics = SegmentationMetrics()
    with pytest.raises(error, match=message):
        metrics.add(*counts)
    assert metrics.count == len(metrics.predicted) == len(metrics.true) == 0


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1e-6, 0.05])
def test_precision_is_that_of_fractions(strict: bool, offset: float) -> None:
    pairs = [(i, u) for u in (1, 2, 5, 7, 10, 20) for i in range(u + 1)]
    # In floating point 0.6 * 30 is not an integer, and 10**17 has no neighbour at a distance of 1.
    for total in (30, 10**13, 10**17):
        ties = [total * tenths // 10 for tenths in (5, 6, 7, 8, 9)]
        pairs += [(tie + change, total) for tie in ties for change in (-1, 0, 1)]
    metrics = with_counts(*((i, i, u) for i, u in pairs), strict=strict, union_offset=offset)
    ious = [Fraction(i) / (u + Fraction(offset)) for i, u in pairs]
    assert metrics.ious == pytest.approx([float(iou) for iou in ious], rel=1e-15)
    for tenths in (5, 6, 7, 8, 9):
        limit = Fraction(tenths, 10)
        passed = sum(iou > limit if strict else iou >= limit for iou in ious)
        assert metrics.compute()[f"precision@0.{tenths}"] == passed / len(pairs)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"empty_union_iou": 0.5}, "empty_union_iou must be 0 or 1, but it is 0.5"),
        ({"union_offset": -1e-6}, "union_offset must be at least 0 and below 0.1"),
        ({"union_offset": 1.0}, "union_offset must be at least 0 and below 0.1"),
        ({"union_offset": math.nan}, "union_offset must be at least 0 and below 0.1"),
    ],
)
def test_wrong_rules(rules: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentationMetrics(**rules)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("metrics", "rules"),
    [
        (SegmentationMetrics, {}),
        (SegmentationMetrics, {"strict": True, "union_offset": 1e-6}),
        (GeneralizedMetrics, {}),
    ],
)
def test_bitwise_identical_for_any_grouping_and_order(
    metrics: type[SegmentationMetrics], rules: dict[str, float]
) -> None:
    random = np.random.default_rng(3)
    true, predicted = random.integers(0, 5000, (2, 700)) * (random.random((2, 700)) < 0.9)
    intersections = [int(random.integers(0, limit + 1)) for limit in np.minimum(true, predicted)]
    expressions = list(zip(intersections, predicted.tolist(), true.tolist(), strict=True))

    def seen(some: list[tuple[int, int, int]]) -> SegmentationMetrics:
        one = metrics(**rules)  # type: ignore[arg-type]
        for expression in some:
            one.add(*expression)
        return one

    expected = seen(expressions).compute()
    for _ in range(10):
        shuffled = [expressions[place] for place in random.permutation(len(expressions))]
        edges = [0, *sorted(random.integers(0, len(expressions), 6).tolist()), len(expressions)]
        # Pickled, as from another process.
        parts = [pickle.loads(pickle.dumps(seen(shuffled[a:b]))) for a, b in zip(edges, edges[1:], strict=False)]
        while len(parts) > 1:
            part = parts.pop(int(random.integers(len(parts))))
            parts[int(random.integers(len(parts)))].merge(part)
        assert parts[0].compute() == expected
    # A running sum of these IoUs does depend on the order.
    ious = seen(expressions).ious
    assert len({sum(random.permutation(ious).tolist()) for _ in range(10)}) > 1
