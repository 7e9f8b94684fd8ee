"""The same images under other images' expressions: what a model finds that does not read."""

import logging
from dataclasses import replace

import numpy as np

from .sample import ReferringDataset, Sample

_logger = logging.getLogger(__name__)


class ShuffledExpressions:
    """A data set whose expressions have changed places among its images; images and masks stay.

    A model that reads does badly here. One that does as well as before found the objects without the words.
    Every expression goes to another image, unless one image has more than half of all expressions: then as
    few as possible stay with it, and the log says how many. The kind of an expression is left empty.
    """

    def __init__(self, dataset: ReferringDataset, seed: int = 0) -> None:
        """
        Args:
            dataset: with at least two images.
            seed: of the order.

        Raises:
            ValueError: there is one image only.
        """
        images = np.asarray(dataset.image_ids())
        names, counts = np.unique(images, return_counts=True)
        if len(names) < 2:
            raise ValueError("dataset must have at least two images to shuffle expressions among.")
        self.dataset = dataset
        self._expressions = dataset.expressions()
        # Images in a random order, and expressions handed on by the longest run of one image: where no image
        # has more than half of the expressions, none keeps one of its own.
        order = np.random.default_rng(seed).permutation(len(names))
        rank = np.empty(len(names), dtype=int)
        rank[order] = np.arange(len(names))
        by_image = np.argsort(rank[np.searchsorted(names, images)], kind="stable")
        self._source = np.empty(len(images), dtype=int)
        self._source[by_image] = np.roll(by_image, counts.max())
        kept = int((images[self._source] == images).sum())
        if kept:
            _logger.warning(
                "%d of %d expressions stay with their image when shuffled: it has more than half of them.",
                kept,
                len(images),
            )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        expression = self._expressions[self._source[index]]
        return replace(self.dataset[index], expression=expression, kind="")

    def expressions(self) -> list[str]:
        return [self._expressions[source] for source in self._source]

    def image_ids(self) -> list[int]:
        return self.dataset.image_ids()
