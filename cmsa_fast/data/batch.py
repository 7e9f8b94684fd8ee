"""Samples to batches: every distinct image once, every expression with its words."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from .transforms import Letterbox
from .types import Sample
from .vocabulary import Vocabulary

logger = logging.getLogger(__name__)


@dataclass
class Batch:
    """B expressions about B_images distinct images, at the network's size S.

    Attributes:
        images: float32 `[B_images, 3, S, S]` in [0, 1], RGB; one per distinct image, in the order in
            which the expressions first name them.
        words: int64 `[B, N]`, word numbers, padded at the front with `<pad>` (as the published code does).
        word_mask: bool `[B, N]`, True where a word is real; at least one per expression.
        masks: bool `[B, S, S]`.
        image_index: int64 `[B]`, which image each expression belongs to.
        samples: The originals, one per expression, for evaluation at the image's own size; they stay
            where they are when the batch moves.
        letterboxes: How each expression's image sits in the square, one per expression.
    """

    images: Tensor
    words: Tensor
    word_mask: Tensor
    masks: Tensor
    image_index: Tensor
    samples: list[Sample]
    letterboxes: list[Letterbox]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """A batch with its tensors on `device` and the same samples.

        Args:
            device: Where to.
            non_blocking: Do not wait for the copy; of use from pinned memory.
        """
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """A batch with its tensors in page-locked memory (`DataLoader(pin_memory=True)` calls this)."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            images=change(self.images),
            words=change(self.words),
            word_mask=change(self.word_mask),
            masks=change(self.masks),
            image_index=change(self.image_index),
        )


class Collate:
    """Makes a batch of samples: the `collate_fn` of a `DataLoader`, fit to be sent to its workers.

    Samples with one `image_id` share one image in the batch, so their images must be the same. (Mirrored
    by `horizontal_flip`, an image is another one: mirror all of its samples or none.)

    Attributes:
        vocabulary: The word list.
        size: The square's side in pixels.
        max_words: Most words kept of an expression.
        vanished_masks: How many masks so far had pixels in the image and none in the square (see
            `Letterbox.mask`); the first is logged. A copy in a worker process counts for itself.
    """

    def __init__(self, vocabulary: Vocabulary, size: int, max_words: int = 20) -> None:
        """Remember the word list and the sizes.

        Args:
            vocabulary: The word list.
            size: The square's side in pixels, at least 1.
            max_words: Most words to keep of an expression, at least 1.

        Raises:
            ValueError: `size` or `max_words` is below 1.
        """
        if size < 1:
            raise ValueError(f"size must be at least 1 pixel, but it is {size}.")
        if max_words < 1:
            raise ValueError(f"max_words must be at least 1, but it is {max_words}.")
        self.vocabulary = vocabulary
        self.size = size
        self.max_words = max_words
        self.vanished_masks = 0

    def __call__(self, samples: list[Sample]) -> Batch:
        """Put samples into one batch.

        Args:
            samples: At least one; the order is kept.

        Returns:
            The batch; N is the word count of its longest expression.

        Raises:
            TypeError: An image is not uint8, a mask not bool or an expression no string.
            ValueError: There is no sample, an image is not `[3, H, W]`, a mask differs in size from its
                image, samples of one `image_id` differ in image or its size, or an expression has no
                word. A note names the sample.
        """
        if not samples:
            raise ValueError("samples must have at least one sample, but the list is empty.")
        firsts = {sample.image_id: sample for sample in reversed(samples)}
        places: dict[int, int] = {}
        boxes: list[Letterbox] = []
        images: list[Tensor] = []
        masks: list[Tensor] = []
        encoded: list[list[int]] = []
        for sample in samples:
            try:
                _check_image(sample, firsts[sample.image_id])
                if sample.image_id not in places:
                    box = Letterbox(*_size(sample), size=self.size)
                    places[sample.image_id] = len(images)
                    boxes.append(box)
                    images.append(box.image(sample.image))
                masks.append(self._mask(boxes[places[sample.image_id]], sample))
                encoded.append(self.vocabulary.encode(sample.expression, self.max_words))
            except (TypeError, ValueError) as error:
                error.add_note(
                    f"In the sample with image_id {sample.image_id}, ref_id {sample.ref_id}, "
                    f"sent_id {sample.sent_id}."
                )
                raise
        image_index = [places[sample.image_id] for sample in samples]
        words, word_mask = _pad(encoded)
        return Batch(
            images=torch.stack(images),
            words=words,
            word_mask=word_mask,
            masks=torch.stack(masks),
            image_index=torch.tensor(image_index),
            samples=list(samples),
            letterboxes=[boxes[index] for index in image_index],
        )

    def _mask(self, letterbox: Letterbox, sample: Sample) -> Tensor:
        mask = letterbox.mask(sample.mask)
        if not mask.any() and sample.mask.any():
            if self.vanished_masks == 0:
                logger.warning(
                    "The mask of ref_id %d (image_id %d) is too small for a square of %d pixels and "
                    "became empty. Further ones are only counted.",
                    sample.ref_id,
                    sample.image_id,
                    self.size,
                )
            self.vanished_masks += 1
        return mask


