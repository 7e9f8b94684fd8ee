"""Evaluation of a model: metrics by hand and by a direct implementation, conventions, unusable items."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from support.small_evaluation import COLLATE, damaged, varied_model
from support.small_training import SIZE, VOCABULARY, Listed, images, new_model
from torch import Tensor, nn
from torch.nn import functional as F

from cmsa_fast.data.errors import ErrorCollector
from cmsa_fast.data.types import Sample
from cmsa_fast.evaluation.conventions import CONVENTIONS
from cmsa_fast.evaluation.evaluate import evaluate
from cmsa_fast.models import for_inference
from cmsa_fast.models.base import ReferringModel


class LeftHalf(ReferringModel):
    """Predicts the left half of the square for any input."""

    def encode_image(self, images: Tensor) -> Tensor:
        return images

    def encode_text(self, words: Tensor, word_mask: Tensor | None = None) -> Tensor:
        return words

    def decode(self, features: Tensor, text: Tensor, image_index: Tensor | None = None) -> Tensor:
        sides = torch.ones(len(text), 1, *features.shape[2:])
        sides[..., features.shape[3] // 2 :] = -1
        return sides


def sample(height: int, width: int, image_id: int, columns: slice, kind: str) -> Sample:
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[:, columns] = True
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    return Sample(image, mask, "the dog", image_id, image_id, image_id, kind)


# Even widths, so that the middle of the square is the border between two columns.
HALVES = Listed(
    [
        sample(9, 40, 0, slice(0, 20), "exact"),
        sample(57, 22, 1, slice(0, 22), "half"),
        sample(5, 4, 2, slice(1, 3), "third"),
    ]
)


def test_metrics_by_hand() -> None:
    result = evaluate(LeftHalf(), HALVES, COLLATE)
    assert result.expressions == 3
    assert [one.intersection for one in result.results] == [180, 57 * 11, 5]
    assert [one.union for one in result.results] == [180, 57 * 22, 15]
    assert result.overall["overall_iou"] == (180 + 57 * 11 + 5) / (180 + 57 * 22 + 15)
    assert result.overall["mean_iou"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert result.overall["precision@0.5"] == pytest.approx(2 / 3)
    assert result.overall["precision@0.9"] == pytest.approx(1 / 3)
    assert {kind: value["mean_iou"] for kind, value in result.by_kind.items()} == pytest.approx(
        {"exact": 1, "half": 1 / 2, "third": 1 / 3}
    )
    assert result.counts == {"exact": 1, "half": 1, "third": 1}


def test_expression_counts_under_each_of_its_labels() -> None:
    labels = [["x", "y"], [], ["x"]]
    result = evaluate(LeftHalf(), HALVES, COLLATE, labels=labels)
    assert result.counts == {"x": 2, "y": 1}
    assert result.expressions == 3
    assert result.by_kind["x"]["mean_iou"] == pytest.approx((1 + 1 / 3) / 2)
    assert result.by_kind["y"]["mean_iou"] == 1
    plain = Listed([replace(one, kind="") for one in HALVES.samples])
    assert evaluate(LeftHalf(), plain, COLLATE).by_kind == {}
    with pytest.raises(ValueError, match="labels must have one entry for each of the 3"):
        evaluate(LeftHalf(), HALVES, COLLATE, labels=labels[:2])


def direct_mask(model: nn.Module, one: Sample) -> Tensor:
    """The predicted mask without letterbox and batch of the library."""
    height, width = one.mask.shape
    scale = SIZE / max(height, width)
    inner = (max(1, round(height * scale)), max(1, round(width * scale)))
    top, left = (SIZE - inner[0]) // 2, (SIZE - inner[1]) // 2
    pixels = one.image[None].float() / 255
    resized = F.interpolate(pixels, inner, mode="bilinear", antialias=True).clamp(0, 1)
    square = F.pad(resized, (left, SIZE - inner[1] - left, top, SIZE - inner[0] - top))
    logits = model(square, torch.tensor([VOCABULARY.encode(one.expression)]))
    inside = logits.sigmoid()[..., top : top + inner[0], left : left + inner[1]]
    return F.interpolate(inside, (height, width), mode="bilinear", align_corners=False)[0, 0] > 0.5


@torch.no_grad()
def test_results_equal_a_direct_implementation() -> None:
    samples = images(5, 3).samples
    # The expressions of an image are not consecutive, and differ in their number of words.
    data = Listed([samples[(7 * index) % 15] for index in range(15)])
    model = varied_model()
    masks = [(direct_mask(model, one), one.mask) for one in data.samples]
    result = evaluate(model, data, COLLATE)
    # Sums over padded words differ in the last bits, which may flip a pixel on the border.
    for name, combine in (("intersection", torch.logical_and), ("union", torch.logical_or)):
        expected = [int(combine(*pair).sum()) for pair in masks]
        assert [getattr(one, name) for one in result.results] == pytest.approx(expected, abs=2)
    assert 0.02 < result.overall["overall_iou"] < 0.98


@pytest.mark.parametrize("training", [True, False])
def test_model_keeps_its_mode(training: bool) -> None:
    model = new_model().train(training)
    evaluate(model, images(2), COLLATE)
    assert model.training is training
    with pytest.raises(ValueError, match="at least one word"):
        evaluate(model, damaged(images(2), 1), COLLATE)
    assert model.training is training


def test_progress_bar_counts_expressions(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(LeftHalf(), images(3), COLLATE, title="look")
    shown = capsys.readouterr().err
    assert "look" in shown
    assert "6/6" in shown


@pytest.mark.parametrize("name", CONVENTIONS)
def test_each_convention_has_its_own_rules(name: str) -> None:
    model, data, convention = varied_model(), images(5, 3), CONVENTIONS[name]
    metrics = convention.metrics()
    for image in range(5):
        batch = COLLATE([one for one in data.samples if one.image_id == image])
        with torch.no_grad():
            logits = for_inference(model)(batch.images, batch.words, batch.word_mask, batch.image_index)
        for one, square, box in zip(batch.samples, logits[:, 0], batch.letterboxes, strict=True):
            metrics.update(convention.prediction(square.sigmoid(), box), convention.truth(one.mask))
    result = evaluate(model, data, COLLATE, convention=convention)
    assert result.convention == name
    assert result.overall == metrics.compute()
    assert [one.iou for one in result.results] == metrics.ious
    assert [one.predicted for one in result.results] == metrics.predicted


class Inverter:
    """A refiner that inverts every probability in other threads, so that results come in any order."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []
        self._threads = ThreadPoolExecutor(4)

    def submit(self, image: Tensor, probability: Tensor) -> Future[Tensor]:
        assert image.dtype == torch.uint8
        assert image.shape == (3, *probability.shape)
        self.sizes.append((probability.shape[0], probability.shape[1]))
        return self._threads.submit(lambda: 1 - probability)


