"""Tests of the samplers: batches grouped by image, and batches of training steps."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from cmsa_fast.data.sampler import ImageBatchSampler, StepBatches

IMAGE_IDS = [5, 5, 9, 5, 1, 9, 5, 30, 5, 1, 12]  # items per image: 5, 2, 2, 1, 1


def epoch(sampler: ImageBatchSampler, number: int) -> list[list[int]]:
    sampler.set_epoch(number)
    return list(sampler)


@pytest.mark.parametrize("images", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("expressions", [1, 2, 3, 9])
def test_epoch_visits_every_image_once(images: int, expressions: int) -> None:
    sampler = ImageBatchSampler(IMAGE_IDS, images, expressions)
    batches = epoch(sampler, 3)
    assert len(batches) == len(sampler) == -(-5 // images)
    visited: Counter[int] = Counter()
    for batch in batches:
        assert len(batch) == len(set(batch))
        counts = Counter(IMAGE_IDS[item] for item in batch)
        for image_id, count in counts.items():
            assert count == min(expressions, IMAGE_IDS.count(image_id))
        assert len(counts) <= images
        visited.update(counts.keys())
    assert visited == Counter({5: 1, 9: 1, 1: 1, 30: 1, 12: 1})


def test_epochs_depend_on_seed_and_number_only() -> None:
    first, same = (ImageBatchSampler(IMAGE_IDS, 2, 2, seed=4) for _ in range(2))
    other = ImageBatchSampler(IMAGE_IDS, 2, 2, seed=5)
    assert list(first) == list(first) == epoch(same, 0)
    runs = [epoch(first, number) for number in range(6)]
    assert runs == [epoch(same, number) for number in range(6)]
    assert len({str(run) for run in runs}) == 6
    assert runs != [epoch(other, number) for number in range(6)]


def test_all_orders_of_images_occur() -> None:
    sampler = ImageBatchSampler([4, 1, 3], 1, 1)
    orders = {tuple(item for batch in epoch(sampler, n) for item in batch) for n in range(60)}
    assert len(orders) == 6


def test_global_random_state_is_neither_used_nor_changed() -> None:
    sampler = ImageBatchSampler(IMAGE_IDS, 2, 2)
    torch.manual_seed(1)
    first, state = list(sampler), torch.get_rng_state()
    torch.manual_seed(2)
    assert list(sampler) == first
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_expression_is_drawn_in_some_epoch() -> None:
    sampler = ImageBatchSampler(IMAGE_IDS, 2, 2)
    seen = Counter(item for n in range(200) for batch in epoch(sampler, n) for item in batch)
    assert set(seen) == set(range(len(IMAGE_IDS)))
    # Two of image 5's five expressions an epoch: 80 times in 200 epochs, standard deviation 7.
    for item in (0, 1, 3, 6, 8):
        assert 45 < seen[item] < 115
    assert seen[7] == seen[10] == 200


def test_evaluation_order() -> None:
    sampler = ImageBatchSampler(IMAGE_IDS, 2, 3, shuffle=False)
    # Groups: 0 1 3 | 6 8 | 2 5 | 4 9 | 7 | 10
    assert list(sampler) == [[0, 1, 3, 6, 8], [2, 5, 4, 9], [7, 10]]
    assert len(sampler) == 3
    assert epoch(sampler, 6) == [[0, 1, 3, 6, 8], [2, 5, 4, 9], [7, 10]]


@pytest.mark.parametrize("images", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("expressions", [1, 2, 4, 5, 20])
def test_evaluation_yields_every_item_once(images: int, expressions: int) -> None:
    sampler = ImageBatchSampler(IMAGE_IDS, images, expressions, shuffle=False)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert all(0 < len(batch) <= images * expressions for batch in batches)
    items = [item for batch in batches for item in batch]
    assert items == [0, 1, 3, 6, 8, 2, 5, 4, 9, 7, 10]


@pytest.mark.parametrize(
    ("arguments", "seed", "message"),
    [
        (([], 1, 1), 0, "image_ids must name"),
        (([1], 0, 1), 0, "images_per_batch must be at least 1"),
        (([1], 1, 0), 0, "expressions_per_image must be at least 1"),
        (([1], 1, 1), -1, "seed must be at least 0"),
    ],
)
def test_invalid_arguments_are_refused(arguments: tuple[list[int], int, int], seed: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageBatchSampler(*arguments, seed=seed)


def test_negative_epoch_is_refused() -> None:
    with pytest.raises(ValueError, match="epoch must be at least 0"):
        ImageBatchSampler([1], 1, 1).set_epoch(-1)


def test_step_batches_continue_across_epochs_from_any_start() -> None:
    ids = [0, 0, 1, 2, 2, 2, 3]

    def batches(start: int, steps: int) -> list[list[int]]:
        return list(StepBatches(ImageBatchSampler(ids, 3, 1, seed=5), start, steps))

    sampler = ImageBatchSampler(ids, 3, 1, seed=5)
    expected = [batch for number in range(4) for batch in epoch(sampler, number)]
    assert [len(batch) for batch in expected] == [3, 1] * 4
    for start in range(8):
        assert batches(start, 7) == expected[start:7]
        steps = StepBatches(sampler, start, 8)
        assert len(steps) == 8 - start == len(list(steps))
    assert {frozenset(batch) for batch in expected[::2]} != {frozenset(expected[0])}