def _size(sample: Sample) -> tuple[int, int]:
    height, width = sample.image.shape[-2:]
    return height, width


def _check_image(sample: Sample, first: Sample) -> None:
    if sample.image.ndim != 3:
        raise ValueError(f"image must be [3, H, W], but its shape is {list(sample.image.shape)}.")
    if sample.image is first.image:
        return
    if _size(sample) != _size(first):
        raise ValueError(
            "samples of one image_id must have one image size, but there are "
            "{} x {} and {} x {}.".format(*_size(first), *_size(sample))
        )
    if not torch.equal(sample.image, first.image):
        raise ValueError(
            "samples of one image_id must have one image, but there are two different ones; a "
            "image is mirrored for all of its expressions or for none."
        )


def _pad(encoded: list[list[int]]) -> tuple[Tensor, Tensor]:
    longest = max(len(ids) for ids in encoded)
    words = torch.full((len(encoded), longest), Vocabulary.PAD_ID)
    word_mask = torch.zeros(len(encoded), longest, dtype=torch.bool)
    for row, ids in enumerate(encoded):
        words[row, longest - len(ids) :] = torch.tensor(ids)
        word_mask[row, longest - len(ids) :] = True
    return words, word_mask


class ImageBatchSampler(Sampler[list[int]]):
    """Batches of items that share images, so that an image's features serve several expressions.

    For training (`shuffle=True`) an epoch shows every image once, in random order, each with at most
    `expressions_per_image` of its expressions, drawn at random: of an image with more, an epoch leaves
    expressions out and later epochs draw others. The draw depends on `seed` and the epoch alone; call
    `set_epoch` before each epoch, otherwise all are alike.

    For evaluation (`shuffle=False`) every item comes exactly once. Images come in the order in which
    they first appear, the items of one image together and in order, `expressions_per_image` at a time:
    an image with more comes again right after, perhaps in the next batch.

    In both forms a batch has at most `images * expressions_per_image` items, and the last batch is
    shorter where the number of images asks for it.
    """

    def __init__(
        self,
        image_ids: Sequence[int],
        images: int,
        expressions_per_image: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        """Group the items by image.

        Args:
            image_ids: The image of every item, in order (`ReferringDataset.image_ids()`).
            images: Images in a batch, at least 1.
            expressions_per_image: Most expressions of one image at a time, at least 1.
            shuffle: True for training, False for evaluation.
            seed: Start of the random draws, at least 0.

        Raises:
            ValueError: `image_ids` is empty or a number is too small.
        """
        super().__init__()
        if len(image_ids) == 0:
            raise ValueError("image_ids must name at least one item, but it is empty.")
        for name, value, least in (
            ("pictures", images, 1),
            ("expressions_per_image", expressions_per_image, 1),
            ("seed", seed, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, but it is {value}.")
        self.images = images
        self.expressions_per_image = expressions_per_image
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        groups: dict[int, list[int]] = {}
        for item, image_id in enumerate(image_ids):
            groups.setdefault(int(image_id), []).append(item)
        self._groups = list(groups.values())

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose draw the next pass makes.

        Args:
            epoch: At least 0.

        Raises:
            ValueError: `epoch` is negative.
        """
        if epoch < 0:
            raise ValueError(f"epoch must be at least 0, but it is {epoch}.")
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of batches in one pass."""
        groups = len(self._groups)
        if not self.shuffle:
            groups = sum(-(-len(group) // self.expressions_per_image) for group in self._groups)
        return -(-groups // self.images)

    def __iter__(self) -> Iterator[list[int]]:
        """Batches of item indices."""
        groups = self._drawn_turns() if self.shuffle else self._ordered_turns()
        for start in range(0, len(groups), self.images):
            yield [item for turn in groups[start : start + self.images] for item in turn]

    def _drawn_turns(self) -> list[list[int]]:
        random = np.random.default_rng((self.seed, self.epoch))
        groups = []
        for image in random.permutation(len(self._groups)):
            group = self._groups[image]
            chosen = random.permutation(len(group))[: self.expressions_per_image]
            groups.append([group[index] for index in chosen])
        return groups

    def _ordered_turns(self) -> list[list[int]]:
        step = self.expressions_per_image
        return [
            group[start : start + step]
            for group in self._groups
            for start in range(0, len(group), step)
        ]
