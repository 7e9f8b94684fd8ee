"""Masks of two published models under the conventions, against the scores published with them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cmsa_fast.data import load
from cmsa_fast.data.transforms import Letterbox
from cmsa_fast.evaluation.conventions import CONVENTIONS
from cmsa_fast.evaluation.mask_files import read_predictions
from cmsa_fast.evaluation.metrics import SegmentationMetrics
from cmsa_fast.evaluation.predictions import score_predictions

MODELS = ("base", "ours")

# Expressions whose published IoU, of two decimals, differs from I / U by more than rounding. These masks were
# recovered from published overlays (true ones to within 2 pixels of the recorded boxes), so they are not exactly
# those that were scored.
FURTHER = {"base": {91151, 78040, 37666}, "ours": {88493, 20584, 10551, 122543, 9366, 47968, 26735, 101294}}


def expressions(real: Path, model: str) -> Iterator[tuple[dict[str, Any], Tensor, Tensor]]:
    """Record, predicted and true mask of each of the 66 expressions, in the order of the splits."""
    folder = real / "refer" / "predictions"
    records = json.loads((folder / "published_iou.json").read_text())
    published = {(record["ref_id"], record["sent_id"]): record for record in records}
    for split in ("train", "val", "testA"):
        dataset = load("refer", real / "refer", split)
        for sample in (dataset[index] for index in range(len(dataset))):
            record = published.pop((sample.ref_id, sample.sent_id))
            with Image.open(folder / model / record["mask"]) as image:
                yield record, torch.from_numpy(np.array(image) > 0), sample.mask
    assert not published


@pytest.mark.parametrize("model", MODELS)
def test_pixels_and_native_ious_are_the_published_ones(real: Path, model: str) -> None:
    metrics = SegmentationMetrics()
    expected = []
    for record, prediction, truth in expressions(real, model):
        metrics.update(prediction, truth)
        expected.append(record[model])
    assert metrics.count == 66
    assert metrics.intersections == [record["I"] for record in expected]
    assert metrics.unions == [record["U"] for record in expected]
    ious = [record["iou_native"] for record in expected]
    assert metrics.ious == ious
    values = metrics.compute()
    intersection, union = (sum(record[key] for record in expected) for key in "IU")
    assert values["overall_iou"] == intersection / union
    assert values["mean_iou"] == math.fsum(ious) / 66
    for tenths in (5, 6, 7, 8, 9):
        passed = sum(value >= tenths / 10 for value in ious)
        assert values[f"precision@0.{tenths}"] == passed / 66


@pytest.mark.parametrize("model", MODELS)
def test_scores_of_the_published_masks(real: Path, model: str, tmp_path: Path) -> None:
    folder = real / "refer" / "predictions"
    published = {record["sent_id"]: record for record in json.loads((folder / "published_iou.json").read_text())}
    scored = 0
    for split in ("train", "val", "testA"):
        dataset = load("refer", real / "refer", split)
        (tmp_path / split).mkdir()
        for *_, sent_id in dataset.ids():
            (tmp_path / split / f"{sent_id}.png").symlink_to(folder / model / published[sent_id]["mask"])
        predictions = read_predictions(tmp_path / split)
        results = score_predictions(predictions, dataset, [CONVENTIONS["native"]]).evaluations["native"].results
        for one in results:
            expected = published[one.sent_id][model]
            assert (one.intersection, one.union, one.iou) == (expected["I"], expected["U"], expected["iou_native"])
        scored += len(results)
    assert scored == 66


@pytest.mark.parametrize("model", MODELS)
def test_two_published_decimals(real: Path, model: str) -> None:
    further = {}
    for record, prediction, truth in expressions(real, model):
        metrics = SegmentationMetrics()
        metrics.update(prediction, truth)
        distance = abs(metrics.ious[0] - record[model]["iou_published_2dp"])
        if distance > 0.005 + 1e-12:
            further[record["sent_id"]] = distance
    assert set(further) == FURTHER[model]
    assert max(further.values()) < 0.0086


def test_all_published_digits(real: Path) -> None:
    # One model's scores are published with all digits, for the original masks: see FURTHER.
    distances = []
    for record, prediction, truth in expressions(real, "base"):
        metrics = SegmentationMetrics()
        metrics.update(prediction, truth)
        distances.append(abs(metrics.ious[0] - record["base"]["iou_published_full_json"]))
    assert len(distances) == 66
    assert max(distances) < 0.003
    assert np.median(distances) < 0.0002


def test_cost_of_the_conventions_for_a_good_model(real: Path) -> None:
    names = ("cmsa", "lavt")
    native, metrics = SegmentationMetrics(), {name: CONVENTIONS[name].metrics() for name in names}
    ceiling = {name: CONVENTIONS[name].metrics() for name in ("native", "cmsa")}
    for _, prediction, truth in expressions(real, "ours"):
        native.update(prediction, truth)
        box = Letterbox(*truth.shape, 320)
        lavt, cmsa = CONVENTIONS["lavt"], CONVENTIONS["cmsa"]
        square = box.mask(prediction).float()
        metrics["cmsa"].update(cmsa.prediction(square, box), cmsa.truth(truth))
        metrics["lavt"].update(lavt.prediction_at_own_size(prediction.float()), lavt.truth(truth))
        for name, seen in ceiling.items():
            seen.update(CONVENTIONS[name].prediction(box.mask(truth).float(), box), truth)
    own = native.compute()
    cost = {name: own["mean_iou"] - seen.compute()["mean_iou"] for name, seen in metrics.items()}
    # An independent measurement on 107 expressions, which include these 66, found .9285 at own size, .9226 by
    # CMSA's rules and .9283 by LAVT's; CMSA's rules reduced precision at 0.9 from 1.000 to .888.
    assert cost["cmsa"] == pytest.approx(0.9285 - 0.9226, abs=0.0005)
    assert cost["lavt"] == pytest.approx(0.9285 - 0.9283, abs=0.0002)
    assert own["precision@0.9"] == 1
    assert metrics["cmsa"].compute()["precision@0.9"] == pytest.approx(0.888, abs=0.01)
    # Upper bound for a network of 320 pixels: .9917 and .9771 in that measurement.
    best = {name: seen.compute()["mean_iou"] for name, seen in ceiling.items()}
    assert best["native"] == pytest.approx(0.9917, abs=0.0006)
    assert best["cmsa"] == pytest.approx(0.9771, abs=0.0003)
