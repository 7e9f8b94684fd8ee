"""What evaluation does with conventions, refiners, damaged items, groups of expressions and processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from support.small_training import SIZE, VOCABULARY, Listed, images, new_model
from torch import Tensor

from cmsa_fast.data.batch import Collate
from cmsa_fast.data.errors import ErrorCollector
from cmsa_fast.data.types import Sample
from cmsa_fast.evaluation.conventions import CONVENTIONS
from cmsa_fast.evaluation.evaluate import evaluate
from cmsa_fast.evaluation.inference import predict_probabilities
from cmsa_fast.evaluation.metrics import SegmentationMetrics
from cmsa_fast.models import for_inference

COLLATE = Collate(VOCABULARY, SIZE)


def confident_model() -> torch.nn.Module:
    model = new_model(2).eval()
    data = images(5, 3)
    with torch.no_grad():
        logits = model(*_inputs(data[0]))
        model.mask.bias -= float(logits.median())  # type: ignore[union-attr, operator]
        model.mask.weight *= 20  # type: ignore[union-attr, operator]
    return model


def _inputs(sample: Sample) -> tuple[Tensor, Tensor]:
    batch = COLLATE([sample])
    return batch.images, batch.words


@pytest.mark.parametrize("name", CONVENTIONS)
def test_each_convention_measures_by_its_own_rules(name: str) -> None:
    model, data, convention = confident_model(), images(5, 3), CONVENTIONS[name]
    metrics: SegmentationMetrics = convention.metrics()
    for image in range(5):
        batch = COLLATE([one for one in data.samples if one.image_id == image])
        with torch.no_grad():
            logits = for_inference(model)(
                batch.images, batch.words, batch.word_mask, batch.image_index
            )
        for one, square, box in zip(batch.samples, logits[:, 0], batch.letterboxes, strict=True):
            metrics.update(convention.prediction(square.sigmoid(), box), convention.truth(one.mask))
    result = evaluate(model, data, COLLATE, convention=convention)
    assert result.convention == name
    assert result.overall == metrics.compute()
    assert [one.iou for one in result.results] == metrics.ious
    assert [one.predicted for one in result.results] == metrics.predicted


def test_conventions_differ() -> None:
    model, data = confident_model(), images(5, 3)
    found = {
        name: evaluate(model, data, COLLATE, convention=convention).overall["overall_iou"]
        for name, convention in CONVENTIONS.items()
    }
    assert len(set(found.values())) == len(CONVENTIONS)


class Inverter:
    """Refines by turning every probability round; answers from other threads, the first ones last."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []
        self._threads = ThreadPoolExecutor(4)

    def submit(self, image: Tensor, probability: Tensor) -> Future[Tensor]:
        assert image.dtype == torch.uint8
        assert image.shape == (3, *probability.shape)
        self.sizes.append((probability.shape[0], probability.shape[1]))
        return self._threads.submit(lambda: 1 - probability)


@pytest.mark.parametrize("name", ["native", "cmsa"])
def test_a_refiner_works_where_the_convention_says(name: str) -> None:
    model, data = confident_model(), images(7, 12)
    refiner = Inverter()
    convention = CONVENTIONS[name]
    plain = evaluate(model, data, COLLATE, convention=convention)
    turned = evaluate(model, data, COLLATE, convention=convention, refiner=refiner)
    assert [one.index for one in turned.results] == list(range(84))
    own = [(one.height, one.width) for one in turned.results]
    assert sorted(refiner.sizes) == sorted(own if name == "native" else [(SIZE, SIZE)] * 84)
    if name == "native":
        for before, after in zip(plain.results, turned.results, strict=True):
            assert before.predicted + after.predicted == before.height * before.width


def damaged(data: Listed, *places: int) -> Listed:
    return Listed(
        [
            replace(one, expression="") if place in places else one
            for place, one in enumerate(data.samples)
        ]
    )


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_cannot_be_used_is_counted_and_named(num_workers: int) -> None:
    data = damaged(images(4, 3), 0, 1, 2, 7)
    errors = ErrorCollector(strict=False)
    result = evaluate(
        confident_model(),
        data,
        COLLATE,
        errors=errors,
        num_workers=num_workers,
        images_per_batch=1,
    )
    assert result.unusable == errors.count == 4
    assert result.expressions == 8
    assert [one.index for one in result.results] == [3, 4, 5, 6, 8, 9, 10, 11]
    assert all("word" in line and "sent_id" in line for line in errors.messages)
    whole = evaluate(confident_model(), images(4, 3), COLLATE)
    assert result.results[0] == whole.results[3]


