"""Control data sets whose expressions are shuffled among images."""

from __future__ import annotations

import logging
from collections import Counter

import pytest
import torch
from support.small_training import Listed, images

from cmsa_fast.data.dataset import ShuffledExpressions
from cmsa_fast.data.types import Sample

COUNTS = [[1, 1], [2, 1, 1], [3, 3], [1, 2, 3, 4, 2], [5, 1, 1, 1, 1, 1], [1] * 17]
LOPSIDED = [[3, 1], [1, 7, 2], [9, 1]]


def data(counts: list[int]) -> Listed:
    """Images, interleaved, with that many expressions each; every expression names its image."""
    image, mask = torch.zeros(3, 5, 7, dtype=torch.uint8), torch.ones(5, 7, dtype=torch.bool)
    pairs = [(turn, photo) for photo, count in enumerate(counts) for turn in range(count)]
    return Listed(
        [
            Sample(image, mask, f"{photo} {turn}", 10 * photo + 3, index, index, "place")
            for index, (turn, photo) in enumerate(sorted(pairs))
        ]
    )


def kept(shuffled: ShuffledExpressions) -> int:
    pairs = zip(shuffled.image_ids(), shuffled.expressions(), strict=True)
    return sum(10 * int(expression.split()[0]) + 3 == image for image, expression in pairs)


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("seed", range(5))
def test_no_expression_stays_with_its_image(
    counts: list[int], seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    shuffled = ShuffledExpressions(data(counts), seed)
    assert kept(shuffled) == 0
    assert not caplog.text


@pytest.mark.parametrize("counts", LOPSIDED)
def test_as_few_expressions_as_possible_stay(counts: list[int], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        shuffled = ShuffledExpressions(data(counts))
    least = 2 * max(counts) - sum(counts)
    assert kept(shuffled) == least
    assert f"{least} of {sum(counts)} expressions stay" in caplog.text


@pytest.mark.parametrize("counts", COUNTS + LOPSIDED)
def test_expressions_are_permuted_and_the_rest_stays(counts: list[int]) -> None:
    original = data(counts)
    shuffled = ShuffledExpressions(original, 2)
    assert Counter(shuffled.expressions()) == Counter(original.expressions())
    assert len(shuffled) == len(original)
    assert shuffled.image_ids() == original.image_ids()
    for index, expression in enumerate(shuffled.expressions()):
        sample = shuffled[index]
        assert sample.expression == expression
        assert sample.image is original[index].image
        assert sample.mask is original[index].mask
        assert (sample.ref_id, sample.kind) == (original[index].ref_id, "")


def test_seed_decides() -> None:
    original = data([1, 2, 3, 4, 2])
    orders = [ShuffledExpressions(original, seed).expressions() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_one_image_is_not_enough() -> None:
    with pytest.raises(ValueError, match="at least two images"):
        ShuffledExpressions(images(1, 3))
