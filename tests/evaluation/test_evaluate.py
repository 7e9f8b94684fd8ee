"""Evaluation at the images' own size, by hand and against the slow way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.small_training import SIZE, VOCABULARY, Listed, images, new_model
from torch import Tensor, nn
from torch.nn import functional as F

from cmsa_fast.data.batch import Collate
from cmsa_fast.data.types import Sample
from cmsa_fast.evaluation.evaluate import evaluate
from cmsa_fast.evaluation.inference import predict_batch, predict_probabilities


class LeftHalf(nn.Module):
    """Finds the left half of the square, whatever is in it."""

    def encode_image(self, images: Tensor) -> Tensor:
        return images

    def segment(self, images: Tensor, words: Tensor, mask: Tensor, index: Tensor) -> Tensor:
        sides = torch.ones(len(index), 1, *images.shape[2:])
        sides[..., images.shape[3] // 2 :] = -1
        return sides


def sample(height: int, width: int, photo: int, columns: slice, kind: str = "") -> Sample:
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[:, columns] = True
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    return Sample(image, mask, "the dog", photo, photo, photo, kind)


# Even widths, so that the middle of the square is the border between two columns.
WIDE = sample(9, 40, 0, slice(0, 20), "exact")
HIGH = sample(57, 22, 1, slice(0, 22), "half")
SMALL = sample(5, 4, 2, slice(1, 3), "third")
AREAS = {"exact": (180, 180), "half": (57 * 11, 57 * 22), "third": (5, 15)}


def test_masks_have_the_images_own_size() -> None:
    batch = Collate(VOCABULARY, SIZE)([WIDE, HIGH, SMALL])
    for mask, one in zip(predict_batch(LeftHalf(), batch, "cpu"), (WIDE, HIGH, SMALL), strict=True):
        expected = torch.zeros_like(one.mask)
        expected[:, : one.mask.shape[1] // 2] = True
        assert mask.dtype == torch.bool
        assert torch.equal(mask, expected)


def test_metrics_by_hand() -> None:
    result = evaluate(LeftHalf(), Listed([WIDE, HIGH, SMALL]), Collate(VOCABULARY, SIZE))
    intersections, unions = zip(*AREAS.values(), strict=True)
    assert result.expressions == 3
    assert result.overall["overall_iou"] == pytest.approx(sum(intersections) / sum(unions))
    assert result.overall["mean_iou"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert result.overall["precision@0.5"] == pytest.approx(2 / 3)
    assert result.overall["precision@0.9"] == pytest.approx(1 / 3)
    assert {kind: value["mean_iou"] for kind, value in result.by_kind.items()} == pytest.approx(
        {"exact": 1, "half": 1 / 2, "third": 1 / 3}
    )
    assert result.counts == {"exact": 1, "half": 1, "third": 1}


def test_labels_count_a_expression_under_each_and_under_none() -> None:
    data = Listed([WIDE, HIGH, SMALL])
    labels = [["x", "y"], [], ["x"]]
    result = evaluate(LeftHalf(), data, Collate(VOCABULARY, SIZE), labels=labels)
    assert result.counts == {"x": 2, "y": 1}
    assert result.expressions == 3
    assert result.by_kind["x"]["mean_iou"] == pytest.approx((1 + 1 / 3) / 2)
    assert result.by_kind["y"]["mean_iou"] == 1
    plain = Listed([replace(one, kind="") for one in data.samples])
    assert evaluate(LeftHalf(), plain, Collate(VOCABULARY, SIZE)).by_kind == {}
    with pytest.raises(ValueError, match="labels must have one entry for each of the 3"):
        evaluate(LeftHalf(), data, Collate(VOCABULARY, SIZE), labels=labels[:2])


def scattered() -> Listed:
    """Odd sizes, unequal numbers of words, the expressions of an image apart from one another."""
    samples = images(5, 3).samples
    return Listed([samples[(7 * index) % 15] for index in range(15)])


def trained_to_halves(data: Listed) -> nn.Module:
    """A random model whose masks are neither empty nor full."""
    model = new_model(2).eval()
    with torch.no_grad():
        model.mask.bias -= float(_logits(model, data[0]).median())  # type: ignore[union-attr, operator]
    return model


@torch.no_grad()
def test_the_same_as_expression_by_expression() -> None:
    data = scattered()
    model = trained_to_halves(data)
    intersections, unions = [], []
    for one in data.samples:
        found = _resized(_logits(model, one).sigmoid(), one) > 0.5
        intersections.append(int((found & one.mask).sum()))
        unions.append(int((found | one.mask).sum()))
    result = evaluate(model, data, Collate(VOCABULARY, SIZE))
    # Sums over padded words differ in the last bits, which may turn a pixel on the border.
    assert [one.intersection for one in result.results] == pytest.approx(intersections, abs=2)
    assert [one.union for one in result.results] == pytest.approx(unions, abs=2)
    assert result.overall["overall_iou"] == pytest.approx(
        sum(intersections) / sum(unions), abs=2e-3
    )
    assert 0.02 < result.overall["overall_iou"] < 0.98


@pytest.mark.parametrize(("images_per_batch", "num_workers"), [(2, 0), (3, 1), (16, 0)])
def test_the_same_to_the_bit_for_any_batch(images_per_batch: int, num_workers: int) -> None:
    data = scattered()
    model = trained_to_halves(data)
    alone = evaluate(model, data, Collate(VOCABULARY, SIZE), images_per_batch=1)
    together = evaluate(
        model,
        data,
        Collate(VOCABULARY, SIZE),
        images_per_batch=images_per_batch,
        num_workers=num_workers,
    )
    assert together == alone
    assert [result.index for result in together.results] == list(range(15))


def test_probabilities_do_not_depend_on_the_batch() -> None:
    data = scattered()
    model = trained_to_halves(data)
    collate = Collate(VOCABULARY, SIZE)
    whole = predict_probabilities(model, collate(data.samples), "cpu")
    images_alone = {
        image_id: [one for one in data.samples if one.image_id == image_id]
        for image_id in set(data.image_ids())
    }
    for samples in images_alone.values():
        for one, probability in zip(
            samples, predict_probabilities(model, collate(samples), "cpu"), strict=True
        ):
            assert torch.equal(probability, whole[data.samples.index(one)])


def _logits(model: nn.Module, one: Sample) -> Tensor:
    """Logits over the image's place in the square, without the library's letterbox: [1, 1, h, w]."""
    top, left, inner = _place(one)
    pixels = one.image[None].float() / 255
    resized = F.interpolate(pixels, inner, mode="bilinear", antialias=True).clamp(0, 1)
    square = F.pad(resized, (left, SIZE - inner[1] - left, top, SIZE - inner[0] - top))
    words = torch.tensor([VOCABULARY.encode(one.expression)])
    return model(square, words)[..., top : top + inner[0], left : left + inner[1]]


def _resized(probability: Tensor, one: Sample) -> Tensor:
    """[1, 1, h, w] at the image's own size."""
    size = one.mask.shape
    return F.interpolate(probability, size, mode="bilinear", align_corners=False)[0, 0]


