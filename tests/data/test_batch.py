"""Samples to batches, and which samples come together."""

from __future__ import annotations

import logging
import pickle
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch.utils.data import DataLoader

from cmsa_fast.data.batch import Batch, Collate, ImageBatchSampler
from cmsa_fast.data.flip import horizontal_flip
from cmsa_fast.data.transforms import Letterbox
from cmsa_fast.data.types import Sample
from cmsa_fast.data.vocabulary import Vocabulary

VOCABULARY = Vocabulary([*Vocabulary.SPECIAL, "the", "left", "man", "hat", "right"])


def sample(image_id: int, expression: str, size: tuple[int, int], number: int = 0) -> Sample:
    height, width = size
    photo = torch.Generator().manual_seed(image_id)
    target = torch.Generator().manual_seed(number)
    mask = torch.zeros(height, width, dtype=torch.bool)
    top = int(torch.randint(height // 2, (), generator=target))
    mask[top : top + height // 2, width // 3 :] = True
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=photo)
    return Sample(image, mask, expression, image_id, ref_id=10 + number, sent_id=20 + number)


def four() -> list[Sample]:
    return [
        sample(7, "the left man", (31, 47), 0),
        sample(2, "hat", (50, 21), 1),
        sample(7, "man", (31, 47), 2),
        sample(7, "the right hat", (31, 47), 3),
    ]


class Items(Sequence[Sample]):
    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        return self.samples[index]


class TestCollate:
    def test_every_image_is_there_once(self) -> None:
        samples = four()
        batch = Collate(VOCABULARY, 33)(samples)
        assert batch.images.shape == (2, 3, 33, 33)
        assert batch.images.dtype == torch.float32
        assert batch.image_index.tolist() == [0, 1, 0, 0]
        assert batch.image_index.dtype == torch.int64
        assert torch.equal(batch.images[0], Letterbox(31, 47, 33).image(samples[0].image))
        assert torch.equal(batch.images[1], Letterbox(50, 21, 33).image(samples[1].image))

    def test_every_image_is_letterboxed_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes = []
        original = Letterbox.image

        def counted(self: Letterbox, image: torch.Tensor) -> torch.Tensor:
            sizes.append(tuple(image.shape))
            return original(self, image)

        monkeypatch.setattr(Letterbox, "image", counted)
        Collate(VOCABULARY, 33)(four())
        assert sizes == [(3, 31, 47), (3, 50, 21)]

    def test_every_expression_has_its_mask_and_box(self) -> None:
        samples = four()
        batch = Collate(VOCABULARY, 33)(samples)
        assert batch.masks.shape == (4, 33, 33)
        assert batch.masks.dtype == torch.bool
        assert all(kept is given for kept, given in zip(batch.samples, samples, strict=True))
        for mask, box, item in zip(batch.masks, batch.letterboxes, samples, strict=True):
            assert box == Letterbox(*item.mask.shape, size=33)
            assert torch.equal(mask, box.mask(item.mask))

    def test_words_are_padded_at_the_front(self) -> None:
        batch = Collate(VOCABULARY, 33)(four())
        assert batch.words.tolist() == [[4, 5, 6], [0, 0, 7], [0, 0, 6], [4, 8, 7]]
        assert batch.words.dtype == torch.int64
        real = [[True, True, True], [False, False, True], [False, False, True], [True, True, True]]
        assert batch.word_mask.tolist() == real
        assert batch.word_mask.dtype == torch.bool

    def test_the_longest_expression_sets_the_width(self) -> None:
        collate = Collate(VOCABULARY, 33, max_words=2)
        assert collate(four()).words.tolist() == [[4, 5], [0, 7], [0, 6], [4, 8]]
        assert collate(four()[1:3]).words.tolist() == [[7], [6]]

    def test_equal_images_read_twice_are_one(self) -> None:
        first, second = sample(7, "man", (31, 47)), sample(7, "hat", (31, 47))
        assert first.image is not second.image
        assert len(Collate(VOCABULARY, 33)([first, second]).images) == 1

    def test_two_images_under_one_number_are_refused(self) -> None:
        first, second = sample(7, "left man", (31, 47)), sample(7, "hat", (31, 47))
        with pytest.raises(ValueError, match="mirrored for all of its expressions or for none"):
            Collate(VOCABULARY, 33)([first, horizontal_flip(second)])
        both = Collate(VOCABULARY, 33)([horizontal_flip(first), horizontal_flip(second)])
        assert both.words.tolist() == [[8, 6], [0, 7]]

    def test_two_sizes_under_one_number_are_refused(self) -> None:
        samples = [sample(7, "man", (31, 47)), sample(2, "hat", (9, 9)), sample(7, "hat", (47, 31))]
        with pytest.raises(ValueError, match="one image size.*31 x 47 and 47 x 31"):
            Collate(VOCABULARY, 33)(samples)

    def test_errors_name_the_sample(self) -> None:
        samples = [sample(7, "man", (31, 47)), sample(2, " ", (9, 9), 5)]
        with pytest.raises(ValueError, match="at least one word") as caught:
            Collate(VOCABULARY, 33)(samples)
        assert caught.value.__notes__ == ["In the sample with image_id 2, ref_id 15, sent_id 25."]

    @pytest.mark.parametrize(
        ("image", "mask", "error", "message"),
        [
            (torch.zeros(3, 5, 7), torch.zeros(5, 7).bool(), TypeError, "image must be"),
            (torch.zeros(5, 7).byte(), torch.zeros(5, 7).bool(), ValueError, "image must be"),
            (torch.zeros(4, 5, 7).byte(), torch.zeros(5, 7).bool(), ValueError, "image must be"),
            (torch.zeros(3, 5, 7).byte(), torch.zeros(5, 7).byte(), TypeError, "mask must be"),
            (torch.zeros(3, 5, 7).byte(), torch.zeros(7, 5).bool(), ValueError, "mask must be"),
        ],
    )
    def test_tensors_of_the_wrong_kind_are_refused(
        self, image: torch.Tensor, mask: torch.Tensor, error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            Collate(VOCABULARY, 33)([Sample(image, mask, "man", 1, 2, 3)])

    def test_numbers_and_lists_are_checked(self) -> None:
        with pytest.raises(ValueError, match="size must be at least 1"):
            Collate(VOCABULARY, 0)
        with pytest.raises(ValueError, match="max_words must be at least 1"):
            Collate(VOCABULARY, 33, max_words=0)
        with pytest.raises(ValueError, match="samples must have at least one"):
            Collate(VOCABULARY, 33)([])

    def test_masks_lost_in_the_square_are_counted(self, caplog: pytest.LogCaptureFixture) -> None:
        line = torch.zeros(90, 90, dtype=torch.bool)
        line[40] = True
        thin = Sample(
            torch.zeros(3, 90, 90, dtype=torch.uint8), line, "man", 1, ref_id=2, sent_id=3
        )
        empty = Sample(thin.image, torch.zeros_like(line), "hat", 1, ref_id=4, sent_id=5)
        collate = Collate(VOCABULARY, 15)
        with caplog.at_level(logging.WARNING):
            batch = collate([thin, empty, thin])
        assert not batch.masks.any()
        assert collate.vanished_masks == 2
        assert [record.getMessage() for record in caplog.records] == [
            "The mask of ref_id 2 (image_id 1) is too small for a square of 15 pixels and became "
            "empty. Further ones are only counted."
        ]
        collate([sample(7, "man", (31, 47))])
        assert collate.vanished_masks == 2

    def test_it_travels_to_workers(self) -> None:
        collate = pickle.loads(pickle.dumps(Collate(VOCABULARY, 33, max_words=2)))
        assert torch.equal(
            collate(four()).words, Collate(VOCABULARY, 33, max_words=2)(four()).words
        )

    def test_a_data_loader_uses_both(self) -> None:
        items = Items(four())
        sampler = ImageBatchSampler([7, 2, 7, 7], 1, 2, shuffle=False)
        loader = DataLoader(items, batch_sampler=sampler, collate_fn=Collate(VOCABULARY, 17))
        expressions = [[item.expression for item in batch.samples] for batch in loader]
        assert expressions == [["the left man", "man"], ["the right hat"], ["hat"]]
        assert len(loader) == 3


class TestBatch:
    def test_it_moves_as_a_whole(self) -> None:
        batch = Collate(VOCABULARY, 17)(four())
        moved = batch.to("meta")
        for name in ("images", "words", "word_mask", "masks", "image_index"):
            assert getattr(moved, name).device.type == "meta", name
            assert getattr(moved, name).shape == getattr(batch, name).shape
            assert getattr(batch, name).device.type == "cpu"
        assert moved.samples is batch.samples
        assert moved.letterboxes == batch.letterboxes
        assert isinstance(moved, Batch)


IMAGE_IDS = [5, 5, 9, 5, 1, 9, 5, 30, 5, 1, 12]  # items per image: 5, 2, 2, 1, 1


def epoch(sampler: ImageBatchSampler, number: int) -> list[list[int]]:
    sampler.set_epoch(number)
    return list(sampler)


class TestImageBatchSampler:
    @pytest.mark.parametrize("images", [1, 2, 3, 5, 8])
    @pytest.mark.parametrize("expressions", [1, 2, 3, 9])
    def test_an_epoch_shows_every_image_once(self, images: int, expressions: int) -> None:
        sampler = ImageBatchSampler(IMAGE_IDS, images, expressions)
        batches = epoch(sampler, 3)
        assert len(batches) == len(sampler) == -(-5 // images)
        shown: Counter[int] = Counter()
        for batch in batches:
            assert len(batch) == len(set(batch))
            counts = Counter(IMAGE_IDS[item] for item in batch)
            for image_id, count in counts.items():
                assert count == min(expressions, IMAGE_IDS.count(image_id))
            assert len(counts) <= images
            shown.update(counts.keys())
        assert shown == Counter({5: 1, 9: 1, 1: 1, 30: 1, 12: 1})

    def test_epochs_are_fixed_by_seed_and_number(self) -> None:
        first, same = (ImageBatchSampler(IMAGE_IDS, 2, 2, seed=4) for _ in range(2))
        other = ImageBatchSampler(IMAGE_IDS, 2, 2, seed=5)
        assert list(first) == list(first) == epoch(same, 0)
        runs = [epoch(first, number) for number in range(6)]
        assert runs == [epoch(same, number) for number in range(6)]
        assert len({str(run) for run in runs}) == 6
        assert runs != [epoch(other, number) for number in range(6)]

    def test_images_come_in_random_order(self) -> None:
        sampler = ImageBatchSampler([4, 1, 3], 1, 1)
        orders = {tuple(item for batch in epoch(sampler, n) for item in batch) for n in range(60)}
        assert len(orders) == 6

    def test_global_random_state_neither_matters_nor_changes(self) -> None:
        sampler = ImageBatchSampler(IMAGE_IDS, 2, 2)
        torch.manual_seed(1)
        first, state = list(sampler), torch.get_rng_state()
        torch.manual_seed(2)
        assert list(sampler) == first
        torch.manual_seed(1)
        assert torch.equal(torch.get_rng_state(), state)

    def test_every_expression_gets_its_turn(self) -> None:
        sampler = ImageBatchSampler(IMAGE_IDS, 2, 2)
        seen = Counter(item for n in range(200) for batch in epoch(sampler, n) for item in batch)
        assert set(seen) == set(range(len(IMAGE_IDS)))
        # Two of image 5's five expressions an epoch: 80 times in 200 epochs, give or take 7.
        for item in (0, 1, 3, 6, 8):
            assert 45 < seen[item] < 115
        assert seen[7] == seen[10] == 200

    def test_evaluation_covers_every_expression_in_order(self) -> None:
        sampler = ImageBatchSampler(IMAGE_IDS, 2, 3, shuffle=False)
        # Turns: 0 1 3 | 6 8 | 2 5 | 4 9 | 7 | 10
        assert list(sampler) == [[0, 1, 3, 6, 8], [2, 5, 4, 9], [7, 10]]
        assert len(sampler) == 3
        assert epoch(sampler, 6) == [[0, 1, 3, 6, 8], [2, 5, 4, 9], [7, 10]]

    @pytest.mark.parametrize("images", [1, 2, 3, 7, 20])
    @pytest.mark.parametrize("expressions", [1, 2, 4, 5, 20])
    def test_evaluation_batches(self, images: int, expressions: int) -> None:
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
            (([1], 0, 1), 0, "images must be at least 1"),
            (([1], 1, 0), 0, "expressions_per_image must be at least 1"),
            (([1], 1, 1), -1, "seed must be at least 0"),
        ],
    )
    def test_numbers_are_checked(
        self, arguments: tuple[list[int], int, int], seed: int, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            ImageBatchSampler(*arguments, seed=seed)

    def test_epochs_are_not_negative(self) -> None:
        with pytest.raises(ValueError, match="epoch must be at least 0"):
            ImageBatchSampler([1], 1, 1).set_epoch(-1)
