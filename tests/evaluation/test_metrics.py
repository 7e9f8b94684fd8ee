"""Overall IoU, mean IoU and precision, against numbers worked out by hand and in fractions."""

from __future__ import annotations

import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from cmsa_fast.evaluation.metrics import SegmentationMetrics


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
def test_masks_of_the_wrong_kind_are_refused(
    bad: object, error: type[Exception], message: str
) -> None:
    metrics = SegmentationMetrics()
    with pytest.raises(error, match=message):
        metrics.update(bad, GOOD)  # type: ignore[arg-type]
    with pytest.raises(error, match=message):
        metrics.update(GOOD, bad)  # type: ignore[arg-type]
    assert metrics.count == 0


def test_every_expression_is_kept_as_counts() -> None:
    metrics = measured(("###..", ".###."), ("...", ".#."))
    assert (metrics.intersections, metrics.predicted, metrics.true) == ([2, 0], [3, 0], [3, 1])
    assert metrics.unions == [4, 1]


def test_counts_stand_in_for_masks() -> None:
    random = np.random.default_rng(2)
    masks, counts = SegmentationMetrics(), SegmentationMetrics()
    for height, width in ((7, 13), (1, 1), (31, 17)):
        prediction, truth = random.random((2, height, width)) < random.random()
        masks.update(prediction, truth)
        # NumPy's whole numbers are taken, too.
        counts.add((prediction & truth).sum(), prediction.sum(), int(truth.sum()))
    assert counts.compute() == masks.compute()
    assert counts.unions == masks.unions
    assert all(type(count) is int for count in counts.intersections + counts.predicted)


@pytest.mark.parametrize(
    ("counts", "error", "message"),
    [
        ((1.0, 2, 3), TypeError, "intersection must be a whole number, but it is a float"),
        ((1, True, 3), TypeError, "predicted must be a whole number, but it is a bool"),
        ((1, 2, None), TypeError, "true must be a whole number, but it is a NoneType"),
        ((-1, 2, 3), ValueError, "intersection must be at least 0 pixels, but it is -1"),
        ((3, 2, 3), ValueError, "at most predicted and true, but it is 3 with 2 and 3"),
        ((3, 4, 2), ValueError, "at most predicted and true"),
    ],
)
def test_impossible_counts_are_refused(
    counts: tuple[int, int, int], error: type[Exception], message: str
) -> None:
    metrics = SegmentationMetrics()
    with pytest.raises(error, match=message):
        metrics.add(*counts)
    assert metrics.count == len(metrics.predicted) == len(metrics.true) == 0


@pytest.mark.parametrize("tenths", [5, 6, 7, 8, 9])
def test_a_strict_threshold_does_not_pass(tenths: int) -> None:
    for scale in (1, 3, 10**12):
        at, above = SegmentationMetrics(strict=True), SegmentationMetrics(strict=True)
        at.add(tenths * scale, tenths * scale, 10 * scale)
        above.add(tenths * scale + 1, tenths * scale + 1, 10 * scale)
        key = f"precision@0.{tenths}"
        assert at.compute()[key] == 0
        assert above.compute()[key] == 1


def test_two_empty_masks_can_count_as_a_miss() -> None:
    metrics = SegmentationMetrics(empty_union_iou=0)
    metrics.add(0, 0, 0)
    assert set(metrics.compute().values()) == {0.0}
    metrics.add(1, 1, 2)
    assert metrics.ious == [0, 0.5]
    values = metrics.compute()
    assert (values["overall_iou"], values["mean_iou"]) == (0.5, 0.25)
    assert (values["precision@0.5"], values["precision@0.6"]) == (0.5, 0)


def test_a_pixel_fraction_added_to_the_union() -> None:
    metrics = SegmentationMetrics(union_offset=1e-6)
    for intersection, union in ((3, 7), (9, 10), (307200, 307200)):
        metrics.add(intersection, intersection, union)
    assert metrics.ious == [3 / (7 + 1e-6), 9 / (10 + 1e-6), 307200 / (307200 + 1e-6)]
    # 9 / 10.000001 is below 0.9.
    assert metrics.compute()["precision@0.9"] == pytest.approx(1 / 3)
    assert metrics.compute()["overall_iou"] == (3 + 9 + 307200) / (7 + 10 + 307200)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1e-6, 0.05])
def test_precision_is_that_of_fractions(strict: bool, offset: float) -> None:
    metrics = SegmentationMetrics(strict=strict, union_offset=offset)
    pairs = [
        (intersection, union) for union in (1, 2, 5, 7, 10, 20) for intersection in range(union + 1)
    ]
    for intersection, union in pairs:
        metrics.add(intersection, intersection, union)
    ious = [Fraction(i) / (u + Fraction(offset)) for i, u in pairs]
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
def test_rules_that_make_no_sense(rules: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentationMetrics(**rules)  # type: ignore[arg-type]


def test_other_rules_are_not_merged() -> None:
    metrics, other = measured(("#", "#")), SegmentationMetrics(strict=True)
    other.add(1, 1, 1)
    with pytest.raises(ValueError, match="other must follow the same rules"):
        metrics.merge(other)
    assert metrics.count == 1


@pytest.mark.parametrize("rules", [{}, {"strict": True, "union_offset": 1e-6}])
def test_any_grouping_and_order_gives_the_same_bits(rules: dict[str, float]) -> None:
    random = np.random.default_rng(3)
    true, predicted = random.integers(0, 5000, (2, 700))
    intersections = [int(random.integers(0, limit + 1)) for limit in np.minimum(true, predicted)]
    expressions = list(zip(intersections, predicted.tolist(), true.tolist(), strict=True))

    def seen(some: list[tuple[int, int, int]]) -> SegmentationMetrics:
        metrics = SegmentationMetrics(**rules)  # type: ignore[arg-type]
        for expression in some:
            metrics.add(*expression)
        return metrics

    expected = seen(expressions).compute()
    for _ in range(10):
        shuffled = [expressions[place] for place in random.permutation(len(expressions))]
        edges = [0, *sorted(random.integers(0, len(expressions), 6).tolist()), len(expressions)]
        # Through a pickle, as from another process.
        parts = [
            pickle.loads(pickle.dumps(seen(shuffled[a:b])))
            for a, b in zip(edges, edges[1:], strict=False)
        ]
        while len(parts) > 1:
            part = parts.pop(int(random.integers(len(parts))))
            parts[int(random.integers(len(parts)))].merge(part)
        assert parts[0].compute() == expected
    # The numbers are such that plain running sums of the IoUs do depend on the order.
    ious = seen(expressions).ious
    assert len({sum(random.permutation(ious).tolist()) for _ in range(10)}) > 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")
def test_masks_on_a_gpu_and_a_cpu() -> None:
    prediction, truth = torch.rand(2, 13, 17) < 0.5
    expected = measured()
    expected.update(prediction, truth)
    for first in (prediction.cuda(), prediction, prediction.numpy()):
        for second in (truth.cuda(), truth, truth.numpy()):
            metrics = SegmentationMetrics()
            metrics.update(first, second)
            assert metrics.intersections == expected.intersections
            assert metrics.unions == expected.unions