def _place(one: Sample) -> tuple[int, int, tuple[int, int]]:
    height, width = one.mask.shape
    scale = SIZE / max(height, width)
    inner = (max(1, round(height * scale)), max(1, round(width * scale)))
    return (SIZE - inner[0]) // 2, (SIZE - inner[1]) // 2, inner


@pytest.mark.parametrize("training", [True, False])
def test_the_model_keeps_its_mode(training: bool) -> None:
    model = new_model().train(training)
    evaluate(model, images(2), Collate(VOCABULARY, SIZE))
    assert model.training is training
    broken = Listed([replace(one, expression="") for one in images(2).samples])
    with pytest.raises(ValueError, match="at least one word"):
        evaluate(model, broken, Collate(VOCABULARY, SIZE))
    assert model.training is training


def test_the_bar_counts_expressions(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(LeftHalf(), images(3), Collate(VOCABULARY, SIZE), title="look")
    shown = capsys.readouterr().err
    assert "look" in shown
    assert "6/6" in shown


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")
def test_on_a_gpu() -> None:
    data = scattered()
    model = trained_to_halves(data)
    here = evaluate(model, data, Collate(VOCABULARY, SIZE))
    there = evaluate(model.cuda(), data, Collate(VOCABULARY, SIZE), device="cuda")
    assert [one.true for one in there.results] == [one.true for one in here.results]
    assert [one.iou for one in there.results] == pytest.approx(
        [one.iou for one in here.results], abs=0.05
    )


def test_an_empty_data_set() -> None:
    with pytest.raises(ValueError, match="at least one item"):
        evaluate(LeftHalf(), Listed([]), Collate(VOCABULARY, SIZE))
