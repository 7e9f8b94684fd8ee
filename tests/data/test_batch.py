"""Tests of `Collate` and `Batch`."""

from __future__ import annotations

import logging
import pickle
from dataclasses import replace

import pytest
import torch

from cmsa_fast.data.batch import Batch, Collate
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


class TestCollate:
    def test_images_appear_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        image, letterboxed = Letterbox.image, []
        monkeypatch.setattr(Letterbox, "image", lambda *given: letterboxed.append(given) or image(*given))
        samples = four()
        batch = Collate(VOCABULARY, 33)(samples)
        assert len(letterboxed) == 2
        assert batch.images.shape == (2, 3, 33, 33)
        assert batch.images.dtype == torch.float32
        assert batch.image_index.tolist() == [0, 1, 0, 0]
        assert batch.image_index.dtype == torch.int64
        assert torch.equal(batch.images[0], Letterbox(31, 47, 33).image(samples[0].image))
        assert torch.equal(batch.images[1], Letterbox(50, 21, 33).image(samples[1].image))

    def test_each_expression_has_a_mask_and_a_letterbox(self) -> None:
        samples = four()
        batch = Collate(VOCABULARY, 33)(samples)
        assert batch.masks.shape == (4, 33, 33)
        assert batch.masks.dtype == torch.bool
        assert all(kept is given for kept, given in zip(batch.samples, samples, strict=True))
        for mask, box, item in zip(batch.masks, batch.letterboxes, samples, strict=True):
            assert box == Letterbox(*item.mask.shape, size=33)
            assert torch.equal(mask, box.mask(item.mask))

    def test_ignored_regions(self) -> None:
        samples = four()
        assert Collate(VOCABULARY, 33)(samples).ignore is None
        samples[2] = replace(samples[2], ignore=samples[3].mask)
        batch = Collate(VOCABULARY, 33)(samples)
        assert batch.ignore is not None
        assert torch.equal(batch.ignore[2], batch.masks[3])
        assert not batch.ignore[[0, 1, 3]].any()

    def test_words_are_padded_at_the_front(self) -> None:
        batch = Collate(VOCABULARY, 33)(four())
        assert batch.words.tolist() == [[4, 5, 6], [0, 0, 7], [0, 0, 6], [4, 8, 7]]
        assert batch.words.dtype == torch.int64
        real = [[True, True, True], [False, False, True], [False, False, True], [True, True, True]]
        assert batch.word_mask.tolist() == real
        assert batch.word_mask.dtype == torch.bool

    def test_longest_expression_sets_the_width(self) -> None:
        collate = pickle.loads(pickle.dumps(Collate(VOCABULARY, 33, max_words=2)))  # as for a worker
        assert collate(four()).words.tolist() == [[4, 5], [0, 7], [0, 6], [4, 8]]
        assert collate(four()[1:3]).words.tolist() == [[7], [6]]

    def test_equal_images_read_twice_are_merged(self) -> None:
        first, second = sample(7, "man", (31, 47)), sample(7, "hat", (31, 47))
        assert first.image is not second.image
        assert len(Collate(VOCABULARY, 33)([first, second]).images) == 1

    @pytest.mark.parametrize("size", [(31, 47), (47, 31)])
    def test_different_images_with_one_id_are_refused(self, size: tuple[int, int]) -> None:
        other = replace(sample(2, "hat", size), image_id=7)
        samples = [sample(7, "man", (31, 47)), sample(3, "hat", (9, 9)), other]
        with pytest.raises(ValueError, match="must have the same image"):
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
    def test_invalid_tensors_are_refused(
        self, image: torch.Tensor, mask: torch.Tensor, error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            Collate(VOCABULARY, 33)([Sample(image, mask, "man", 1, 2, 3)])

    def test_invalid_arguments_are_refused(self) -> None:
        with pytest.raises(ValueError, match="size must be at least 1"):
            Collate(VOCABULARY, 0)
        with pytest.raises(ValueError, match="max_words must be at least 1"):
            Collate(VOCABULARY, 33, max_words=0)
        with pytest.raises(ValueError, match="samples must have at least one"):
            Collate(VOCABULARY, 33)([])

    def test_mask_that_becomes_empty_is_logged_once(self, caplog: pytest.LogCaptureFixture) -> None:
        line = torch.zeros(90, 90, dtype=torch.bool)
        line[40] = True
        thin = Sample(torch.zeros(3, 90, 90).byte(), line, "man", 1, ref_id=2, sent_id=3)
        empty = Sample(thin.image, torch.zeros_like(line), "hat", 1, ref_id=4, sent_id=5)
        collate = Collate(VOCABULARY, 15)
        with caplog.at_level(logging.WARNING):
            batch = collate([thin, empty, thin])
        assert not batch.masks.any()
        assert batch.image_index.tolist() == [0, 0, 0]
        assert len(batch.images) == 1
        assert [record.getMessage() for record in caplog.records] == [
            "The mask of ref_id 2 (image_id 1) is empty after resizing to 15 pixels: the object is too "
            "small. Further cases are not logged."
        ]


class TestBatch:
    def test_to_moves_all_tensors(self) -> None:
        batch = Collate(VOCABULARY, 17)(four())
        moved = batch.to("meta")
        for name in ("images", "words", "word_mask", "masks", "image_index"):
            assert getattr(moved, name).device.type == "meta", name
            assert getattr(moved, name).shape == getattr(batch, name).shape
            assert getattr(batch, name).device.type == "cpu"
        assert moved.samples is batch.samples
        assert moved.letterboxes == batch.letterboxes
        assert isinstance(moved, Batch)