@pytest.mark.parametrize("name", ["native", "cmsa"])
def test_refiner_runs_at_the_size_of_the_convention(name: str) -> None:
    model, data = varied_model(), images(7, 12)
    refiner, convention = Inverter(), CONVENTIONS[name]
    plain = evaluate(model, data, COLLATE, convention=convention)
    refined = evaluate(model, data, COLLATE, convention=convention, refiner=refiner)
    assert [one.index for one in refined.results] == list(range(84))
    own = [(one.height, one.width) for one in refined.results]
    assert sorted(refiner.sizes) == sorted(own if name == "native" else [(SIZE, SIZE)] * 84)
    if name == "native":
        for before, after in zip(plain.results, refined.results, strict=True):
            assert before.predicted + after.predicted == before.height * before.width


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unusable_items_are_counted_and_named(num_workers: int) -> None:
    data, errors = damaged(images(4, 3), 0, 1, 2, 7), ErrorCollector(strict=False)
    options = {"errors": errors, "num_workers": num_workers, "images_per_batch": 1}
    result = evaluate(varied_model(), data, COLLATE, **options)  # type: ignore[arg-type]
    assert result.coverage.unreadable == result.coverage.missing == errors.count == 4
    assert result.coverage.measured == result.expressions == 8
    assert [one.index for one in result.results] == [3, 4, 5, 6, 8, 9, 10, 11]
    assert all("word" in line and "sent_id" in line for line in errors.messages)
    assert result.results[0] == evaluate(varied_model(), images(4, 3), COLLATE).results[3]


