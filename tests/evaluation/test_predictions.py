"""Scores of predicted masks: sizes, missing and repeated predictions, no-target expressions, ignored regions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.refer_layout import open_refer, small_refcoco, square
from support.small_training import Listed, images
from torch import Tensor
from torch.nn import functional

from cmsa_fast.data import RecordDataset, load
from cmsa_fast.data.errors import ErrorCollector
from cmsa_fast.data.masks import parse_segmentation
from cmsa_fast.data.types import Sample
from cmsa_fast.evaluation.conventions import CONVENTIONS
from cmsa_fast.evaluation.mask_files import PredictedMask, encode_mask
from cmsa_fast.evaluation.predictions import Scores, score_predictions

NATIVE = [CONVENTIONS["native"]]
LAVT = [CONVENTIONS["lavt"]]
ALL = list(CONVENTIONS.values())


def shifted(sample: Sample) -> Tensor:
    """A prediction: the true mask, two pixels further right."""
    return sample.mask.roll(2, 1)


def stretched(sample: Sample) -> Tensor:
    values = shifted(sample)[None, None].float()
    return functional.interpolate(values, (480, 480), mode="nearest-exact")[0, 0].bool()


def predict(data: Any, mask: Callable[[Sample], Tensor] = shifted, **fields: Any) -> list[PredictedMask]:
    """A prediction for each expression, named by its number."""
    samples = [data[index] for index in range(len(data))]
    return [
        PredictedMask(parse_segmentation(encode_mask(mask(one))), f"line {line}", one.sent_id, **fields)
        for line, one in enumerate(samples)
    ]


@pytest.fixture
def data(tmp_path: Path) -> RecordDataset:
    """Five expressions of three references about two images of 23 x 37 and 41 x 29."""
    return open_refer(small_refcoco(tmp_path / "data").write())


def test_counts_are_those_of_the_masks(data: RecordDataset) -> None:
    scores = score_predictions(predict(data), data, ALL)
    assert list(scores.evaluations) == ["native", "cmsa", "lavt", "cris"]
    assert replace(scores, evaluations={}) == Scores({}, 5, missing=0, surplus=0, resized=0, emptied=0)
    for name, evaluation in scores.evaluations.items():
        assert {one.convention for one in evaluation.results} == {name}
        for index, one in enumerate(evaluation.results):
            sample, side = data[index], CONVENTIONS[name].side
            predicted, true = shifted(sample), CONVENTIONS[name].truth(sample.mask)
            if side:
                values = predicted[None, None].float()
                predicted = (
                    functional.interpolate(values, (side, side), mode="bilinear", antialias=True)[0, 0] > 0.5
                )
            counts = [int(mask.sum()) for mask in (predicted & true, predicted, true)]
            assert [one.intersection, one.predicted, one.true] == counts
            assert (one.index, one.sent_id, one.expression) == (index, sample.sent_id, sample.expression)
    assert scores.evaluations["cris"].results[0].iou < scores.evaluations["native"].results[0].iou


def test_masks_at_the_size_of_a_convention(data: RecordDataset) -> None:
    predictions = predict(data, stretched)
    (evaluation,) = score_predictions(predictions, data, LAVT).evaluations.values()
    first, sample = evaluation.results[0], data[0]
    assert first.predicted == int(stretched(sample).sum())
    assert first.intersection == int((stretched(sample) & CONVENTIONS["lavt"].truth(sample.mask)).sum())
    with pytest.raises(
        ValueError, match="^5 predictions .*, --convention lavt takes .*: line 0 is 480 x 480 and its image"
    ):
        score_predictions(predictions, data, ALL)
    scores = score_predictions(predictions, data, ALL, resize=True)
    assert scores.resized == 5
    assert scores.evaluations["lavt"].results == evaluation.results
    # 480 is more than the images' sides, so the nearest pixels of the stretched masks are the original ones.
    expected = score_predictions(predict(data), data, NATIVE).evaluations["native"]
    assert scores.evaluations["native"].results == expected.results


def test_resized_masks_are_counted(data: RecordDataset) -> None:
    predictions = predict(data)
    predictions[2] = replace(predictions[2], content=parse_segmentation(encode_mask(torch.ones(3, 4).bool())))
    with pytest.raises(
        ValueError, match=r"^1 predictions have another .*: line 2 is 3 x 4 and its image 41 x 29\.$"
    ):
        score_predictions(predictions, data, NATIVE)
    scores = score_predictions(predictions, data, ALL, resize=True)
    assert scores.resized == 1
    assert scores.evaluations["native"].results[2].predicted == 41 * 29
    assert scores.evaluations["lavt"].results[2].predicted == 480 * 480


def test_missing_predictions(data: RecordDataset) -> None:
    predictions = predict(data)[3:]
    with pytest.raises(
        ValueError, match=r"^3 of 5 expressions have no pred.*--missing.*: sent_id 0; .* 1; .* 2\.$"
    ):
        score_predictions(predictions, data, NATIVE)
    scores = score_predictions(predictions, data, ALL, missing="empty")
    assert scores.missing == 3
    assert [one.predicted for one in scores.evaluations["lavt"].results[:3]] == [0, 0, 0]
    assert (
        scores.evaluations["native"].results[3:]
        == score_predictions(predict(data), data, NATIVE).evaluations["native"].results[3:]
    )


def test_surplus_and_repeated_predictions(data: RecordDataset) -> None:
    predictions = predict(data)
    surplus = [replace(predictions[0], sent_id=90 + number, where=f"line {5 + number}") for number in range(7)]
    with pytest.raises(
        ValueError, match=r"^7 predictions are for no expression .*: sent_id 90 \(line 5\); .*; \.\.\.$"
    ):
        score_predictions(predictions + surplus, data, NATIVE)
    twice = replace(predictions[1], where="line 9")
    with pytest.raises(ValueError, match=r"^1 expressions have several .*: sent_id 1 \(line 1 and line 9\)\.$"):
        score_predictions([*predictions, twice], data, NATIVE)
    # By number and by text.
    named = replace(predictions[2], sent_id=None, ref_id=101, expression="man", where="line 9")
    with pytest.raises(ValueError, match=r"several predictions: ref_id 101 'man' \(line 2 and line 9\)"):
        score_predictions([*predictions, named], data, NATIVE)


def test_predictions_of_another_data_set(data: RecordDataset) -> None:
    with pytest.raises(
        ValueError, match="5 predictions name another .*: line 0 has ref_id 7, and sent_id 0 is of"
    ):
        score_predictions(predict(data, ref_id=7), data, NATIVE)
    with pytest.raises(ValueError, match="4 predictions name .*: line 0 has image_id 11, .* of image_id 7"):
        score_predictions(predict(data, image_id=11), data, NATIVE)


def named_by_text(data: RecordDataset) -> list[PredictedMask]:
    predictions = predict(data)
    return [
        replace(one, sent_id=None, ref_id=data[index].ref_id, expression=data[index].expression)
        for index, one in enumerate(predictions)
    ]


def test_predictions_named_by_object_and_text(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    layout.add_reference(11, [square(1, 1, 5)], ["left cup", "Left  cup", "man"])
    data = open_refer(layout.write())
    expected = score_predictions(predict(data), data, NATIVE).evaluations["native"].results
    named = named_by_text(data)
    named[0] = replace(named[0], expression="LEFT_cup")
    assert score_predictions(named, data, NATIVE).evaluations["native"].results == expected
    # One prediction counts for both copies of "left cup", which differ only in case and spaces.
    assert score_predictions(named[:6] + named[7:], data, NATIVE).evaluations["native"].results == expected
    with pytest.raises(ValueError, match="several predictions: ref_id 104 'left cup'"):
        score_predictions([*named, named[6]], data, NATIVE)


def test_equal_numbers_are_told_apart_by_their_order(data: RecordDataset) -> None:
    samples = [replace(data[index], sent_id=7) for index in range(3)]
    copies = Listed(samples)
    results = score_predictions(predict(copies), copies, NATIVE).evaluations["native"].results
    assert [one.predicted for one in results] == [int(shifted(one).sum()) for one in samples]


def test_few_pixels_count_as_nothing(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    layout.name = "grefcoco"
    for reference in layout.references:
        reference.update(no_target=False, ann_id=[reference["ann_id"]])
    layout.references[1].update(no_target=True, ann_id=[-1])
    data = load("grefcoco", layout.write(), "train")
    assert [data[index].names_nothing for index in range(5)] == [False, False, True, False, False]

    def some(sample: Sample) -> Tensor:
        mask = shifted(sample)
        mask[0, 0] = True
        return mask

    sizes = [int(some(data[index]).sum()) for index in range(5)]
    assert sizes == [176, 176, 1, 50, 50]
    predictions = predict(data, some)
    plain = score_predictions(predictions, data, ALL)
    scores = score_predictions(predictions, data, ALL, min_pixels=50)
    assert (plain.emptied, scores.emptied) == (0, 1)
    for name in CONVENTIONS:
        before, after = (one.evaluations[name].generalized for one in (plain, scores))
        assert before is not None
        assert after is not None
        assert (before["N_acc"], after["N_acc"]) == (0, 1)
        assert (before["T_acc"], after["T_acc"]) == (1, 1)
    assert score_predictions(predictions, data, NATIVE, min_pixels=51).emptied == 3


def test_ignored_regions_do_not_count(data: RecordDataset) -> None:
    record = data.records[1]
    region = parse_segmentation([square(0, 0, 27)])
    plain = score_predictions(predict(data), data, ALL)
    predictions = predict(data)
    data.records = [data.records[0], replace(record, ignored=(region,)), *data.records[2:]]
    scores = score_predictions(predictions, data, ALL)
    for name, evaluation in scores.evaluations.items():
        before = plain.evaluations[name].results
        assert [one for one in evaluation.results if one.index != 2] == [one for one in before if one.index != 2]
        counted, whole = evaluation.results[2], before[2]
        assert 0 < counted.true < whole.true
        assert 0 < counted.predicted < whole.predicted
    # The object is at columns 1 to 9 and rows 20 to 28, the prediction at columns 3 to 11.
    native = scores.evaluations["native"].results[2]
    assert (native.true, native.predicted, native.intersection) == (9 * 2, 9 * 2, 7 * 2)


def test_damaged_predictions_are_collected(data: RecordDataset, tmp_path: Path) -> None:
    predictions = predict(data)
    broken = tmp_path / "1.png"
    broken.write_bytes(b"no image")
    predictions[1] = replace(predictions[1], content=broken)
    with pytest.raises(ValueError, match=r"^1 predictions are not readable masks: .*1\.png cannot be read"):
        score_predictions(predictions, data, NATIVE)
    huge = parse_segmentation({"size": [20_000, 20_000], "counts": [400_000_000]})
    predictions[1] = replace(predictions[1], content=huge, where="line 1")
    with pytest.raises(
        ValueError, match=r"^1 .* not readable masks: line 1 \(sent_id 1\) has 20000 x 20000 pixels"
    ):
        score_predictions(predictions, data, NATIVE, resize=True)


def test_unusable_records_are_collected(tmp_path: Path) -> None:
    layout = small_refcoco(tmp_path)
    predictions = predict(open_refer(layout.write()))
    layout.references[0]["sentences"][0]["sent"] = "."
    layout.annotations[1]["segmentation"] = [square(1, 20, 9e9)]
    data = open_refer(layout.write())
    errors = ErrorCollector(strict=False)
    with pytest.raises(ValueError, match="a polygon of the mask spans"):
        score_predictions(predictions, data, NATIVE)
    scores = score_predictions(predictions, data, NATIVE, errors=errors)
    # The prediction of the expression without a word counts nowhere.
    assert scores.surplus == 1
    coverage = scores.evaluations["native"].coverage
    assert (coverage.measured, coverage.unreadable, coverage.without_words) == (3, 1, 1)
    assert len(errors.messages) == 1


def test_labels_group_expressions() -> None:
    data = images(2, 2)
    labels = [["left"], ["left", "right"], [], ["right"]]
    (evaluation,) = score_predictions(predict(data), data, NATIVE, labels=labels).evaluations.values()
    assert evaluation.counts == {"left": 2, "right": 2}
