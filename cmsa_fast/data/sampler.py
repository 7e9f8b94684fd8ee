"""Samplers that yield batches of item indices: grouped by image, and one batch per training step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class ImageBatchSampler(Sampler[list[int]]):
    """Yields batches of items grouped by image, so that one encoded image serves several expressions.

    With `shuffle=True` (training) an epoch visits every image once, in random order, with at most
    `expressions_per_image` of its expressions, drawn at random. An image with more expressions shows others
    in later epochs. The draw depends only on `seed` and the epoch; call `set_epoch` before each epoch.

    With `shuffle=False` (evaluation) every item is yielded exactly once. Images are in the order of their
    first item, and an image with more than `expressions_per_image` expressions fills several groups.

    A batch holds up to `images_per_batch` groups; the last batch may hold fewer.

    Args:
        image_ids: Image of every item, in order (`ReferringDataset.image_ids()`).
        images_per_batch: Images in a batch, at least 1.
        expressions_per_image: Largest number of expressions in a group, at least 1.
        shuffle: True for training, False for evaluation.
        seed: Seed of the random draws, at least 0.

    Raises:
        ValueError: `image_ids` is empty or a number is too small.
    """

    def __init__(
        self,
        image_ids: Sequence[int],
        images_per_batch: int,
        expressions_per_image: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(image_ids) == 0:
            raise ValueError("image_ids must name at least one item, but it is empty.")
        for name, value, least in (
            ("images_per_batch", images_per_batch, 1),
            ("expressions_per_image", expressions_per_image, 1),
            ("seed", seed, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, but it is {value}.")
        self.images_per_batch = images_per_batch
        self.expressions_per_image = expressions_per_image
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        items: dict[int, list[int]] = {}
        for item, image_id in enumerate(image_ids):
            items.setdefault(int(image_id), []).append(item)
        self._items_of_images = list(items.values())

    def set_epoch(self, epoch: int) -> None:
        """Selects the epoch, at least 0, that the next iteration draws."""
        if epoch < 0:
            raise ValueError(f"epoch must be at least 0, but it is {epoch}.")
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of batches in one epoch."""
        groups = len(self._items_of_images if self.shuffle else self._ordered_groups())
        return -(-groups // self.images_per_batch)

    def __iter__(self) -> Iterator[list[int]]:
        """Yields the item indices of each batch."""
        groups = self._random_groups() if self.shuffle else self._ordered_groups()
        for start in range(0, len(groups), self.images_per_batch):
            batch = groups[start : start + self.images_per_batch]
            yield [item for group in batch for item in group]

    def _random_groups(self) -> list[list[int]]:
        random = np.random.default_rng((self.seed, self.epoch))
        groups = []
        for image in random.permutation(len(self._items_of_images)):
            items = self._items_of_images[image]
            chosen = random.permutation(len(items))[: self.expressions_per_image]
            groups.append([items[index] for index in chosen])
        return groups

    def _ordered_groups(self) -> list[list[int]]:
        step = self.expressions_per_image
        return [
            items[start : start + step] for items in self._items_of_images for start in range(0, len(items), step)
        ]


class StepBatches(Sampler[list[int]]):
    """Yields the batches of training steps `start` to `steps`, epoch after epoch.

    A step's batch does not depend on `start`, so a resumed run continues with the same batches. One
    iteration covers the whole training, so the worker processes of a `DataLoader` are started only once.

    Args:
        sampler: Batches of one epoch.
        start: First step.
        steps: Total number of steps.
    """

    def __init__(self, sampler: ImageBatchSampler, start: int, steps: int) -> None:
        super().__init__()
        self.sampler = sampler
        self.start = start
        self.steps = steps

    def __len__(self) -> int:
        """Number of remaining steps."""
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[int]]:
        """Yields the item indices of each step's batch."""
        epoch, skip = divmod(self.start, len(self.sampler))
        left = len(self)
        while left:
            self.sampler.set_epoch(epoch)
            batches = list(self.sampler)[skip : skip + left]
            yield from batches
            left -= len(batches)
            epoch, skip = epoch + 1, 0