def test_no_usable_item_raises() -> None:
    with pytest.raises(ValueError, match="None of the 2 expressions"):
        evaluate(varied_model(), damaged(images(2, 1), 0, 1), COLLATE, errors=ErrorCollector(strict=False))
    with pytest.raises(ValueError, match="at least one item"):
        evaluate(LeftHalf(), Listed([]), COLLATE)


def test_expressions_without_target_add_generalized_metrics() -> None:
    data = images(3, 2)
    assert evaluate(varied_model(), data, COLLATE).generalized is None
    empty = Listed(
        [
            replace(one, mask=torch.zeros_like(one.mask), names_nothing=True) if place % 2 else one
            for place, one in enumerate(data.samples)
        ]
    )
    result = evaluate(varied_model(), empty, COLLATE)
    assert result.generalized is not None
    nothing = [one for one in result.results if one.share == 0]
    assert len(nothing) == 3
    assert result.generalized["N_acc"] == sum(one.predicted == 0 for one in nothing) / 3
    assert result.by_size["nothing in the image"]["expressions"] == 3


def test_object_that_lost_its_mask_is_not_without_target() -> None:
    data = images(3, 2).samples
    lost = Listed([replace(data[0], mask=torch.zeros_like(data[0].mask)), *data[1:]])
    result = evaluate(varied_model(), lost, COLLATE)
    assert result.generalized is None
    assert result.results[0].share == 0


@pytest.mark.parametrize(("images_per_batch", "num_workers"), [(2, 0), (3, 1), (16, 0)])
def test_bitwise_identical_for_any_batch_size(images_per_batch: int, num_workers: int) -> None:
    samples = images(5, 3).samples
    data = Listed([samples[(7 * index) % 15] for index in range(15)])
    model, options = varied_model(), {"images_per_batch": images_per_batch}
    together = evaluate(model, data, COLLATE, num_workers=num_workers, **options)
    assert together == evaluate(model, data, COLLATE, images_per_batch=1)
    assert [result.index for result in together.results] == list(range(15))


# For processes that do not know where pytest finds the package and the tests.
PATHS = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
PROGRAM = """
import json, os, sys
from support.small_evaluation import COLLATE, damaged, varied_model
from support.small_training import images
from cmsa_fast.evaluation.evaluate import evaluate
from cmsa_fast.system.processes import joined_processes

with joined_processes() as processes:
    result = evaluate(
        varied_model(), images(7, 3), COLLATE,
        images_per_batch=int(sys.argv[1]), processes=processes,
    )
    parts = processes.gather(result.summary())
    if processes.is_first:
        assert all(part == parts[0] for part in parts)
        rows = [[r.index, r.intersection, r.predicted, r.true] for r in result.results]
        print(json.dumps([result.overall, rows]))
threads = [open(f"/proc/self/task/{thread}/comm").read() for thread in os.listdir("/proc/self/task")]
# A thread of the process group that outlives it can abort the interpreter when it exits.
assert not any("gloo" in name for name in threads), threads
"""


@pytest.mark.parametrize(("processes", "images_per_batch"), [(2, 2), pytest.param(4, 1, marks=pytest.mark.slow)])
def test_bitwise_identical_for_any_number_of_processes(
    processes: int, images_per_batch: int, tmp_path: Path
) -> None:
    """Seven images, which neither 2 nor 4 divides."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=PATHS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", str(program), str(images_per_batch)]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert output.returncode == 0, output.stderr
    overall, rows = json.loads(output.stdout)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = evaluate(varied_model(), images(7, 3), COLLATE)
    finally:
        torch.set_num_threads(threads)
    assert overall == alone.overall
    assert rows == [[r.index, r.intersection, r.predicted, r.true] for r in alone.results]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")
def test_on_a_gpu() -> None:
    model, data = varied_model(), images(5, 3)
    here = evaluate(model, data, COLLATE)
    there = evaluate(model.cuda(), data, COLLATE, device="cuda")
    assert [one.true for one in there.results] == [one.true for one in here.results]
    assert [one.iou for one in there.results] == pytest.approx([one.iou for one in here.results], abs=0.05)