def test_a_lost_expression_moves_no_other_to_another_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of images with 20 expressions, 16 go through the model together, less those that are left out."""
    data = damaged(images(3, 20), 3, 17, 45)
    seen: dict[int, list[Tensor]] = {}

    def recorded(*arguments: Any) -> list[Tensor]:
        found = predict_probabilities(*arguments)
        seen[at_a_time] += found
        return found

    monkeypatch.setattr("cmsa_fast.evaluation.evaluate.predict_probabilities", recorded)
    model = confident_model()
    for at_a_time in (1, 2, 16):
        seen[at_a_time] = []
        evaluate(
            model, data, COLLATE, errors=ErrorCollector(strict=False), images_per_batch=at_a_time
        )
    for other in (2, 16):
        assert len(seen[1]) == len(seen[other]) == 57
        assert all(map(torch.equal, seen[1], seen[other]))


def test_one_problem_is_an_error_where_asked() -> None:
    data = damaged(images(4, 3), 7)
    for errors in (None, ErrorCollector(strict=True)):
        with pytest.raises(ValueError, match="at least one word"):
            evaluate(confident_model(), data, COLLATE, errors=errors)


def test_nothing_usable_is_an_error() -> None:
    data = damaged(images(2, 1), 0, 1)
    with pytest.raises(ValueError, match="None of the 2 expressions"):
        evaluate(confident_model(), data, COLLATE, errors=ErrorCollector(strict=False))


def test_expressions_that_name_nothing_get_their_measures() -> None:
    data = images(3, 2)
    assert evaluate(confident_model(), data, COLLATE).generalized is None
    empty = Listed(
        [
            replace(one, mask=torch.zeros_like(one.mask), names_nothing=True) if place % 2 else one
            for place, one in enumerate(data.samples)
        ]
    )
    result = evaluate(confident_model(), empty, COLLATE)
    assert result.generalized is not None
    nothing = [one for one in result.results if one.share == 0]
    assert len(nothing) == 3
    right = sum(one.predicted == 0 for one in nothing)
    assert result.generalized["N_acc"] == pytest.approx(right / 3)
    assert result.by_size["nothing in the image"]["sentences"] == 3


def test_an_object_that_lost_its_mask_does_not_name_nothing() -> None:
    data = images(3, 2).samples
    lost = Listed([replace(data[0], mask=torch.zeros_like(data[0].mask)), *data[1:]])
    result = evaluate(confident_model(), lost, COLLATE)
    assert result.generalized is None
    assert result.results[0].share == 0


def test_groups_hold_every_expression_once() -> None:
    result = evaluate(confident_model(), images(5, 3), COLLATE)
    for groups in (result.by_length, result.by_size):
        assert sum(group["sentences"] for group in groups.values()) == 15
    lengths = {"1-2 words": (1, 2), "3 words": (3,), "4-5 words": (4, 5)}
    for name, words in lengths.items():
        chosen = [one for one in result.results if one.words in words]
        if chosen:
            union = sum(one.union for one in chosen)
            expected = sum(one.intersection for one in chosen) / union
            assert result.by_length[name]["overall_iou"] == expected


# For processes that do not know where pytest finds the package and the tests.
PATHS = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
PROGRAM = """
import json, sys
from support.small_training import SIZE, VOCABULARY, images
from cli.test_evaluate_rules import COLLATE, confident_model
from cmsa_fast.evaluation.evaluate import evaluate
from cmsa_fast.system.processes import joined_processes

with joined_processes() as processes:
    result = evaluate(
        confident_model(), images(7, 3), COLLATE,
        images_per_batch=int(sys.argv[1]), processes=processes,
    )
    parts = processes.gather(result.summary())
    if processes.is_first:
        assert all(part == parts[0] for part in parts)
        rows = [[r.index, r.intersection, r.predicted, r.true] for r in result.results]
        print(json.dumps([result.overall, rows]))
"""


@pytest.mark.parametrize(
    ("processes", "images_per_batch"), [(2, 2), pytest.param(4, 1, marks=pytest.mark.slow)]
)
def test_the_same_to_the_bit_for_any_number_of_processes(
    processes: int, images_per_batch: int, tmp_path: Path
) -> None:
    """Seven images: neither 2 nor 4 processes divide them."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=PATHS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", str(program), str(images_per_batch)]
    output = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert output.returncode == 0, output.stderr
    overall, rows = json.loads(output.stdout)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = evaluate(confident_model(), images(7, 3), COLLATE)
    finally:
        torch.set_num_threads(threads)
    assert overall == alone.overall
    assert rows == [[r.index, r.intersection, r.predicted, r.true] for r in alone.results]
