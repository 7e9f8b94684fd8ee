"""Sentences shuffled among pictures."""

from __future__ import annotations

import logging
from collections import Counter

import pytest
import torch
from support.small_training import Listed, pictures

from cmsa_fast.data.sample import Sample
from cmsa_fast.data.shuffled import ShuffledSentences

COUNTS = [[1, 1], [2, 1, 1], [3, 3], [1, 2, 3, 4, 2], [5, 1, 1, 1, 1, 1], [1] * 17]
LOPSIDED = [[3, 1], [1, 7, 2], [9, 1]]


def data(counts: list[int]) -> Listed:
    """Pictures, interleaved, with that many sentences each; every sentence names its picture."""
    image, mask = torch.zeros(3, 5, 7, dtype=torch.uint8), torch.ones(5, 7, dtype=torch.bool)
    pairs = [(turn, picture) for picture, count in enumerate(counts) for turn in range(count)]
    return Listed(
        [
            Sample(image, mask, f"{picture} {turn}", 10 * picture + 3, index, index, "place")
            for index, (turn, picture) in enumerate(sorted(pairs))
        ]
    )


def kept(shuffled: ShuffledSentences) -> int:
    pairs = zip(shuffled.image_ids(), shuffled.sentences(), strict=True)
    return sum(10 * int(sentence.split()[0]) + 3 == image for image, sentence in pairs)


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("seed", range(5))
def test_no_sentence_stays_with_its_picture(
    counts: list[int], seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    shuffled = ShuffledSentences(data(counts), seed)
    assert kept(shuffled) == 0
    assert not caplog.text


@pytest.mark.parametrize("counts", LOPSIDED)
def test_as_few_as_possible_stay(counts: list[int], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        shuffled = ShuffledSentences(data(counts))
    least = 2 * max(counts) - sum(counts)
    assert kept(shuffled) == least
    assert f"{least} of {sum(counts)} sentences stay" in caplog.text


@pytest.mark.parametrize("counts", COUNTS + LOPSIDED)
def test_sentences_are_permuted_and_the_rest_stays(counts: list[int]) -> None:
    original = data(counts)
    shuffled = ShuffledSentences(original, 2)
    assert Counter(shuffled.sentences()) == Counter(original.sentences())
    assert len(shuffled) == len(original)
    assert shuffled.image_ids() == original.image_ids()
    for index, sentence in enumerate(shuffled.sentences()):
        sample = shuffled[index]
        assert sample.sentence == sentence
        assert sample.image is original[index].image
        assert sample.mask is original[index].mask
        assert (sample.ref_id, sample.kind) == (original[index].ref_id, "")


def test_the_seed_decides() -> None:
    original = data([1, 2, 3, 4, 2])
    orders = [ShuffledSentences(original, seed).sentences() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_one_picture_is_not_enough() -> None:
    with pytest.raises(ValueError, match="at least two pictures"):
        ShuffledSentences(pictures(1, 3))
